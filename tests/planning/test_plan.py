"""The command says what a recipe takes, what does not fit and what would, and writes nothing."""

import json
from dataclasses import replace

import places
import pytest
from conftest import command

from tdistill.planning.advice import advice
from tdistill.planning.facts import gather
from tdistill.planning.lengths import Expected
from tdistill.planning.machines import DEVICES, Machine
from tdistill.planning.plan import Misfit, misfits, plan_stages
from tdistill.planning.planner import changed, plan
from tdistill.planning.students import StudentPlan

STAGES = ["models", "rollout", "sft", "train sft_continued", "train distilled", "evaluate"]


@pytest.fixture
def facts(tiny_recipe):
    return gather(places.experiment(tiny_recipe), "h100", Expected())


def with_memory(facts, size: int):
    """The same on a device with so much memory."""
    return replace(facts, machine=Machine(DEVICES["h100"], size, None, measured=False))


def test_the_plan_shows_every_stage_and_writes_nothing(tiny_recipe, capsys):
    assert command("plan", tiny_recipe, "--device", "h100") == 0
    out = capsys.readouterr().out
    for name in STAGES:
        assert name in out
    assert "All stages fit." in out
    assert "12 tokens each, the most that the recipe allows" in " ".join(out.split())
    assert not (tiny_recipe.parent / "run").exists()


def test_no_stage_loads_a_weight(tiny_recipe, monkeypatch):
    monkeypatch.setattr("tdistill.models.load.load_whole", lambda *_, **__: pytest.fail("weights are loaded"))
    assert [stage.name for stage in plan(places.experiment(tiny_recipe), "a100").stages] == STAGES


def test_this_machine_is_measured_and_its_free_memory_counts(tiny_recipe, tmp_path):
    assert command("plan", tiny_recipe, "--json", tmp_path / "plan.json") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["machine"]["measured"]
    assert found["machine"]["flops"]["float32"] > 1e8
    assert found["unfit"] == []
    train = next(s for s in found["stages"] if s["stage"] == "train distilled")
    parts = {part for moment in train["moments"] for part in moment["memory"]}
    assert parts >= {"weights", "gradients", "optimizer", "activations", "head", "cache", "process"}
    assert train["seconds"] > 0
    assert train["disk_stays"] > 4 * found["models"]["student"]["parameters"]


def test_what_does_not_fit_has_status_1_and_a_setting_that_makes_it_fit(tiny_recipe, monkeypatch, capsys):
    big = ["train.head=full", "train.arguments.per_device_train_batch_size=4096", "rollout.max_completion_length=100"]
    assert command("plan", tiny_recipe, "--device", "h100", *big) == 0
    monkeypatch.setitem(DEVICES, "h100", replace(DEVICES["h100"], memory=1 << 30))
    capsys.readouterr()
    assert command("plan", tiny_recipe, "--device", "h100", *big) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "train distilled does not fit: it takes" in out
    assert "of GPU memory, and 1.0 GiB are free. This makes it fit: train." in out


def test_the_advice_fits_when_it_is_planned_again(tiny_recipe, facts):
    experiment = places.experiment(tiny_recipe, ["train.arguments.per_device_train_batch_size=64"])
    small = with_memory(facts, 9 << 20)
    (misfit,) = [m for m in misfits(plan_stages(experiment.recipe, small, experiment.root), small) if m.stage == "train distilled"]

    def again(overrides):
        return misfits(plan_stages(changed(experiment.recipe, overrides), small, experiment.root), small)

    found = advice(experiment.recipe, misfit, again)
    assert found
    left = misfits(plan_stages(places.experiment(tiny_recipe, found).recipe, small, experiment.root), small)
    assert "train distilled" not in [m.stage for m in left]


def test_settings_are_tried_together_where_none_is_enough_alone(tiny_recipe):
    recipe, full = places.experiment(tiny_recipe).recipe, Misfit("evaluate", "memory", 2, 1)
    both = ["evaluation.batch_size=1", "evaluation.dtype=bfloat16"]
    assert advice(recipe, full, lambda overrides: [] if overrides == both else [full]) == both
    assert advice(recipe, full, lambda _: [full]) is None


def test_a_full_disk_is_told(facts, tiny_recipe):
    experiment = places.experiment(tiny_recipe)
    tight = replace(facts, free_disk=1000, machine=replace(facts.machine, measured=True))
    assert {m.place for m in misfits(plan_stages(experiment.recipe, tight, experiment.root), tight)} == {"disk"}


def moved(recipe_file, facts, *overrides: str) -> dict[str, int]:
    """The bytes of each part at the largest moment of training."""
    experiment = places.experiment(recipe_file, overrides)
    stages = plan_stages(experiment.recipe, facts, experiment.root)
    return next(s for s in stages if s.name == "train distilled").moments[0].on(False)[1]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.arguments.gradient_accumulation_steps=2", "gradients"),
        ("train.arguments.per_device_train_batch_size=4", "activations"),
        ("train.objective={name: ls_iq, target_network: true}", "target network"),
        ("train.objective={name: reverse_kl, support: dense}", "teacher"),
        ("train.objective={name: reverse_kl, support: dense}", "head"),
        ("train.head=full", "head"),
        ("train.teacher_top_p=1.0", "teacher"),
        ("train.on_policy={lmbda: 0.5}", "teacher"),
    ],
)
def test_a_setting_that_costs_memory_shows_where(override, part, tiny_recipe, facts):
    before, after = moved(tiny_recipe, facts), moved(tiny_recipe, facts, override)
    assert after[part] > before.get(part, 0)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.arguments.activation_checkpointing=true", "activations"),
        ("train.peft={lora: {r: 2, target_modules: all-linear}}", "optimizer"),
        ("train.arguments.optim=sgd", "optimizer"),
    ],
)
def test_a_setting_that_saves_memory_shows_where(override, part, tiny_recipe, facts):
    before, after = moved(tiny_recipe, facts), moved(tiny_recipe, facts, override)
    assert after[part] < before[part]


@pytest.mark.parametrize(("head", "name"), [("auto", "chunked"), ("full", "full"), ("sampled", "sampled")])
def test_the_head_is_the_one_that_the_trainer_takes(head, name, tiny_recipe, facts):
    recipe = places.experiment(tiny_recipe, [f"train.head={head}"]).recipe
    assert StudentPlan(recipe, recipe.train.methods()["distilled"], facts, tiny_recipe.parent).head_name == name


def test_seeds_multiply_disk_and_time_but_not_memory(tiny_recipe, facts):
    def stage(*overrides: str):
        experiment = places.experiment(tiny_recipe, overrides)
        return next(s for s in plan_stages(experiment.recipe, facts, experiment.root) if s.name == "train distilled")

    one, three = stage(), stage("train.seeds=[1, 2, 3]")
    assert (three.stays, three.goes) == (3 * one.stays, one.goes)
    assert three.work.seconds == pytest.approx(3 * one.work.seconds)
    assert three.peak(True)[1] == one.peak(True)[1]


def test_the_steps_and_saves_are_those_of_the_trainer(tiny_recipe, facts):
    recipe = places.experiment(tiny_recipe, ["train.arguments.max_steps=-1", "train.arguments.num_train_epochs=3"]).recipe
    own = StudentPlan(recipe, recipe.train.methods()["distilled"], facts, tiny_recipe.parent)
    assert (own.steps, own.saves, own.validations) == (18, 9, 9)


def test_roll_outs_that_exist_are_counted(tiny_recipe):
    experiment = places.made(tiny_recipe, stages=("models", "rollout"))
    found = gather(experiment, "h100", Expected(response=1.0)).lengths["train"]
    assert found.known
    assert found.responses == 12
    assert 1 < found.mean_response <= 12
    stages = {s.name: s for s in plan(experiment, "h100").stages}
    assert stages["rollout"].complete
    assert not stages["evaluate"].complete


def test_what_the_user_knows_replaces_the_bounds(tiny_recipe):
    found = gather(places.experiment(tiny_recipe), "h100", Expected(response=5.0, candidates=7.0)).lengths["train"]
    assert (found.mean_response, found.candidates, found.longest_response) == (5.0, 7.0, 12)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["teacher.teacher_model_name_or_path=./nowhere"], "'teacher.teacher_model_name_or_path': No model at './nowhere'"),
        (["student={init: pretrained, student_model_name_or_path: ./nowhere}"], "'student.student_model_name_or_path': No model at"),
        (["student.num_hidden_layers=9"], "the teacher has 4 layers: ask for 1 to 4"),
        (["data.train=nowhere.jsonl"], "No prompt file at nowhere.jsonl"),
        (["train.head=candidates"], "head: candidates can't serve nll"),
        (["--device", "h10"], "--device 'h10' is not known. Did you mean 'h100'?"),
        (["train.peft={lora: {r: 2, target_modules: [nothing]}}"], "train.peft.lora does not fit the student"),
    ],
)
def test_errors_name_what_is_wrong(argv, message, tiny_recipe, capsys):
    assert command("plan", tiny_recipe, *argv) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert message in err
    assert "Traceback" not in err
