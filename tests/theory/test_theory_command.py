"""``tdistill theory`` in miniature: what it writes, and that its rows say what its report says."""

import json
import sys
from html.parser import HTMLParser

import pytest
import torch

from tdistill.cli import main
from tdistill.theory.propositions import RULES, batches, bound_columns, check_instances, kappas, summarise
from tdistill.theory.sweeps import GAMMAS

SMALL = ["--instances", "128", "--mdps", "5", "--bias-mdps", "2", "--seeds", "2", "--steps", "2", "--horizon", "2", "--horizon", "3"]


def call(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["tdistill", "theory", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        main()
    streams = capsys.readouterr()
    return stop.value.code or 0, streams.out, " ".join(streams.err.split())


class Page(HTMLParser):
    """Headings, and every address that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.in_heading = False

    def handle_starttag(self, tag, attrs):
        self.in_heading = tag == "h2"
        self.loads += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("#", "data:"))]

    def handle_data(self, data):
        if self.in_heading:
            self.headings.append(data)
            self.in_heading = False


@pytest.mark.slow
def test_the_command_writes_a_report_its_figures_and_its_rows(tmp_path, monkeypatch, capsys):
    out = tmp_path / "theory"
    code, printed, errors = call(monkeypatch, capsys, out, *SMALL)
    assert code == 0, errors
    assert "adaptive" in printed
    assert "theory.html" in printed
    threads = torch.get_num_threads()
    rows = [json.loads(line) for line in (out / "theory.jsonl").read_text().splitlines()]
    assert {row["section"] for row in rows} == {"propositions", "cuts", "bandit", "bias", "compounding", "estimators"}
    assert all(row["provenance"]["seed"] == 0 and row["provenance"]["instances"] == 128 for row in rows)
    propositions = [row for row in rows if row["section"] == "propositions"]
    assert [row["rule"] for row in propositions] == list(RULES)
    assert all(row[f"violations_{k}"] == 0 for row in propositions for k in ("p1", "p1_measured", "p2", "p3", "p4"))
    assert {row["gamma"] for row in rows if row["section"] == "cuts"} == set(GAMMAS)
    page = Page()
    page.feed((out / "theory.html").read_text())
    assert len(page.headings) == 6
    assert page.loads == []
    markdown = (out / "theory.md").read_text()
    figures = sorted(p.name for p in (out / "figures").iterdir())
    assert figures == [f"{k}.svg" for k in ("bias", "compounding", "estimators", "gap", "kept", "looseness", "tightness")]
    assert all(f"(figures/{name})" in markdown for name in figures)
    assert "nan" not in markdown
    before = (out / "figures" / "compounding.svg").read_bytes()
    assert call(monkeypatch, capsys, out, *SMALL)[0] == 0  # an earlier report may be replaced, and the same seed gives the same
    assert (out / "figures" / "compounding.svg").read_bytes() == before
    assert torch.get_num_threads() == threads


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    code, _, errors = call(monkeypatch, capsys, tmp_path, *SMALL)
    assert code == 2
    assert "holds something else" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_violation_would_be_counted():
    mdp, p, cap = next(batches(torch.Generator().manual_seed(0), 256))
    columns = check_instances(torch.Generator().manual_seed(0), mdp, p, cap)
    assert summarise([columns])[0]["violations_p4"] == 0
    columns["top_p"]["excess_p4"][0] = 1e-3
    assert summarise([columns])[0]["violations_p4"] == 1


def test_a_bound_that_is_too_small_is_exceeded():
    from tdistill.mdp.tabular import restrict, soft_optimal_q, top_p_set

    mdp, p, _ = next(batches(torch.Generator().manual_seed(0), 12_800))
    q_star = soft_optimal_q(mdp, mdp.all_actions)
    r = restrict(mdp, q_star, top_p_set(q_star.softmax(-1), p.unsqueeze(-1)))
    columns = bound_columns(mdp, r, 0.1 * kappas(p, mdp.gamma))
    assert (columns["excess_p2"] > 1e-9).any()
    assert (columns["excess_p4"] > 1e-9).any()
