"""How batches and models come to the trainer: without padding of candidates, by length where that is asked, with the attention chosen."""

from pathlib import Path
from typing import Any

import pytest
import small_runs
import torch
from torch.utils.data import DataLoader

from tdistill.data.collate import RAGGED, DistillCollator
from tdistill.objectives import bind
from tdistill.training.arguments import training_arguments
from tdistill.training.fit import _student
from tdistill.training.inputs import FitInputs
from tdistill.training.schedule import ByLength
from tdistill.training.trainer import DistillTrainer

KL = bind("reverse_kl")


@pytest.fixture(scope="module")
def world(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> small_runs.World:
    return small_runs.World(tiny_teacher, tmp_path_factory.mktemp("world"), prompts=40)


def trainer_of(world: small_runs.World, directory: Path, padded: bool, **arguments: Any) -> DistillTrainer:
    given = {"max_steps": 4, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 2}
    args = training_arguments({**given, **small_runs.CONSTANT, **arguments}, directory, seed=0)
    collator = DistillCollator(padded=padded)
    return DistillTrainer(world.student(), args, KL, world.data, world.data, world.tokenizer, data_collator=collator)


def test_a_run_does_not_depend_on_where_candidates_are_padded(world: small_runs.World, tmp_path: Path) -> None:
    runs = [trainer_of(world, tmp_path, padded) for padded in (True, False)]
    for trainer in runs:
        trainer.train()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in runs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    assert runs[0].evaluate() == runs[1].evaluate()
    mine, theirs = (dict(t.model.named_parameters()) for t in runs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_worker_that_collates_ahead_changes_nothing(world: small_runs.World, tmp_path: Path) -> None:
    runs = [trainer_of(world, tmp_path, padded=False, dataloader_num_workers=workers) for workers in (0, 1)]
    for trainer in runs:
        trainer.train()
    mine, theirs = (dict(t.model.named_parameters()) for t in runs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_batches_travel_without_padding_and_arrive_with_it(world: small_runs.World, tmp_path: Path) -> None:
    trainer = trainer_of(world, tmp_path, padded=False)
    loader = trainer.get_train_dataloader()
    batch = next(iter(loader))
    assert batch.keys() >= RAGGED
    arrived = trainer._prepare_inputs(batch)
    assert arrived["candidate_ids"].shape == arrived["logp"].shape == arrived["legal"].shape
    assert int(arrived["legal"].sum()) == len(batch["ragged_ids"])


def test_recipes_train_on_batches_without_padding(world: small_runs.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    prepare = DistillTrainer._prepare_inputs

    def remember(self: DistillTrainer, inputs: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(inputs))
        return prepare(self, inputs)

    monkeypatch.setattr(DistillTrainer, "_prepare_inputs", remember)
    world.train(tmp_path / "run", arguments={"max_steps": 2})
    assert seen
    assert all(keys >= RAGGED for keys in seen)


def test_every_example_comes_once_an_epoch_and_in_another_order_in_the_next() -> None:
    lengths = torch.randint(5, 60, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    epoch = 0
    sampler = ByLength(lengths, 4, 7, lambda: epoch)
    first, again = list(sampler), list(sampler)
    epoch = 1
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first == again != second
    assert list(ByLength(lengths, 4, 8, lambda: epoch)) != second, "another seed"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loader_reads_examples_by_their_whole_length(accumulate: int, world: small_runs.World, tmp_path: Path) -> None:
    given = {"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": accumulate, "per_device_train_batch_size": 4}
    loader: DataLoader = trainer_of(world, tmp_path, padded=False, **given).get_train_dataloader()
    read = torch.cat([batch["row"] for batch in loader]).tolist()
    assert sorted(read) == list(range(len(world.data)))
    lengths, per_group = world.data.lengths(), 4 * accumulate * (40 // (4 * accumulate * 4))
    groups = [[lengths[i] for i in read[start : start + per_group]] for start in range(0, 40, per_group)]
    assert len(set(lengths)) > 5
    falling = [group[1:] == sorted(group[1:], reverse=True) for group in groups]  # the longest of all comes first
    assert all(falling)


def test_grouping_leaves_half_of_the_padding_or_less() -> None:
    lengths = torch.randint(5, 60, (400,), generator=torch.Generator().manual_seed(1)).tolist()

    def padding(order: list[int]) -> int:
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 400, 8)]
        return sum(8 * max(batch) - sum(batch) for batch in batches)

    assert padding(list(ByLength(lengths, 8, 7, lambda: 0))) < 0.5 * padding(list(range(400)))


def test_training_computes_the_students_attention_as_it_is_told(world: small_runs.World) -> None:
    inputs = FitInputs(world.start, world.data, world.data, world.tokenizer, len(world.tokenizer), attn_implementation="eager")
    assert _student(inputs, world.method(), KL).lm.config._attn_implementation == "eager"
