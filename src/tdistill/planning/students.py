"""Compute what the training of one student takes: memory at the largest moments, work, and what it leaves on the disk."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import TrainingArguments

from tdistill.models.head.blocks import block_tokens
from tdistill.models.head.contract import Head, check_head, name_for
from tdistill.models.head.full import WIDE
from tdistill.models.head.sampling import SAMPLES
from tdistill.objectives import BoundObjective, bind
from tdistill.planning import disk, head, memory
from tdistill.planning.activations import Activations, activations
from tdistill.planning.facts import Facts
from tdistill.planning.head import Shape
from tdistill.planning.memory import FLOAT32, Generation, Moment, Training
from tdistill.planning.sizes import ModelSize, size_of
from tdistill.planning.time import Step, Work, scoring, training, writing
from tdistill.recipe.schema import MethodConfig, Recipe
from tdistill.training.arguments import training_arguments
from tdistill.training.schedule import examples_per_step, total_steps

MOMENTS = {"adam": 8, "8bit": 2, "adafactor": 0, "sgd": 0}  # bytes a parameter of an optimizer's state, by a part of its name


@dataclass(frozen=True)
class StudentPlan:
    """Compute what the training of one student takes."""

    recipe: Recipe
    method: MethodConfig
    facts: Facts
    root: Path

    @cached_property
    def args(self) -> TrainingArguments:
        """Return the arguments as the trainer gets them."""
        return training_arguments(self.method.arguments, self.root, self.recipe.seed)

    @cached_property
    def objective(self) -> BoundObjective:
        """Return the objective."""
        return bind(self.method.objective)

    @cached_property
    def needs(self) -> frozenset[str]:
        """Return the objective's needs; with p = 1 every token is a candidate."""
        return self.objective.needs | (frozenset({"dense"}) if self.method.teacher_top_p == 1.0 else frozenset())

    @cached_property
    def size(self) -> ModelSize:
        """Return the numbers of the student, with its adapters and its value head."""
        own = size_of(self.facts.student.build(self.method.peft.lora if self.method.peft else None))
        extra = (own.width + 1 if {"value", "action_value"} & self.needs else 0) + (own.width**2 if "action_value" in self.needs else 0)
        return replace(own, parameters=own.parameters + extra, trainable=own.trainable + extra)

    @property
    def checkpointing(self) -> bool:
        """Return whether activations are computed again in the backward pass."""
        return bool(self.args.activation_checkpointing or self.args.gradient_checkpointing)

    @property
    def rows(self) -> int:
        """Return the rows of the student's head."""
        return self.size.rows

    @cached_property
    def steps(self) -> int:
        """Return the optimizer steps of the run."""
        return total_steps(self.args, self.facts.lengths["train"].responses)

    def tokens(self, texts: int) -> int:
        """Return N = B·T, padded slots included: the longest answer that the recipe allows."""
        return texts * self.facts.lengths["train"].longest_response

    def activations(self, texts: int, length: int) -> Activations:
        """Return what the body keeps for the backward pass."""
        lm = self.facts.student.build(self.method.peft.lora if self.method.peft else None)
        return activations(lm, texts, length, bfloat16=bool(self.args.bf16), checkpointing=self.checkpointing)

    @cached_property
    def body(self) -> Activations:
        """Return what the body keeps of a micro-batch."""
        train = self.facts.lengths["train"]
        return self.activations(self.args.train_batch_size, train.longest_prompt + train.longest_response - 1)

    @property
    def teacher_online(self) -> bool:
        """Return whether the teacher reads every batch."""
        return "dense" in self.needs or (self.method.lm is not None and self.method.lm.reads_teacher)

    def moments(self) -> list[Moment]:
        """Return the largest moments of training, and of the student's own roll-outs where it has some."""
        found = memory.train_stage(self._sizes())
        found = [replace(m, host=m.host | {"process": memory.process(self.facts.tokenizer)}) for m in found]
        if self.method.own_text is None:
            return found
        student, teacher = self._writing(), memory.weights(self.facts.teacher.size, self.recipe.teacher.dtype)
        parts = found[2].device | {"gradients": 0, "teacher": teacher, **student.parts()}
        parts["activations"] = memory.weights(self.facts.student.size, self.recipe.teacher.dtype)  # the copy that writes
        return [*found, Moment("the student's own answers", parts, found[0].host)]

    def shape(self, texts: int) -> Shape:
        """Return the shape of the logits of a number of texts."""
        longest = self.facts.lengths["train"].longest_response
        return Shape(self.tokens(texts), longest, self.rows, self.size.width, bool(self.args.bf16))

    def budget(self, columns: int) -> int:
        """Return the tokens of a block whose logits have ``columns`` columns."""
        return block_tokens(columns, torch.device("cuda" if self.facts.machine.device.gpu else "cpu"))

    @cached_property
    def head_name(self) -> str:
        """Return the head that a training step uses.

        Raises:
            ConfigError: the head that was asked for can't serve the objective.
        """
        config, every = self.method.head, self.method.teacher_top_p == 1.0
        check_head(config, self.objective.needs, self.objective.name, every)
        return name_for(Head(config.name), self.objective.needs, every, exact=False)

    def _head(self, texts: int) -> tuple[int, int]:
        """Return the bytes of logits and all that is made of them, and how many gradients of the head's weight are there at once."""
        shape, wide = self.shape(texts), bool(self.needs & WIDE)
        if self.head_name == "full":
            return head.full(shape, self.needs, self.teacher_online), 1
        if self.head_name == "chunked":
            one = head.block(shape, self.budget(self.rows), self.objective.scope, wide)
            return head.chunked(shape, one, wide, self.teacher_online), 1
        pairs = shape.tokens * self.facts.lengths["train"].candidates
        logged = head.watched(shape, self.budget(self.rows))
        if self.head_name == "candidates":
            return max(head.candidates(shape, pairs), logged), 2
        drawn = self.method.head.samples or SAMPLES
        return max(head.sampled(shape, pairs, drawn, self.budget(drawn)), logged), 2

    def _validation(self) -> int:
        """Return the bytes of logits in a validation, which measures both KLs and the entropy."""
        shape, wide = self.shape(self.args.eval_batch_size), bool(self.needs & WIDE)
        if self.head_name == "full":
            more = head.TEACHER + 2 if self.teacher_online else 0.0  # the teacher's log-probs, and a divergence of both
            return int((head.VALIDATION + more + (0.5 if shape.bfloat16 else 0.0)) * shape.unit)
        scope = self.objective.scope
        return head.chunked(shape, head.block(shape, self.budget(self.rows), scope, wide), wide, self.teacher_online)

    def _sizes(self) -> Training:
        size, texts, lengths = self.size, self.args.train_batch_size, self.facts.lengths
        teacher = self.teacher_online or self.method.own_text is not None
        trains_head = size.trainable >= self.facts.student.size.parameters
        held, gradients = self._head(texts)
        weight = self.shape(texts).weight if trains_head else 0
        return Training(
            student=size,
            adam=self._optimizer(),
            activations=self.body.kept,
            head=held,
            head_gradient=gradients * weight,
            gradient_in_loss=weight if self.head_name == "chunked" else 0,
            logits=(6 if self.args.bf16 else 4) * self.tokens(texts) * self.rows if self.head_name == "full" else 0,
            validation=self._validation(),
            accumulates=self.args.gradient_accumulation_steps > 1,
            teacher=memory.weights(self.facts.teacher.size, self.recipe.teacher.dtype) if teacher else 0,
            target=FLOAT32 * size.parameters if "target" in self.needs else 0,
            windows=self._windows(),
            data=sum(memory.cached(lengths[split].tokens, lengths[split].candidates, False) for split in ("train", "valid")),
        )

    def _optimizer(self) -> int:
        name = str(getattr(self.args.optim, "value", self.args.optim))
        each = next((MOMENTS[key] for key in ("8bit", "adafactor", "sgd", "adam") if key in name), MOMENTS["adam"])
        return each * self.size.trainable

    def _windows(self) -> int:
        """Return the bytes of the language-modelling term: activations and all logits of its windows."""
        lm = self.method.lm
        if lm is None:
            return 0
        texts = self.args.train_batch_size
        shape = Shape(texts * (lm.window - 1), lm.window - 1, self.rows, self.size.width, bool(self.args.bf16))
        kept = self.activations(texts, lm.window - 1).kept
        wide = lm.reads_teacher
        if self.head_name == "full":
            return kept + head.full(shape, frozenset({"taken", "dense"} if wide else {"taken"}), wide)
        return kept + head.chunked(shape, head.block(shape, self.budget(self.rows), "step", wide), wide, wide)

    def _writing(self) -> Generation:
        train, rollout = self.facts.lengths["train"], self.recipe.rollout
        dtype, batch = self.recipe.teacher.dtype, min(rollout.batch_size, train.responses)
        shape = (train.mean_prompt, train.mean_response, self.facts.vocabulary)
        return Generation(self.facts.student.size, self.facts.student_cache, dtype, batch, *shape)

    def work(self) -> Work:
        """Return the tokens, operations and seconds of the whole run, validations included."""
        train, valid, machine = self.facts.lengths["train"], self.facts.lengths["valid"], self.facts.machine
        dtype, examples = "bfloat16" if self.args.bf16 else "float32", examples_per_step(self.args)
        examples = min(examples, train.responses)
        units = head.units(self.needs, self.teacher_online)
        shape = (examples, train.mean_prompt, train.mean_response, units, self.checkpointing, self.args.gradient_accumulation_steps)
        step = training(Step(self.size, dtype, *shape), machine)
        if self.teacher_online:
            read = scoring(self.facts.teacher.size, self.recipe.teacher.dtype, examples, train.mean_prompt, train.mean_response, machine)
            step = step + replace(read, tokens=0)
        once = scoring(self.size, dtype, valid.responses, valid.mean_prompt, valid.mean_response, machine)
        found = step * self.steps + replace(once * (self.validations + 1), tokens=0)
        own = self.own_responses
        if not own:
            return found
        answers = writing(self._writing(), own, machine)
        scored = scoring(self.facts.teacher.size, self.recipe.teacher.dtype, own, train.mean_prompt, train.mean_response, machine)
        return found + replace(answers + scored, tokens=0)

    @property
    def validations(self) -> int:
        """Return how often the run is validated before its end."""
        if str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy)) == "no":
            return 0
        return self._times(self.args.eval_steps)

    @property
    def saves(self) -> int:
        """Return how many checkpoints the run writes."""
        strategy = str(getattr(self.args.save_strategy, "value", self.args.save_strategy))
        if strategy == "no":
            return 0
        return max(1, self._times(self.args.save_steps))

    def _times(self, every: float | None) -> int:
        if not every:
            return 1
        return self.steps // int(every) if every >= 1 else int(1 / every)

    @property
    def own_responses(self) -> float:
        """Return how many answers the student writes while it trains."""
        own = self.method.own_text
        return 0.0 if own is None else own.lmbda * self.steps * examples_per_step(self.args) / own.replay * own.best_of

    def disk(self) -> tuple[int, int]:
        """Return the bytes that stay, and those of checkpoints that go when the student is saved."""
        adapters = self.method.peft is not None and not self.method.peft.merge
        saved = self.size.trainable if adapters else self.size.parameters
        tokenizer = self.facts.tokenizer_bytes
        weights = self.size.trainable if self.method.peft else saved
        one = disk.checkpoint_bytes(self.size, weights, "target" in self.needs) + tokenizer
        limit = self.args.save_total_limit
        checkpoints = one * disk.checkpoints_kept(self.saves, limit)
        train, own = self.facts.lengths["train"], self.own_responses
        rounds = disk.cache_bytes(replace(train, responses=int(own))) if own else 0
        stays = disk.student_bytes(saved) + tokenizer + rounds
        kept = self.method.monitor.keep_checkpoints
        return (stays + checkpoints, 0) if kept else (stays, checkpoints)
