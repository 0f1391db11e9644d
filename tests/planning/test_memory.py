"""Formulas give the numbers that follow from their equations."""

from dataclasses import replace

import pytest

from tdistill.planning import disk, head, memory
from tdistill.planning.head import Shape
from tdistill.planning.lengths import Lengths
from tdistill.planning.memory import Generation, Moment, Training
from tdistill.planning.sizes import ModelSize

SMALL = ModelSize(parameters=1000, trainable=1000, rows=50, width=8, layers=4, embedding=0, largest=400)
RUN = Training(
    student=SMALL,
    adam=8000,
    activations=700,
    head=900,
    head_gradient=1600,
    gradient_in_loss=0,
    logits=100,
    validation=300,
    accumulates=False,
    teacher=0,
    target=0,
    windows=0,
    data=0,
)


def total(moment: Moment) -> int:
    return sum(moment.on(gpu=False)[1].values())


def moments(run: Training) -> dict[str, int]:
    return {m.name: total(m) for m in memory.train_stage(run)}


def test_training_holds_weights_moments_activations_and_the_head():
    found = moments(RUN)
    assert found["the loss and its gradient"] == 4000 + 8000 + 700 + 900
    assert found["the head's gradient"] == 4000 + 8000 + 700 + 100 + 1600
    assert found["optimizer's step"] == 4000 + 8000 + 4000
    assert found["validation"] == 4000 + 8000 + 300


def test_gradients_of_earlier_micro_batches_are_there_during_the_loss():
    found = moments(replace(RUN, accumulates=True))
    before = moments(RUN)
    for name in ("the loss and its gradient", "the head's gradient"):
        assert found[name] == before[name] + 4000


def test_adapters_have_the_only_gradients_and_moments():
    run = replace(RUN, student=replace(SMALL, trainable=10), adam=80, head_gradient=0)
    assert moments(run)["optimizer's step"] == 4000 + 80 + 40


def test_shards_share_weights_gradients_and_moments_only():
    whole, half = memory.train_stage(RUN), memory.train_stage(RUN, shards=2)
    assert [total(a) - total(b) for a, b in zip(whole, half, strict=True)] == [6000, 6000, 8000, 6000]


def test_a_target_network_and_an_online_teacher_stay_in_memory():
    run = replace(RUN, target=4000, teacher=2000)
    assert moments(run)["validation"] == moments(RUN)["validation"] + 4000 + 2000


def test_a_head_that_takes_its_gradient_beside_the_loss_holds_it_there():
    assert moments(replace(RUN, gradient_in_loss=1600))["the loss and its gradient"] == moments(RUN)["the loss and its gradient"] + 1600


def test_the_key_value_cache_grows_with_batch_length_and_bytes():
    assert memory.key_values(100, 4, 50, "bfloat16", 4) == 2 * 4 * 50 * 100 * 5 // 4
    assert memory.key_values(100, 4, 50, "float32", 4) == 2 * memory.key_values(100, 4, 50, "bfloat16", 4)


def test_without_a_gpu_all_parts_are_in_the_machines_memory():
    moment = Moment("writing", {"head": 3, "teacher": 5}, {"head": 4})
    assert moment.on(gpu=True) == ({"head": 3, "teacher": 5}, {"head": 4})
    assert moment.on(gpu=False) == ({}, {"head": 7, "teacher": 5})


def test_a_pruned_start_needs_the_teacher_beside_it():
    by_name = {m.name: total(m) for m in memory.models_stage(replace(SMALL, parameters=5000), SMALL, pruned=True, from_gguf=False)}
    assert by_name == {"loading the teacher": 20_000, "pruning": 24_000, "comparing the saved start": 8000}


def test_scored_references_hold_logits_of_all_their_tokens():
    writing = Generation(SMALL, 100, "float32", 2, 10, 10, 50)
    found = memory.rollout_stage(writing, shard_tokens=0, candidates=1, scored=40)
    assert found[1].device["head"] == 3 * 4 * 40 * 50


@pytest.mark.parametrize(
    ("needs", "units"),
    [((), 2.2), (("max",), 4.4), (("log_z",), 4.4), (("log_z", "taken"), 5.4), (("dense",), 6.6), (("uniform", "taken"), 6.6)],
)
def test_the_full_head_takes_units_by_what_is_needed(needs, units):
    shape = Shape(10, 5, 1000, 8)
    assert head.full(shape, frozenset(needs)) == pytest.approx(units * 4 * 10 * 1000)
    assert head.full(replace(shape, bfloat16=True), frozenset(needs)) == pytest.approx((units + 1) * 4 * 10 * 1000)


def test_a_block_holds_whole_responses_where_the_loss_couples_their_steps():
    shape = Shape(tokens=60, longest=20, rows=100, width=8)
    assert head.block(shape, 50, "step", wide=False) == 4 * 50 * 100
    assert head.block(shape, 50, "response", wide=False) == 4 * 40 * 100
    assert head.block(shape, 5, "response", wide=False) == 4 * 20 * 100, "one response at least"
    assert head.block(shape, 1000, "response", wide=False) == shape.unit
    assert head.block(shape, 5, "batch", wide=True) == shape.unit


def test_the_chunked_head_grows_with_the_block_and_candidates_not_with_the_vocabulary():
    shape = Shape(tokens=60, longest=20, rows=100, width=8)
    assert head.chunked(shape, 1000, wide=False) == 2600 + 12 * 60 * 8
    assert head.chunked(shape, 1000, wide=True) == 4800 + 12 * 60 * 8
    assert head.candidates(shape, 500) == head.candidates(replace(shape, rows=10**6), 500) == 60 * 500 + 12 * 60 * 8
    assert head.watched(shape, 40) == 3 * 4 * 40 * 100, "the diagnostics of a logged step read all logits, a block at a time"
    assert head.sampled(shape, 500, 32, 40) - head.candidates(shape, 500) == int(2.6 * 4 * 40 * 32) + 8 * 32 * 8


def test_a_checkpoint_has_weights_moments_and_the_target_network():
    assert disk.checkpoint_bytes(SMALL, 1000, target=False) == 12_000
    assert disk.checkpoint_bytes(SMALL, 1000, target=True) == 16_000
    assert disk.checkpoint_bytes(replace(SMALL, trainable=10), 10, target=False) == 120


@pytest.mark.parametrize(("saves", "limit", "kept"), [(1, 2, 1), (5, 2, 3), (5, None, 5), (2, 2, 2)])
def test_the_newest_checkpoint_is_written_before_the_oldest_goes(saves, limit, kept):
    assert disk.checkpoints_kept(saves, limit) == kept


def test_a_cache_grows_with_tokens_and_candidates():
    lengths = Lengths(2, 5.0, 6, 2, 10.0, 12, 30.0, known=False)
    assert disk.cache_bytes(lengths) == int(20 * (21 + 3.62 * 30) + 600)
