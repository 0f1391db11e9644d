"""Decoding temperatures: what the entropy of an answer is, how a method is read at another's, and a run's systems through the command line."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import command, tiny_recipe_dict
from places import experiment, student

from tdistill.compare.frontier import at_baseline, frontier_table
from tdistill.data.prompts import load_prompts, render
from tdistill.experiment.answers import answers, sampling_of
from tdistill.experiment.systems import systems
from tdistill.experiment.temperatures import parse_temperatures
from tdistill.models.find import find_model
from tdistill.models.forward import step_logp
from tdistill.models.layout import pad_pairs
from tdistill.models.load import load_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.files import read_jsonl
from tdistill.statistics.equal_entropy import at_level, mean_of
from tdistill.statistics.pooling import compared, pooled

SYSTEMS = ["teacher", "sft", "sft_continued", "distilled"]


def curve(seeds: int, prompts: int, shift: float = 0.0, seed: int = 0) -> dict:
    """Three temperatures; entropies around T + .5 and a metric around 2·entropy + shift, noisy by training seed and prompt."""
    rng = np.random.default_rng(seed)
    of_seed, of_prompt = rng.normal(0, 0.1, seeds), rng.normal(0, 0.5, prompts)
    found = {}
    for t in (0.5, 1.0, 1.5):
        entropy = t + 0.5 + of_prompt * 0.3 + rng.normal(0, 0.1, (seeds, prompts))
        metric = shift + 2 * entropy + of_seed[:, None] + of_prompt + rng.normal(0, 0.3, (seeds, prompts))
        found[t] = {
            s: {"entropy": {str(p): entropy[s, p] for p in range(prompts)}, "teacher_nll": {str(p): metric[s, p] for p in range(prompts)}}
            for s in range(seeds)
        }
    return found


def means(of: dict, t: float) -> tuple[float, float]:
    return mean_of(of, t, "entropy"), mean_of(of, t, "teacher_nll")


def test_a_method_is_read_on_the_line_between_two_temperatures() -> None:
    of = curve(3, 20)
    (v0, x0), (v1, x1) = means(of, 0.5), means(of, 1.0)
    for w in (0.0, 0.3, 1.0):
        found = at_level(of, "teacher_nll", v0 + w * (v1 - v0))
        assert found.temperature == pytest.approx(0.5 + w * 0.5)
        assert pooled(found.values).mean == pytest.approx(x0 + w * (x1 - x0))
        assert list(found.values) == [0, 1, 2]


def test_a_falling_measure_of_spread_is_read_as_a_rising_one() -> None:
    of = curve(2, 10)
    falling = {t: {s: own | {"entropy": {p: -v for p, v in own["entropy"].items()}} for s, own in seeds.items()} for t, seeds in of.items()}
    level = mean_of(of, 0.5, "entropy") + 0.1
    one, other = at_level(of, "teacher_nll", level), at_level(falling, "teacher_nll", -level)
    assert other.temperature == pytest.approx(one.temperature)
    assert other.values[0] == pytest.approx(one.values[0])


def test_what_is_not_reached_is_not_guessed() -> None:
    of = curve(2, 10)
    low, high = mean_of(of, 0.5, "entropy"), mean_of(of, 1.5, "entropy")
    assert at_level(of, "teacher_nll", low - 0.1) is None
    assert at_level(of, "teacher_nll", high + 0.1) is None
    assert at_level({0.5: of[0.5]}, "teacher_nll", low) is None
    assert at_level(of, "rouge_l", low + 0.1) is None


def test_only_seeds_and_prompts_with_everything_count() -> None:
    of = curve(3, 10)
    del of[1.5][1]
    of[0.5][0]["teacher_nll"]["3"] = math.nan
    del of[1.0][2]["entropy"]["7"]
    found = at_level(of, "teacher_nll", 1.2)
    assert list(found.values) == [0, 2]
    assert all(sorted(own) == sorted(set("0123456789") - {"3", "7"}) for own in found.values.values())


def test_the_spread_is_that_of_reading_the_curve_again_and_again() -> None:
    """The delta method against brute force: other prompts, another curve, another weight."""
    level, prompts = 1.3, 40
    of, rng = curve(1, prompts), np.random.default_rng(1)
    own = {t: {m: np.array([seeds[0][m][str(p)] for p in range(prompts)]) for m in ("entropy", "teacher_nll")} for t, seeds in of.items()}
    read = []
    for _ in range(4000):
        drawn = rng.integers(prompts, size=prompts)
        v, x = ([own[t][m][drawn].mean() for t in (0.5, 1.0)] for m in ("entropy", "teacher_nll"))
        read.append(x[0] + (level - v[0]) / (v[1] - v[0]) * (x[1] - x[0]))
    assert pooled(at_level(of, "teacher_nll", level).values).stderr == pytest.approx(np.std(read), rel=0.1)


def test_equal_methods_at_other_temperatures_do_not_differ_and_a_better_one_does() -> None:
    base, sharper, better = curve(3, 30), curve(3, 30, seed=1), curve(3, 30, shift=-1.0, seed=2)
    rows = at_baseline({"base": base, "sharper": {t * 2: own for t, own in sharper.items()}, "better": better}, "base", ("teacher_nll",))
    assert [r.baseline_temperature for r in rows] == [t for t in (0.5, 1.0, 1.5) for _ in range(3)]
    middle = {r.method: r for r in rows if r.baseline_temperature == 1.0}
    assert next(iter(middle)) == "better"
    assert middle["sharper"].temperature == pytest.approx(2.0, abs=0.3)
    assert middle["sharper"].differences["teacher_nll"].p_value > 0.05
    assert middle["better"].differences["teacher_nll"].p_value < 0.01
    assert middle["better"].differences["teacher_nll"].difference.mean == pytest.approx(-1.0, abs=0.3)
    assert middle["base"].differences == {}
    assert middle["base"].values["teacher_nll"].mean == pytest.approx(mean_of(base, 1.0, "teacher_nll"))
    unreached = at_baseline(
        {
            "base": base,
            "far": {t: {s: {**x, "entropy": dict.fromkeys(x["entropy"], 9.0 + t)} for s, x in own.items()} for t, own in base.items()},
        },
        "base",
        ("teacher_nll",),
    )
    cells = [[c.text for c in row] for row in frontier_table(unreached, ("teacher_nll",)).rows]
    assert cells[1][1:] == ["far", "–", "–", "–"]


@pytest.mark.parametrize("text", ["0.5,x", "", " , ", "0,1", "-1", "inf", "nan"])
def test_temperatures_that_are_none_are_refused(text) -> None:
    with pytest.raises(ConfigError, match=r"--temperatures takes .*such as 0\.5,0\.7,1; got "):
        parse_temperatures(text)


def test_temperatures_are_read_once_each() -> None:
    assert parse_temperatures("1, .5,1.0,") == (0.5, 1.0)


def test_temperatures_that_a_table_would_show_as_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most six digits, got 0.9999999: round it to 1"):
        parse_temperatures("0.9999999,1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_teacher) -> list[Path]:
    """Two runs that differ by their seed, with temperatures .6, 1 and 1.4."""
    root = tmp_path_factory.mktemp("temperatures")
    recipe, outputs = root / "recipe.yaml", [root / "a", root / "b"]
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, root)))
    for seed, output in enumerate(outputs):
        assert command("run", recipe, f"seed={seed}", f"output_dir={output}") == 0
        assert command("evaluate", recipe, f"seed={seed}", f"output_dir={output}", "--temperatures", "0.6,1,1.4") == 0
    return outputs


def of(run: Path, t: float, name: str, split: str = "test") -> Path:
    """Find a system's answers at a temperature."""
    recipe = experiment(run / "recipe.yaml")
    (system,) = (s for s in systems(recipe) if s.name == name)
    return answers(recipe, system, split, None if t is None else sampling_of(recipe, t)).directory


def scores(run: Path, t: float, name: str) -> dict:
    return json.loads((of(run, t, name) / "scores.json").read_text())


def test_the_entropy_is_that_of_the_distribution_drawn_from(runs) -> None:
    """An answer's log-prob under softmax(logits/T) cut to the nucleus, from the model's own logits."""
    recipe = yaml.safe_load((runs[0] / "recipe.yaml").read_text())
    top_p = recipe["evaluation"]["top_p"]
    directory = student(runs[0] / "recipe.yaml")
    model, tokenizer = load_model(find_model(str(directory)), "float32"), load_tokenizer(find_model(str(directory)))
    prompts = {p.prompt_id: render(tokenizer, p) for p in load_prompts(recipe["data"]["test"])}
    for t in (0.6, 1.4):
        records, found = read_jsonl(of(runs[0], t, "distilled") / "answers.jsonl"), scores(runs[0], t, "distilled")["entropy"]
        for record in records:
            ids = prompts[record["prompt_id"]]
            inputs, attention, taken, _ = pad_pairs([ids], [record["tokens"]])
            with torch.inference_mode():
                logp = torch.log_softmax(step_logp(model, inputs, attention, taken.shape[1], len(tokenizer)) / t, -1)
            probs, order = logp.double().exp().sort(-1, descending=True)
            kept = probs.cumsum(-1) - probs < top_p
            cut = torch.zeros_like(probs).scatter(-1, order, torch.where(kept, probs, 0.0))
            cut /= cut.sum(-1, keepdim=True)
            expected = -cut.gather(-1, taken.unsqueeze(-1)).log().mean()
            assert found[record["prompt_id"]] == pytest.approx(float(expected), abs=2e-2)  # the answers were drawn in bfloat16


def test_the_temperature_of_the_evaluation_is_the_evaluations_own_measurement(runs) -> None:
    (noted,) = (s for s in json.loads(next(runs[0].glob("evaluation/*/artefact.json")).read_text())["notes"]["systems"] if s["name"] == "sft")
    assert of(runs[0], 1.0, "sft") == runs[0] / noted["answers"]
    own = scores(runs[0], 1.0, "sft")
    assert set(own) == {"rouge_l", "teacher_nll", "entropy", "distinct_2", "mean_length"}
    assert scores(runs[0], 0.6, "sft")["entropy"] != own["entropy"]


def test_another_temperature_costs_itself_alone(runs, capsys) -> None:
    recipe = runs[0].parent / "recipe.yaml"
    gone = of(runs[0], 0.6, "sft")
    kept = json.loads((gone / "scores.json").read_text())
    shutil.rmtree(gone)
    before = {p: p.stat().st_mtime_ns for p in runs[0].glob("*/*/*")}
    assert command("evaluate", recipe, "seed=0", f"output_dir={runs[0]}", "--temperatures", "0.6,2") == 0
    out = capsys.readouterr().out
    assert [line.split("|")[1:3] for line in out.splitlines() if line.startswith("| ") and " T " not in line and ":-" not in line] == [
        [f" {name} ", f" {t} "] for name in SYSTEMS for t in ("0.6", "2")
    ]
    assert json.loads((gone / "scores.json").read_text()) == kept
    after = {p: p.stat().st_mtime_ns for p in runs[0].glob("*/*/*")}
    assert {p.parent for p, at in after.items() if before.get(p) != at} == {gone, *(of(runs[0], 2.0, name) for name in SYSTEMS)}


def test_compare_reads_methods_at_equal_entropy(runs, tmp_path, capsys) -> None:
    assert command("compare", *runs, "--output", tmp_path / "out") == 0
    assert "Every method at equal entropy" in " ".join(capsys.readouterr().out.split())
    rows = [r for r in read_jsonl(tmp_path / "out/compare.jsonl") if r["kind"] == "at_equal_entropy"]
    assert {r["baseline_temperature"] for r in rows} == {0.6, 1.0, 1.4}  # one run has another, which the other lacks
    assert {r["method"] for r in rows} == set(SYSTEMS)
    curves = {
        name: {t: {s: scores(run, t, name) for s, run in enumerate(runs)} for t in (0.6, 1.0, 1.4)} for name in ("sft_continued", "distilled")
    }
    level = mean_of(curves["sft_continued"], 1.0, "entropy")
    row = next(r for r in rows if r["method"] == "distilled" and r["baseline_temperature"] == 1.0)
    assert row["level"] == pytest.approx(level)
    one, base = (at_level(curves[name], "teacher_nll", level) for name in ("distilled", "sft_continued"))
    assert row["values"]["teacher_nll"]["mean"] == pytest.approx(pooled(one.values).mean)
    assert row["differences"]["teacher_nll"]["p_value"] == pytest.approx(compared(one.values, base.values).p_value)
    page = (tmp_path / "out/compare.md").read_text()
    assert "## At equal entropy" in page
    assert "figures/frontier.svg" in page
    assert (tmp_path / "out/figures/frontier.svg").exists()


def test_validation_prompts_are_for_choosing_and_not_compared(runs, tmp_path, capsys) -> None:
    recipe = runs[1].parent / "recipe.yaml"
    assert command("evaluate", recipe, "seed=1", f"output_dir={runs[1]}", "--temperatures", "0.5", "--split", "valid") == 0
    assert (of(runs[1], 0.5, "distilled", "valid") / "artefact.json").is_file()
    assert not of(runs[1], 0.5, "distilled").exists()
    assert command("compare", runs[1], "--output", tmp_path / "out") == 0
    rows = [r for r in read_jsonl(tmp_path / "out/compare.jsonl") if r["kind"] == "at_equal_entropy"]
    assert 0.5 not in {r["baseline_temperature"] for r in rows}


def test_before_training_the_command_says_what_to_run(tmp_path, tiny_teacher, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, tmp_path)))
    assert command("evaluate", recipe, "--temperatures", "0.5,1") == 2
    assert "`evaluate --temperatures` reads what `models` makes, which is not complete: `tdistill run RECIPE` first." in capsys.readouterr().err
    assert command("evaluate", recipe, "--split", "valid") == 2
    assert "--split says on which prompts --temperatures are measured: give both" in capsys.readouterr().err
    assert command("evaluate", recipe, "--temperatures", "warm") == 2
    assert "--temperatures takes numbers separated by commas, such as 0.5,0.7,1; got 'warm'." in capsys.readouterr().err
