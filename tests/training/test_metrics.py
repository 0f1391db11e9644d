"""Metrics: exact quantiles in bounded memory, one process or several, and diagnostics at the steps that are logged."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from tdistill.training.metrics import MetricSums, quantile_of_counts


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(0, 60), min_size=1, max_size=80), q=st.floats(0.0, 1.0))
def test_the_quantile_of_counts_is_that_of_the_numbers(values: list[int], q: float) -> None:
    want = torch.tensor(values, dtype=torch.float64).quantile(q).item()
    assert quantile_of_counts(torch.bincount(torch.tensor(values)), q) == pytest.approx(want, abs=1e-9)


def test_the_quantile_of_nothing_is_nan() -> None:
    assert math.isnan(quantile_of_counts(torch.zeros(0, dtype=torch.long), 0.99))
    assert math.isnan(quantile_of_counts(torch.zeros(4, dtype=torch.long), 0.99))


def sizes(seed: int, shape: tuple[int, int], largest: int) -> torch.Tensor:
    return torch.randint(1, largest, shape, generator=torch.Generator().manual_seed(seed))


def test_candidate_counts_have_a_mean_and_a_p99_over_masked_and_defined_steps() -> None:
    sums, kept = MetricSums(), []
    for seed, largest in enumerate((5, 900, 60)):
        counts, mask = sizes(seed, (4, 50), largest).float(), sizes(seed + 9, (4, 50), 3) > 1
        counts[0, 0] = torch.nan
        sums.add({"candidates/count": counts}, mask)
        kept.append(counts[mask & ~counts.isnan()])
    whole = torch.cat(kept)
    read = sums.read()
    assert read == {
        "candidates/mean": pytest.approx(whole.mean().item(), rel=1e-6),
        "candidates/p99": pytest.approx(whole.quantile(0.99).item(), rel=1e-6),
    }
    assert sums.read() == {}, "it starts anew"


def test_memory_is_bounded_by_the_largest_number_and_2_to_the_24_steps_are_no_limit() -> None:
    """``torch.quantile`` refuses more than 2²⁴ numbers; and keeping them took memory without bound."""
    sums, counts, mask = MetricSums(), sizes(1, (1024, 2048), 400).float(), torch.ones(1024, 2048, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="too large"):
        counts.expand(9, 1024, 2048).reshape(-1).quantile(0.99)
    for _ in range(9):
        sums.add({"candidates/count": counts}, mask)
    held = [x for x in vars(sums).values() for x in x.values()]
    assert sum(x.numel() for x in held) <= 400 + 3
    assert sums.read()["candidates/p99"] == pytest.approx(counts.flatten().quantile(0.99).item(), abs=1.0)


def test_processes_with_counts_of_different_length_are_added_up() -> None:
    parts, whole = [MetricSums(), MetricSums()], MetricSums()
    for seed, (part, largest) in enumerate(zip(parts, (9, 700), strict=True)):
        metrics, mask = {"candidates/count": sizes(seed, (3, 40), largest).float()}, torch.ones(3, 40, dtype=torch.bool)
        part.add(metrics, mask)
        whole.add(metrics, mask)
    seen: list[torch.Tensor] = []
    parts[1].read(lambda x: (seen.append(x), x)[1])
    theirs = iter(seen)

    def reduce(x: torch.Tensor) -> torch.Tensor:
        other = next(theirs)
        width = max(len(x), len(other))
        return sum(pad(y, (0, 0) * (y.dim() - 1) + (0, width - len(y))) for y in (x, other))

    assert parts[0].read(reduce) == pytest.approx(whole.read())


def test_a_spread_and_a_mean_are_those_of_the_defined_steps() -> None:
    sums, x = MetricSums(), torch.tensor([[1.0, 2.0, torch.nan, 9.0]])
    sums.add({"td/reward": x, "entropy": x}, torch.tensor([[True, True, True, False]]))
    assert sums.read() == {"td/reward_mean": 1.5, "td/reward_std": 0.5, "entropy": 1.5}
