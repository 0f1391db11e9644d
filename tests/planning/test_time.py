"""Operations and seconds follow from sizes, lengths and the machine's speeds."""

from dataclasses import replace

import pytest

from tdistill.planning.machines import Device, Machine
from tdistill.planning.memory import Generation
from tdistill.planning.sizes import ModelSize
from tdistill.planning.time import Step, forward_flops, scoring, training, writing

SIZE = ModelSize(parameters=10_000, trainable=10_000, rows=100, width=8, layers=2, embedding=800, largest=800)
FAST = Machine(Device("x", 1 << 30, {"float32": 1e9, "bfloat16": 2e9}, 1e9), None, None, measured=True)
STEP = Step(SIZE, "float32", texts=4, prompt=10, response=6, units=4.4, checkpointing=False)


def test_a_token_costs_two_operations_for_each_weight_that_multiplies_it():
    body = 10_000 - 800 - 100 * 8
    assert forward_flops(SIZE, read=3, scored=0, length=0) == 2 * body * 3
    assert forward_flops(SIZE, read=0, scored=5, length=0) == 2 * 800 * 5
    assert forward_flops(SIZE, read=1, scored=0, length=7) == 2 * (body + 2 * 8 * 7)


def test_training_costs_three_forward_passes_and_four_with_checkpointing():
    one = forward_flops(SIZE, 4 * 16, 4 * 6, 16)
    assert training(STEP, FAST).flops == 3 * one
    assert training(replace(STEP, checkpointing=True), FAST).flops == 4 * one
    assert training(replace(STEP, size=replace(SIZE, trainable=10)), FAST).flops == 2 * one, "frozen weights have no gradient"


def test_twice_the_speed_in_half_the_time_where_products_are_all():
    slow = replace(FAST, device=replace(FAST.device, flops={"float32": 1e6}, bandwidth=1e15))
    fast = replace(slow, device=replace(slow.device, flops={"float32": 2e6}))
    assert training(STEP, slow).seconds == pytest.approx(2 * training(STEP, fast).seconds)
    assert scoring(SIZE, "float32", 3, 5, 7, slow).seconds == pytest.approx(2 * scoring(SIZE, "float32", 3, 5, 7, fast).seconds)


def test_writing_reads_all_weights_for_every_token_of_a_batch():
    one = Generation(SIZE, 32, "float32", batch=4, prompt=10, response=6, rows=100)
    still = replace(FAST, device=replace(FAST.device, flops={"float32": 1e15}, bandwidth=1.0))
    a_batch = writing(one, 4, still)
    assert a_batch.tokens == 24
    assert a_batch.seconds > 6 * 4 * 9200
    assert writing(one, 8, still).seconds == pytest.approx(2 * a_batch.seconds)
    assert writing(replace(one, batch=8), 8, still).seconds < 2 * a_batch.seconds
