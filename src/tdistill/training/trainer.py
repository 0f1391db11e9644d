"""Define ``DistillTrainer``: a ``transformers.Trainer`` that knows batches and ``Steps``, and no algorithm."""

import hashlib
import json
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedModel, TrainerControl, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import IntervalStrategy

from tdistill.data.collate import IGNORED_LABEL, DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.data.mixed import MixedDataset
from tdistill.models.head.blocks import Block
from tdistill.models.head.contract import check_head
from tdistill.models.head.full import WIDE
from tdistill.models.head.run import HeadCall
from tdistill.models.student import StudentModel
from tdistill.models.vocabulary import vocabulary_size
from tdistill.objectives import BoundObjective, bind
from tdistill.recipe.schema import HeadConfig, LmConfig, ValueConfig
from tdistill.runtime.errors import ConfigError, NonFiniteLossError
from tdistill.training.batch import BatchSteps, OnlineTeacher, objective_loss, student_inputs
from tdistill.training.checks import (
    check_constructor,
    check_student,
    check_teacher,
    check_training_data,
    own_arguments,
    reads_every_logit,
    reads_every_token,
)
from tdistill.training.finite import non_finite_metric
from tdistill.training.language_modelling import window_loss
from tdistill.training.metrics import DIAGNOSTICS, MetricSums, diagnostics
from tdistill.training.resumable import ResumableTrainer
from tdistill.training.schedule import InOrder, steps_per_epoch
from tdistill.training.sharding import check_devices, check_sharding, check_whole_weights, keep_float32, shard_value_head
from tdistill.training.target import FollowStudent, TargetNetwork
from tdistill.training.value import clear_gradients, own_rate

# Objectives that every validation measures, whatever the run trains on: comparable across runs.
VALIDATION = {"nll": bind("nll"), "forward_kl": bind("forward_kl"), "reverse_kl": bind("reverse_kl")}


class DistillTrainer(ResumableTrainer):
    """Train a student on roll-outs by any objective.

    Args:
        model: a causal LM, or a ``StudentModel`` around one. ``trainer.model`` is a ``StudentModel`` in both cases.
        args: ``TrainingArguments``. The trainer works on a copy. A non-finite loss, gradient, metric or weight stops the run.
        objective: from ``bind``.
        train_dataset: a ``RolloutDataset``; or a ``MixedDataset``, which is read in order, by one process without workers, and says
            how many steps the run has, whatever ``num_train_epochs`` is.
        eval_dataset: a ``RolloutDataset``.
        processing_class: the tokenizer; saved with checkpoints.
        teacher_model: needed if the objective or a data set with p = 1 reads every logit of the teacher. It runs without gradient.
        lm: the language-modelling term, on the windows that a ``MixedDataset`` with a corpus adds.
        value: how the value head learns, and how fast a target network follows.
        head: how the student's logits are computed; None: by the cheapest exact way.
        vocab_size: V of the roll-outs; by default from ``models.vocabulary.vocabulary_size``.

    Raises:
        ConfigError: the objective needs what model, teacher or data do not offer, or something was asked for that has no effect.
        ModelError: a weight of the student is not finite.
    """

    # The loss is divided by the global count of valid steps here, so the Trainer must not divide it again.
    loss_is_scaled_for_ga = True
    _last_batch: dict[str, Any] | None = None

    def __init__(
        self,
        model: PreTrainedModel | StudentModel,
        args: TrainingArguments,
        objective: BoundObjective,
        train_dataset: RolloutDataset | MixedDataset | None = None,
        eval_dataset: RolloutDataset | None = None,
        processing_class: Any = None,
        *,
        teacher_model: PreTrainedModel | None = None,
        value: ValueConfig | None = None,
        lm: LmConfig | None = None,
        head: HeadConfig | None = None,
        vocab_size: int | None = None,
        **kwargs: Any,
    ):
        check_constructor(kwargs)
        args = own_arguments(args, train_dataset)
        self.objective, self.value, self.lm = objective, value or ValueConfig(), lm
        student = model if isinstance(model, StudentModel) else StudentModel.for_needs(model, objective.needs, self.value.detach)
        check_student(student, objective, value)
        self._online = reads_every_logit(objective, train_dataset, eval_dataset)
        check_training_data(objective, lm, train_dataset)
        check_teacher(objective, self._online or (lm is not None and lm.reads_teacher), teacher_model)
        models = {name: lm for name, lm in (("student", student.lm), ("teacher", teacher_model)) if lm is not None}
        self.vocab_size = vocab_size or vocabulary_size(processing_class, models)
        self._use_head(student, head or HeadConfig(), reads_every_token(train_dataset, eval_dataset))
        kwargs.setdefault("data_collator", DistillCollator())
        super().__init__(student, args, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=processing_class, **kwargs)
        self._set_up(student, teacher_model)

    def _use_head(self, student: StudentModel, head: HeadConfig, every_token: bool) -> None:
        """Choose how the student's logits are computed. DeepSpeed ZeRO-3 shows a weight to its own module alone, so there it is ``full``."""
        check_head(head, self.objective.needs, self.objective.name, every_token)
        if is_deepspeed_zero3_enabled():
            if head.name not in ("auto", "full"):
                raise ConfigError(f"head: {head.name} reads the weight of the student's head, which DeepSpeed ZeRO-3 shards: use head: full.")
            head = HeadConfig(name="full")
        student.use_head(head)

    def _set_up(self, student: StudentModel, teacher: PreTrainedModel | None) -> None:
        """Check how processes share the student, and place the networks beside it."""
        check_devices(self.args)
        check_sharding(self.accelerator, student)
        if self.is_fsdp_enabled:
            keep_float32(self.accelerator.state.fsdp_plugin)
        if self.value.warmup_steps and self.is_deepspeed_enabled:
            raise ConfigError("value.warmup_steps needs gradients that DeepSpeed keeps to itself: set it to 0, or use DDP or FSDP.")
        # Makes the Trainer count the labels over all micro-batches and processes of a step.
        self.model_accepts_loss_kwargs = True
        self._metrics = MetricSums()
        self._head_groups: list[dict[str, Any]] = []  # of the optimizer, while accelerate shards the student
        self.target = self._make_target(self.value.target_tau) if "target" in self.objective.needs else None
        self.teacher_model = teacher.to(self.args.device).requires_grad_(False).eval() if teacher is not None else None
        self._teacher = None if self.teacher_model is None else OnlineTeacher(self.teacher_model, self.vocab_size)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        data = train_dataset if train_dataset is not None else self.train_dataset
        if not isinstance(data, MixedDataset):
            return super()._get_train_sampler(data)
        per_epoch = steps_per_epoch(self.args, len(data.expert))
        return InOrder(per_epoch * data.batch_size, len(data), lambda: self.state.global_step // per_epoch)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the loader of all validation examples, ``dataloader_drop_last`` or not."""
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop

    def _make_target(self, tau: float) -> TargetNetwork:
        check_whole_weights(self.accelerator, "target_network=True", "use DDP or one process")
        target = TargetNetwork(self.model, tau)
        self.add_callback(FollowStudent(target, lambda: self.accelerator.unwrap_model(self.model)))
        return target

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, with the value head's own learning rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        head = self.accelerator.unwrap_model(model if model is not None else self.model).value_head
        if is_new and head is not None and self.value.learning_rate is not None:
            own_rate(optimizer, list(head.parameters()), self.value.learning_rate)
        if is_new and head is not None and self.is_fsdp_enabled:
            self._head_groups = shard_value_head(head, self.accelerator, optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Create the learning rate's schedule. By now accelerate has sharded the student, so the value head joins its optimizer."""
        while self._head_groups:
            self.optimizer.add_param_group(self._head_groups.pop(0))
        return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_input(self, data: Any) -> Any:
        # Under DeepSpeed the Trainer casts floats to the compute type. Ours are the teacher's log-probs, which no module reads.
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return Σ loss_t·mask_t ÷ the count of valid steps of the whole optimizer step, and the language-modelling term.

        DDP averages gradients over processes. So where the count is over all of them (``average_tokens_across_devices``), this part is
        multiplied by their number; where it is each process's own, the processes' means are averaged as they are.
        """
        count = (inputs["labels"] != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
        out = self._pass(model, inputs, count, DIAGNOSTICS if self._logs_this_step() else frozenset())
        loss = out["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self._record(inputs, out["metrics"])
        if self.lm is not None:
            loss = loss + self._lm_loss(model, inputs["window_ids"])
        return (loss, out["metrics"]) if return_outputs else loss

    def _pass(self, model: nn.Module, inputs: dict[str, Tensor], count: Tensor | int, watched: frozenset[str]) -> dict[str, Any]:
        """Return ``loss``, Σ loss_t·mask_t ÷ ``count``, and ``metrics`` at each step, with the diagnostics if they are watched."""
        loss_of = objective_loss(self.objective, self._steps_of(inputs), count, bool(watched))
        call = HeadCall(loss_of, self.objective.scope, watched, self._seed(inputs))
        return model(**self._given(inputs), needs=self.objective.needs, call=call)

    def _lm_loss(self, model: nn.Module, windows: Tensor) -> Tensor:
        """Return this micro-batch's part of the mean over the windows that this process reads in the optimizer step.

        All windows are equally long and all processes read equally many, so the average that DDP takes over processes is the mean of all.
        """
        assert self.lm is not None
        total, parts = window_loss(model, windows, self.lm, self._teacher, self.vocab_size)
        everywhere = torch.ones_like(windows[:, 1:], dtype=torch.bool)
        self._metrics.add({f"lm/{name}": part for name, part in parts.items()}, everywhere)
        windows_per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return self.lm.lm_coef * total / (everywhere.shape[1] * windows_per_step)

    def _logs_this_step(self) -> bool:
        """Return whether the Trainer logs after the optimizer step of this micro-batch: only then diagnostics are computed."""
        step, strategy = self.state.global_step + 1, self.args.logging_strategy
        if step == 1 and self.args.logging_first_step:
            return True
        if strategy == IntervalStrategy.STEPS:
            return step % self.state.logging_steps == 0  # args.logging_steps may be a share of the run
        if strategy == IntervalStrategy.EPOCH and self.callback_handler.train_dataloader is not None:
            batches = len(self.callback_handler.train_dataloader)
            return step == self.state.max_steps or step % math.ceil(batches / self.args.gradient_accumulation_steps) == 0
        return False

    def _given(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Return what the student's forward reads of a batch."""
        return {**student_inputs(inputs), "vocab_size": self.vocab_size}

    def _steps_of(self, inputs: dict[str, Tensor], needs: frozenset[str] | None = None) -> BatchSteps:
        """Return what builds the steps of a batch: it has read the online teacher and the target network."""
        teacher = target = None
        if self._online:
            assert self._teacher is not None
            teacher = self._teacher.read(inputs["input_ids"], inputs["attention_mask"], inputs["taken_ids"].shape[1])
        if self.target is not None:
            with self.accelerator.autocast():
                target = self.target(**self._given(inputs), needs=self.objective.needs - WIDE)
        return BatchSteps(inputs, self.vocab_size, needs or self.objective.needs, teacher, target)

    def _seed(self, inputs: dict[str, Tensor]) -> int:
        """Return a seed for what the head draws: another one for every batch, and the same in a run that was resumed."""
        made_of = [self.args.seed, self.state.global_step, inputs["row"].tolist()]
        return int.from_bytes(hashlib.sha256(json.dumps(made_of).encode()).digest()[:6], "big")

    @torch.no_grad()
    def _record(self, inputs: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
        mask = inputs["labels"] != IGNORED_LABEL
        self._metrics.add(metrics, mask)
        lengths = mask.sum(-1, keepdim=True)
        self._metrics.add({"completions/mean_length": lengths.float()}, lengths > 0)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run one micro-batch, forward and backward.

        Raises:
            NonFiniteLossError: before the optimizer touches a weight.
        """
        self._last_batch = inputs
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._fail("loss", loss.item(), inputs)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._hold_language_model(model)
        return super()._clip_grad_norm(model)

    def _hold_language_model(self, model: nn.Module) -> None:
        """Remove the language model's gradient in the first ``value.warmup_steps`` steps, before the norm is measured and clipped."""
        student = self.accelerator.unwrap_model(model)
        if student.value_head is not None and self.state.global_step < self.value.warmup_steps:
            clear_gradients(student.lm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # max_grad_norm is 0, so nothing was clipped
            self._hold_language_model(model)
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            self._fail("gradient norm", float(norm), None)
        return norm

    def _fail(self, what: str, value: float, inputs: dict[str, Any] | None) -> None:
        step, batch = self.state.global_step + 1, ""
        if inputs is not None and self.train_dataset is not None:
            batch = " on prompts " + ", ".join(self.train_dataset.prompt_id(int(i)) for i in inputs["row"])
        raise NonFiniteLossError(
            f"The {what} became {value} at step {step}{batch}. No weight was changed by it. {self._kept()} Lower the learning rate, or look "
            "at alpha, q_min and the anchor of the objective."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with the objective's metrics since the last training log."""
        if "loss" in logs and self._metrics.keys():
            logs |= self._metrics.read(self._over_processes if self.accelerator.num_processes > 1 else None)
        super().log(logs, start_time)

    def _over_processes(self, sums: Tensor) -> Tensor:
        """Return the sum over processes of tensors that may differ in length along the first axis."""
        return self.accelerator.reduce(self.accelerator.pad_across_processes(sums, dim=0), "sum")

    @torch.random.fork_rng(devices=[])  # a loader draws a seed: a validation must not move the dropout of the steps after it
    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Return the mean per valid step of the objective's own loss, NLL, both KLs on candidates + tail, and the student's mass on A_p."""
        loader = self.get_eval_dataloader(eval_dataset)
        needs = self.objective.needs.union(*(o.needs for o in VALIDATION.values()))
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        totals: dict[str, Tensor] = {}
        for inputs in loader:
            inputs = self._prepare_inputs(inputs)
            values = self._measured(model, inputs, needs)
            mask = inputs["labels"] != IGNORED_LABEL
            table = torch.stack([torch.where(mask, v, 0.0).sum(-1).double() for v in values.values()], -1)
            table = torch.cat([table, mask.sum(-1, keepdim=True)], -1)
            gathered = self.accelerator.gather_for_metrics(table).sum(0)
            for name, total in zip([*values, "steps"], gathered, strict=True):
                totals[name] = totals.get(name, torch.zeros_like(total)) + total
        model.train(was_training)
        count = totals.pop("steps")
        metrics = {f"{metric_key_prefix}_{k}": (v / count).item() for k, v in totals.items()}
        if wrong := non_finite_metric(metrics):
            raise NonFiniteLossError(
                f"{wrong} of {int(count)} validation steps is {metrics[wrong]} after step {self.state.global_step}: this student is not one to "
                f"save. {self._kept()} Lower the learning rate, or look at the objective."
            )
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self, model: nn.Module, inputs: dict[str, Tensor], needs: frozenset[str]) -> dict[str, Tensor]:
        """Return what a validation measures at each step of a batch [B, T]."""
        steps_of = self._steps_of(inputs, needs)

        def measure(block: Block, fields: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            steps = steps_of(block, fields)
            values = {name: objective(steps).loss_t for name, objective in VALIDATION.items()}
            seen = diagnostics(steps, exact)
            values |= {"loss": self.objective(steps).loss_t, "student_mass": seen["student_mass"], "entropy": seen["entropy"]}
            return values["loss"].sum(), values

        with self.compute_loss_context_manager():
            call = HeadCall(measure, self.objective.scope, DIAGNOSTICS, exact=True)
            return model(**self._given(inputs), needs=needs, call=call)["metrics"]

    @torch.no_grad()
    def _check_student(self) -> None:
        """Check the weights, and the loss that they give on the last batch: after the last step nothing else reads either."""
        super()._check_student()
        if self._last_batch is None:
            return
        model = self._wrap_model(self.model, training=False)
        was_training = model.training
        model.eval()
        with self.compute_loss_context_manager():
            loss = self._pass(model, self._prepare_inputs(self._last_batch), 1, frozenset())["loss"]
        model.train(was_training)
        if not torch.isfinite(loss):
            self._refuse_to_save(f"The loss ({loss.item()})")
