"""What the trainer divides by, measures and clips: by arithmetic."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from tdistill.data.collate import DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.student import StudentModel
from tdistill.models.tokenizer import load_tokenizer
from tdistill.objectives import BoundObjective, ObjectiveOutput, bind
from tdistill.recipe.schema import LmConfig, RolloutConfig, ValueConfig
from tdistill.teachers.rollouts import Teacher, roll_out
from tdistill.training.batch import OnlineTeacher, build_steps, student_inputs
from tdistill.training.fit import training_arguments
from tdistill.training.language_modelling import window_loss
from tdistill.training.trainer import DistillTrainer

VOCAB = 257


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def cache(tiny_teacher: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rollouts")
    conversations = [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}" + "?" * (i % 5)},)) for i in range(16)]
    prompts, _ = tokenize_prompts(conversations, tokenizer, 128, "refuse")
    rollout = RolloutConfig(teacher_top_p=0.9, max_completion_length=12, seed=1, batch_size=8, shard_batches=1)
    teacher = Teacher(lambda: load_model(find_model(str(tiny_teacher))), tokenizer, [tokenizer.eos_token_id], {"teacher": "tiny"})
    roll_out(teacher, prompts, directory, rollout)
    return directory


@pytest.fixture
def make(tiny_teacher: Path, tokenizer: Any, cache: Path, tmp_path: Path) -> Callable[..., DistillTrainer]:
    """A trainer of two layers of the teacher on the cache."""

    def _make(objective: BoundObjective, value: ValueConfig | None = None, **arguments: Any) -> Any:
        given = {"max_steps": 1, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", **arguments}
        student = StudentModel.for_needs(prune_layers(load_model(find_model(str(tiny_teacher))), [0, 3]).train(), objective.needs)
        data = RolloutDataset(cache)
        args = training_arguments(given, tmp_path / "out", seed=4)
        return DistillTrainer(student, args, objective, data, data, tokenizer, value=value)

    return _make


def training_logs(trainer: DistillTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_the_logged_loss_is_the_sum_over_all_steps_by_their_count(make: Any, cache: Path) -> None:
    trainer = make(bind("nll"), per_device_train_batch_size=16)
    model, data = trainer.model, RolloutDataset(cache)
    costs = []
    for i in range(16):
        prompt, response = data[i]["input_ids"], data[i]["response_ids"]
        ids = torch.from_numpy(prompt).tolist() + torch.from_numpy(response).tolist()
        with torch.no_grad():
            logp = model.lm.double()(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1, :VOCAB].log_softmax(-1)
        costs += [-logp[t, token].item() for t, token in enumerate(response.tolist())]
    model.lm.float()
    trainer.train()
    assert training_logs(trainer)[0]["loss"] == pytest.approx(sum(costs) / len(costs), rel=1e-5)


# --- diagnostics -----------------------------------------------------------------------------------------------------


class StepsWithDiagnostics(TrainerCallback):
    """At which steps the metrics over the vocabulary were taken."""

    def __init__(self, trainer: Any):
        self._metrics, self._keys, self.steps = trainer._metrics, 0, []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        table = self._metrics._sums.get("student_mass")
        count = 0 if table is None else int(table[2])
        if count > self._keys:
            self.steps.append(state.global_step)
        self._keys = count

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._keys = 0


@pytest.mark.parametrize(
    ("arguments", "logged", "diagnosed"),
    [
        ({"logging_steps": 2, "max_steps": 6}, [2, 4, 6], [2, 4, 6]),
        ({"logging_steps": 0.5, "max_steps": 6}, [3, 6], [3, 6]),
        ({"logging_steps": 0.1, "max_steps": 20}, list(range(2, 21, 2)), list(range(2, 21, 2))),
        ({"logging_steps": 4, "max_steps": 6, "logging_first_step": True}, [1, 4], [1, 4]),
        ({"logging_strategy": "no", "max_steps": 4}, [], []),
        ({"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}, [4, 8], [4, 8]),
        ({"logging_strategy": "epoch", "max_steps": 6}, [4, 6], [4, 6]),
        ({"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3}, [2, 4], [2, 4]),
    ],
    ids=str,
)
def test_diagnostics_are_taken_at_the_steps_that_are_logged(arguments: Any, logged: list[int], diagnosed: list[int], make: Any) -> None:
    trainer = make(bind("nll"), per_device_train_batch_size=4, **arguments)
    watch = StepsWithDiagnostics(trainer)
    trainer.callback_handler.callbacks.insert(0, watch)
    trainer.train()
    logs = training_logs(trainer)
    assert [entry["step"] for entry in logs] == logged
    assert watch.steps == diagnosed
    assert all({"student_mass", "entropy", "overlap_ratio", "candidates/p99", "teacher_mass"} <= entry.keys() for entry in logs)


def test_the_mean_length_is_over_responses_however_the_batch_is_cut(make: Any, cache: Path) -> None:
    data = RolloutDataset(cache)
    want = sum(len(data[i]["response_ids"]) for i in range(16)) / 16
    for size, accumulation in ((16, 1), (5, 4)):
        trainer = make(bind("nll"), per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        trainer.train()
        assert training_logs(trainer)[0]["completions/mean_length"] == pytest.approx(want)


# --- autocast --------------------------------------------------------------------------------------------------------


def test_values_and_losses_are_float32_in_a_bfloat16_run(make: Any) -> None:
    """Through the Trainer and accelerate: the objective's input and the target network's values, against float64 of their own hidden states."""
    seen: dict[str, Any] = {}
    bound = bind("csil", target_network=True)

    def call(steps: Any) -> ObjectiveOutput:
        seen["steps"] = steps
        return bound(steps)

    # scope: the objective is called with the whole batch, in its own order
    trainer = make(replace(bound, call=call, scope="batch"), bf16=True, per_device_train_batch_size=4)
    heads = {"student": trainer.model.value_head, "target": trainer.target.module.value_head}
    for name, head in heads.items():
        torch.nn.init.normal_(head.state.weight, generator=torch.Generator().manual_seed(3))
        torch.nn.init.constant_(head.state.bias, 100.0)
        head.register_forward_hook(
            lambda head, args, out, name=name: seen.update({name: (args[0].detach(), head.state.weight.detach().clone())})
        )
    trainer.train()
    assert seen["student"][0].dtype == torch.bfloat16 or trainer.model.lm.dtype == torch.float32
    for name, steps in (("student", seen["steps"]), ("target", seen["steps"].target)):
        hidden, weight = seen[name]
        truth = (hidden.double() * weight[0].double()).sum(-1) + 100.0
        assert steps.value_t.dtype == steps.q_t.dtype == torch.float32
        error = (steps.value_t.detach().double() - truth)[steps.mask_t].abs().max()
        assert error < 3e-5, f"{name}: {error}; a value near 100 in bfloat16 is off by .25"


# --- the head start of the value head --------------------------------------------------------------------------------


def head_after(make: Any, freeze: bool, **arguments: Any) -> tuple[list[torch.Tensor], list[float]]:
    settings = ValueConfig() if freeze else ValueConfig(warmup_steps=2)
    trainer = make(bind("actor_critic"), settings, max_steps=2, learning_rate=1e-2, lr_scheduler_type="constant", **arguments)
    start = [p.clone() for p in trainer.model.lm.parameters()]
    if freeze:
        trainer.model.lm.requires_grad_(False)
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(start, trainer.model.lm.parameters(), strict=True))
    return [p.detach().clone() for p in trainer.model.value_head.parameters()], [entry["grad_norm"] for entry in training_logs(trainer)]


@pytest.mark.parametrize("clip", [1e-2, 0.0], ids=["clipped", "not clipped"])
def test_a_head_start_steps_as_if_the_language_model_had_no_gradient(clip: float, make: Any) -> None:
    """The norm that is clipped and logged is the value head's alone. SGD, since Adam would hide a factor."""
    arguments = {"max_grad_norm": clip, "optim": "sgd", "per_device_train_batch_size": 8}
    warm, warm_norms = head_after(make, False, **arguments)
    frozen, frozen_norms = head_after(make, True, **arguments)
    assert warm_norms == pytest.approx(frozen_norms, rel=1e-5)
    for a, b in zip(warm, frozen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-5)
    assert warm[0].abs().max() > 1e-6


# --- the language-modelling term -------------------------------------------------------------------------------------


@pytest.mark.parametrize("average_tokens", [True, False])
@pytest.mark.parametrize("processes", [1, 4])
def test_the_parts_of_a_step_are_divided_so_that_the_mean_over_processes_is_right(
    average_tokens: bool, processes: int, make: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process's loss, averaged over processes as DDP averages gradients, is the mean over all windows, and over all steps if
    ``average_tokens_across_devices``, else the mean of the processes' means.
    """
    trainer = make(bind("nll"), average_tokens_across_devices=average_tokens, per_device_train_batch_size=2)
    trainer.lm = LmConfig(corpus="none", lm_coef=0.7)  # afterwards, since the windows of this test come with its batches
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: processes))
    data, model = RolloutDataset(cache), trainer.model.eval()
    windows = torch.randint(VOCAB, (2 * processes, 9), generator=torch.Generator().manual_seed(0))
    parts, sums, counts = [], [], []
    for rank in range(processes):
        batch = DistillCollator()([data[2 * rank], data[2 * rank + 1]])
        batch["window_ids"] = windows[2 * rank : 2 * rank + 2]
        parts.append(batch)
        fields = model(**student_inputs(batch), needs=trainer.objective.needs, vocab_size=VOCAB)
        steps = build_steps(batch, fields, VOCAB)
        sums.append(torch.where(steps.mask_t, trainer.objective(steps).loss_t, 0.0).sum().item())
        counts.append(int(steps.mask_t.sum()))
    assert len(set(counts)) > 1 or processes == 1, "equal counts would hide a mean of means"
    given = [sum(counts)] * processes if average_tokens else counts
    with torch.no_grad():
        losses = [trainer.compute_loss(model, b, num_items_in_batch=torch.tensor(n)).item() for b, n in zip(parts, given, strict=True)]
        ce = window_loss(model, windows, LmConfig(corpus="none"), None, VOCAB)[1]["cross_entropy"]
    own = sum(sums) / sum(counts) if average_tokens else sum(s / n for s, n in zip(sums, counts, strict=True)) / processes
    assert sum(losses) / processes == pytest.approx(own + 0.7 * ce.mean().item(), rel=1e-5)


def test_a_teacher_that_rules_a_token_out_leaves_the_divergence_finite(tiny_teacher: Path) -> None:
    """0·log 0 = 0: some models write the least float32 at tokens that may never come, such as those of images."""
    teacher = load_model(find_model(str(tiny_teacher)))
    student = StudentModel(prune_layers(teacher, [0, 3]))

    def rule_out(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([7, 9]), torch.finfo(torch.float32).min)

    teacher.lm_head.register_forward_hook(rule_out)
    windows = torch.randint(20, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    total, parts = window_loss(student, windows, LmConfig(corpus="none", kd_ratio=1.0), OnlineTeacher(teacher, VOCAB), VOCAB)
    total.backward()
    assert parts["kd"].isfinite().all()
    assert all(p.grad.isfinite().all() for p in student.lm.parameters() if p.grad is not None)
