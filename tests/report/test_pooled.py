import pytest

from tdistill.report.pooled import MeasuredSystem, differences, pooled_system
from tdistill.statistics.pooling import compared, pooled

NLL = {17: {"p1": 1.0, "p2": 3.0}, 18: {"p1": 2.0, "p2": 3.5}}
START = {"p1": 2.5, "p2": 4.5}


def measured(name: str, scores: dict) -> MeasuredSystem:
    return MeasuredSystem(name, "what it is", 1000, 2, scores)


@pytest.fixture
def student() -> MeasuredSystem:
    return measured("distilled", {seed: {"teacher_nll": values, "rouge_l": {}} for seed, values in NLL.items()})


def test_a_system_is_pooled_over_its_seeds_and_prompts(student):
    system = pooled_system(student)
    assert (system.name, system.description, system.parameters, system.num_hidden_layers) == ("distilled", "what it is", 1000, 2)
    assert system.seeds == (17, 18)
    assert system.metrics == {"teacher_nll": pooled(NLL)}
    assert system.metrics["teacher_nll"].mean == pytest.approx(2.375)


def test_a_system_that_was_not_trained_has_no_seeds(student):
    assert pooled_system(measured("start", {None: {"teacher_nll": START}})).seeds == ()


def test_differences_are_those_of_the_pooled_scores_in_the_metrics_that_both_have(student):
    start, sft = measured("start", {None: {"teacher_nll": START, "distinct_2": START}}), measured("sft", {None: {"rouge_l": START}})
    (found,) = differences(student, [start, sft])
    assert (found.a, found.b, found.metric) == ("distilled", "start", "teacher_nll")
    assert found.value == compared(NLL, {None: START})
    assert found.value.difference.mean == pytest.approx(2.375 - 3.5)
    assert found.value.seeds == (2, 1)
