"""Run the student's heads on one model and batch, and other libraries' losses in another environment, forward and backward."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from head_inputs import Size, bare_model, batch_of
from head_meter import largest_memory, timed
from torch import Tensor
from transformers import LlamaForCausalLM

from tdistill.models.head.contract import check_head
from tdistill.models.head.run import HeadCall
from tdistill.models.student import StudentModel
from tdistill.objectives import BoundObjective, bind
from tdistill.recipe.schema import HeadConfig
from tdistill.runtime.errors import ConfigError
from tdistill.training.batch import BatchSteps, OnlineTeacher, objective_loss, student_inputs

Key = tuple[str, str]  # a head or a library, and an objective
ANCHOR: Key = ("transformers", "nll")
HEADS = ("full", "chunked", "candidates", "sampled")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "nll": {"name": "nll"},
    "reverse_kl, tail": {"name": "reverse_kl"},
    "reverse_kl, proj": {"name": "reverse_kl", "support": "proj"},
    "reverse_kl, dense": {"name": "reverse_kl", "support": "dense"},
    "reverse_kl, uniform": {"name": "reverse_kl", "support": "uniform"},
    "jsd, tail": {"name": "jsd"},
    "jsd, dense": {"name": "jsd", "support": "dense"},
    "forward_kl, tail": {"name": "forward_kl"},
    "forward_kl, proj": {"name": "forward_kl", "support": "proj"},
    "iq_learn": {"name": "iq_learn"},
    "csil": {"name": "csil"},
    "actor_critic": {"name": "actor_critic"},
}


def keys(objectives: Sequence[str], heads: Sequence[str]) -> list[Key]:
    """Return which heads can serve which objectives."""
    return [(head, name) for name in objectives for head in heads if serves(head, bind(OBJECTIVES[name]))]


def serves(head: str, objective: BoundObjective) -> bool:
    """Tell whether a head answers what an objective needs."""
    try:
        check_head(HeadConfig(name=head), objective.needs, objective.name)
    except ConfigError:
        return False
    return True


class Own:
    """Run this library's heads, and transformers' cross-entropy, on one language model and batch."""

    def __init__(self, size: Size, device: str = "cpu"):
        self.device, self.vocab = device, size.vocab
        self.batch = {name: x.to(device) for name, x in batch_of(size).items()}
        self.lm = bare_model(size, 0).to(device)
        self._size = size

    @cached_property
    def teacher(self) -> LlamaForCausalLM:
        """Return the model that objectives over the whole vocabulary learn from."""
        return bare_model(self._size, 1).to(self.device)

    @cached_property
    def _online(self) -> OnlineTeacher:
        return OnlineTeacher(self.teacher, self.vocab)

    def run(self, key: Key, memory: bool) -> dict[str, float]:
        """Run once, forward and backward, and return its time or its memory. Gradients are made anew, and counted as memory."""
        loss = self._cross_entropy if key == ANCHOR else self._loss(*key)
        self.lm.zero_grad()
        values: list[float] = []

        def once() -> None:
            value = loss()
            value.backward()
            values.append(float(value.detach()))

        measured = largest_memory if memory else timed
        return measured(once, self.device) | {"loss": values[-1]}

    def _loss(self, head: str, name: str) -> Callable[[], Tensor]:
        objective = bind(OBJECTIVES[name])
        student = StudentModel.for_needs(self.lm, objective.needs).to(self.device)
        student.use_head(HeadConfig(name=head))
        online = self._online if "dense" in objective.needs else None  # built here, so that a run does not pay for it
        return partial(self._objective, student, objective, online)

    def _cross_entropy(self) -> Tensor:
        logits = self.lm(input_ids=self.batch["input_ids"], attention_mask=self.batch["attention_mask"], use_cache=False).logits
        return self.lm.loss_function(logits, None, self.vocab, shift_labels=self.batch["labels"])

    def _objective(self, student: StudentModel, objective: BoundObjective, online: OnlineTeacher | None) -> Tensor:
        teacher = None
        if online is not None:
            teacher = online.read(self.batch["input_ids"], self.batch["attention_mask"], self.batch["taken_ids"].shape[1])
        steps = BatchSteps(self.batch, self.vocab, objective.needs, teacher)
        call = HeadCall(objective_loss(objective, steps, self.batch["labels"].numel()), objective.scope)
        return student(**student_inputs(self.batch), vocab_size=self.vocab, needs=objective.needs, call=call)["loss"]

    @torch.no_grad()
    def inputs(self) -> dict[str, Tensor]:
        """Return what the other libraries read."""

        def hidden(lm: LlamaForCausalLM) -> Tensor:
            return lm.model(self.batch["input_ids"], attention_mask=self.batch["attention_mask"]).last_hidden_state.flatten(0, 1)

        labels, ids, logp = (self.batch[name].flatten(0, 1) for name in ("labels", "candidate_ids", "logp"))
        own = {"hidden": hidden(self.lm), "weight": self.lm.lm_head.weight, "labels": labels, "candidates": ids, "logp": logp}
        return own | {"teacher_hidden": hidden(self.teacher), "teacher_weight": self.teacher.lm_head.weight}


class Peers(AbstractContextManager):
    """Run head_peers.py in another environment, and ask it by lines of JSON.

    Raises:
        ConfigError: it doesn't start.
    """

    def __init__(self, python: str):
        command = [python, str(Path(__file__).with_name("head_peers.py"))]
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError as error:
            raise ConfigError(
                f"--peers {python} can't be run ({error}): give the Python of the environment that head_peers.py describes."
            ) from error
        self.facts = self._read()
        self.keys: list[Key] = [(name, objective) for name, objective in self.facts["runs"]]

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def load(self, inputs: dict[str, Tensor]) -> None:
        """Hand over inputs."""
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            torch.save(inputs, file.name)
            self._ask({"inputs": file.name})

    def run(self, key: Key, memory: bool) -> dict[str, Any]:
        """Run once, forward and backward, and return its times or its memory, or an ``error``."""
        return self._ask({"run": key, "memory": memory})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith("{"):  # libraries print lines of their own
                return json.loads(line)
        raise ConfigError("head_peers.py ended early: run it by hand in the environment of --peers to see why.")
