"""What each p keeps, costs and hides: against plain sums over the vocabulary, and through the command line."""

import json
import math
import sys

import numpy as np
import oracles
import pytest
import torch

from tdistill.cli import main
from tdistill.evaluation import sparsity
from tdistill.recipe.schema import CandidateRule
from tdistill.report.sparsity_page import BUDGET_BYTES, recommended

VOCAB = 40


@pytest.fixture
def measured():
    """Two batches of random rows."""
    g = torch.Generator().manual_seed(3)
    batches = []
    for shape, lengths in (((2, 3), (3, 1)), ((1, 4), (4,))):
        logp = (3.0 * torch.randn(*shape, VOCAB, generator=g)).log_softmax(-1)
        batches.append((logp, torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(-1)))
    found = sparsity.sparsity_of(batches, VOCAB, rules=[CandidateRule(name="adaptive", value=0.05)])
    return found, torch.cat([logp[mask] for logp, mask in batches]).double()


def test_every_state_is_there_once_with_its_position(measured):
    found, states = measured
    assert found.position.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert len(found.entropy) == len(states) == 8


def test_sizes_masses_and_what_is_hidden_equal_plain_sums(measured):
    found, states = measured
    for p in sparsity.TOP_PS:
        for i, row in enumerate(states.tolist()):
            inside = oracles.top_p_set(row, p)
            tail = [math.exp(row[a]) for a in range(VOCAB) if a not in inside]
            rest = sum(tail)
            cut = {key: values[i] for key, values in found.cuts[f"p={p:g}"].items()}
            assert cut["size"] == len(inside)
            assert cut["mass"] == pytest.approx(1.0 - rest, abs=1e-6)
            assert cut["hidden"] == pytest.approx(-sum(x * math.log(x / rest) for x in tail), abs=1e-5)
    entropy = [-sum(math.exp(x) * x for x in row) for row in states.tolist()]
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)
    top = states.exp().sort(-1, descending=True).values.cumsum(-1).mean(0)
    for k, mass in found.top_k_mass.items():
        assert mass == pytest.approx(top[k - 1].item(), abs=1e-6)


def test_the_largest_p_that_fits_the_budget_is_recommended(measured):
    found, _ = measured
    assert recommended(found)[0] == 0.95
    found.cuts["p=0.95"]["size"][:] = BUDGET_BYTES
    p, reason = recommended(found)
    assert p == 0.9
    assert "The next, p = 0.95, goes above" in reason
    for cut in found.cuts.values():
        cut["size"][:] = BUDGET_BYTES
    assert recommended(found)[0] == 0.5
    assert "No p measured fits" in recommended(found)[1]


def test_the_command_writes_its_pages_and_recommends(tiny_recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tdistill", "sparsity", str(tiny_recipe)])
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        assert "Take p = " in capsys.readouterr().out
    (directory,) = (tiny_recipe.parent / "run" / "sparsity").iterdir()
    rows = [json.loads(line) for line in (directory / "sparsity.jsonl").read_text().splitlines()]
    assert [row["cut"] for row in rows[1:]][:4] == ["p=0.5", "p=0.8", "p=0.9", "p=0.95"]
    sizes = [row["size"] for row in rows[1:5]]
    assert sizes == sorted(sizes)
    assert (directory / "sparsity.html").read_text().count("<figure") == 3
    assert not list((tiny_recipe.parent / "run").glob("students"))
