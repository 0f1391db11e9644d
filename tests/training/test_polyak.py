"""The Polyak average that TD objectives bootstrap from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tdistill.runtime.errors import ConfigError
from tdistill.training.target import TARGET_FILE, TargetNetwork


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_follows_by_its_recursion(tau: float) -> None:
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    target, want = TargetNetwork(student, tau), weights(student)
    for _ in range(4):
        with torch.no_grad():
            for p in student.parameters():
                p += torch.randn_like(p)
        target.follow(student)
        want = [(1 - tau) * old + tau * new for old, new in zip(want, weights(student), strict=True)]
    for got, expected in zip(weights(target.module), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert not any(p.requires_grad for p in target.module.parameters())


def test_the_copy_is_its_own_and_comes_back_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    target = TargetNetwork(student, 0.3)
    before = weights(target.module)
    with torch.no_grad():
        student.weight.add_(1.0)
    assert torch.equal(target.module.weight, before[0])
    target.follow(student)
    target.save(tmp_path)
    again = TargetNetwork(student, 0.3)
    again.load(tmp_path)
    assert torch.equal(again.module.weight, target.module.weight)
    (tmp_path / TARGET_FILE).unlink()
    with pytest.raises(ConfigError, match=TARGET_FILE):
        again.load(tmp_path)


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.5])
def test_refuses_a_rate_that_is_none(tau: float) -> None:
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        TargetNetwork(nn.Linear(1, 1), tau)
