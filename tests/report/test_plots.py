import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from report_data import bare_data, curves, report_data, seeded_data, sparsity, systems

from tdistill.pages.lines import thinned
from tdistill.pages.svg import Plot, panel_svgs, plot_file
from tdistill.report.data import Sparsity, StageCost, TrainingCurve
from tdistill.report.plots import all_plots, curves_plot, palette, quality_plot, sparsity_plot, time_plot
from tdistill.statistics.estimate import Estimate

NAN = float("nan")


def words(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag.endswith("}text")]


def titles(plot: Plot | None) -> list[str]:
    assert plot is not None
    return [panel.description.split(" by step")[0] for panel in plot.panels]


@pytest.fixture(scope="module")
def plots() -> dict[str, Plot]:
    return all_plots(report_data())


def test_every_figure_is_well_formed_and_described(plots):
    assert list(plots) == ["quality", "curves", "sparsity", "time"]
    svgs = [plot_file(plot) for plot in plots.values()] + panel_svgs(plots["time"])
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        ids = [e.get("id") for e in root.iter() if e.get("id")]
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) == set(ids)


def test_figures_are_the_same_bytes_again_and_carry_no_date(plots):
    again = all_plots(report_data())
    svg = plot_file(plots["time"])
    assert svg == plot_file(again["time"])
    assert not re.search(r"<metadata|<dc:|matplotlib", svg, re.IGNORECASE)


def test_pages_colour_the_ink_and_files_bring_their_own(plots):
    panel = panel_svgs(plots["time"])[0]
    assert "currentColor" in panel
    assert "#010203" not in panel
    assert re.match(r'<svg [^>]*width="[\d.]+" height="[\d.]+" color="#1b1f24"', plot_file(plots["time"]))


def test_the_teacher_is_grey_and_a_run_named_as_a_system_has_its_colour():
    colours = palette(report_data())
    assert colours["teacher"] == "#808080"
    assert set(colours) == {s.name for s in systems()} | {c.name for c in curves()}
    assert len(set(colours.values())) == len(colours)


def test_quality_names_every_system_in_every_panel(plots):
    assert len(plots["quality"].panels) == 5
    for svg in panel_svgs(plots["quality"]):
        assert {s.name for s in systems()} <= set(words(svg))
    assert "lower is better, log scale" in words(panel_svgs(plots["quality"])[1])


def test_quality_needs_two_systems_and_does_without_standard_errors():
    assert quality_plot(systems()[:1], palette(report_data())) is None
    bare = [replace(s, metrics={"rouge_l": Estimate(s.metrics["rouge_l"].mean, NAN, 1)}) for s in systems()]
    plot = quality_plot(bare, palette(report_data()))
    assert plot is not None
    assert len(plot.panels) == 1
    assert "nan" not in plot_file(plot)


def test_curves_gather_prefixed_keys_and_warn_about_losses(plots):
    found = titles(plots["curves"])
    assert found[0] == "loss (not comparable between objectives)"
    assert len(found) == 9
    assert "distilled from" in plots["curves"].panels[2].description
    assert "iq_learn + reverse_kl from" in plots["curves"].panels[2].description


def test_a_run_with_two_td_objectives_gets_a_panel_for_each():
    record = {"step": 1.0, "iq_learn/td/v": 1.0, "other/td/v": 2.0}
    plot = curves_plot([TrainingCurve("a", [record]), TrainingCurve("b", [{"step": 1.0, "iq_learn/td/v": 3.0}])], {"a": "#000", "b": "#111"})
    assert titles(plot) == ["value V(s) (iq_learn)", "value V(s) (other)"]


def test_one_run_needs_no_warning_and_gaps_are_left_out():
    plot = curves_plot([TrainingCurve("a", [{"step": 1.0, "loss": NAN}, {"step": 2.0, "loss": 3.0}, {"step": 3.0}])], {"a": "#000"})
    assert titles(plot) == ["loss"]
    assert "nan" not in plot_file(plot)


def test_the_seeds_of_a_system_share_its_colour_its_dash_and_its_place_in_the_legend():
    plot = all_plots(seeded_data())["curves"]
    assert [line.name for line in plot.legend] == ["sft", "distilled"]
    strokes = re.findall(r"stroke: (#[0-9a-f]{6})", panel_svgs(plot)[0])
    assert strokes.count(plot.legend[1].colour) == 3 * strokes.count(plot.legend[0].colour) > 0
    assert "distilled (seed 18) from" in plot.panels[0].description
    assert "Every training seed is a pale line." in plot.caption


def test_several_seeds_of_one_objective_have_comparable_losses():
    plot = curves_plot([TrainingCurve("a", [{"step": 1.0, "loss": 2.0}], seed) for seed in (1, 2)], {"a": "#000000"})
    assert titles(plot) == ["loss"]


def test_no_curves_without_anything_to_draw():
    assert curves_plot([], {}) is None
    assert curves_plot([TrainingCurve("a", [{"step": 1.0, "loss": NAN, "unknown": 2.0}])], {"a": "#000"}) is None


def test_thinning_keeps_the_mean_and_short_series():
    points = np.stack([np.arange(600.0), np.arange(600.0) ** 2], axis=1)
    assert len(thinned(points, 150)) == 150
    np.testing.assert_allclose(thinned(points, 150).mean(axis=0), points.mean(axis=0))
    np.testing.assert_array_equal(thinned(points[:150], 150), points[:150])


def test_sparsity_marks_median_and_p99():
    plot = sparsity_plot(sparsity())
    assert plot is not None
    assert len(plot.panels) == 4
    assert {"median 8", "p99 287"} <= set(words(panel_svgs(plot)[3]))


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [0, 1], [49152] * 3])
def test_degenerate_sizes_still_draw(sizes):
    plot = sparsity_plot(Sparsity(len(sizes), 49152, {1: 1.0}, {0.5: sizes, 0.9: []}))
    assert plot is not None
    assert len(plot.panels) == 2
    ET.fromstring(plot_file(plot))


def test_no_sparsity_without_numbers():
    assert sparsity_plot(Sparsity(0, 10, {}, {})) is None


def test_time_needs_a_stage_that_took_some():
    assert time_plot([]) is None
    assert time_plot([StageCost("a", 0.0, 1, 1), StageCost("b", NAN, 1, 1)]) is None
    plot = time_plot([StageCost("a", 10_000.0, 1, 1)])
    assert plot is not None
    assert "hours" in words(plot_file(plot))


def test_names_may_hold_markup_dollars_and_control_characters():
    name = "<b>$x$\x1b & a very long name indeed"
    plot = time_plot([StageCost(name, 10.0, 1, 1)])
    assert plot is not None
    assert "<b>$x$␛ & a very …" in words(plot_file(plot))


def test_bare_data_has_no_figures():
    assert all_plots(bare_data()) == {}
