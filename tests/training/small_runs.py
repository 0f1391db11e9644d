"""Runs that take a second: a cache of a few prompts, a student of two layers, and what a kill leaves of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tdistill.data.corpus import PackedCorpus
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.tokenizer import load_tokenizer
from tdistill.objectives import bind
from tdistill.recipe.schema import LmConfig, MethodConfig, OnPolicyConfig, RolloutConfig
from tdistill.teachers.rollouts import Teacher, roll_out
from tdistill.training.fit import fit
from tdistill.training.inputs import FitInputs

NLL = bind("nll")
EVERY_TWO = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}
# The default schedule ends at rate 0, which hides a step too many.
CONSTANT = {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}


class World:
    """A teacher, its tokenizer, ten responses of its, a start for students, and a corpus."""

    def __init__(self, teacher: Path, directory: Path, prompts: int = 10):
        self.teacher: Any = load_model(find_model(str(teacher)))
        self.tokenizer: Any = load_tokenizer(find_model(str(teacher)))
        conversations = [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}" + "?" * (i % 5)},)) for i in range(prompts)]
        tokenized, _ = tokenize_prompts(conversations, self.tokenizer, 128, "refuse")
        rollout = RolloutConfig(teacher_top_p=0.9, max_completion_length=12, seed=1, batch_size=4, shard_batches=1)
        prints = {"teacher": "tiny", "tokenizer": "t", "template": "t"}
        writer = Teacher(lambda: self.teacher, self.tokenizer, [self.tokenizer.eos_token_id], prints)
        roll_out(writer, tokenized, directory / "cache", rollout)
        self.data = RolloutDataset(directory / "cache")
        self.start = directory / "start"
        self.student().save_pretrained(self.start)
        self.corpus_file = directory / "corpus.txt"
        self.corpus_file.write_text("\n\n".join(f"Paragraph {i} of the corpus." for i in range(40)))
        self.corpus = PackedCorpus(str(self.corpus_file), self.tokenizer, 16)

    def student(self) -> Any:
        return prune_layers(self.teacher, [0, 3]).train()

    def method(self, kind: str = "plain", **given: Any) -> MethodConfig:
        """``kind``: plain, lm, own text, or both; ``given`` are further settings of the method."""
        own = {"on_policy": OnPolicyConfig(lmbda=0.5, refresh_steps=2)} if kind in ("own text", "both") else {}
        lm = {"lm": LmConfig(corpus=str(self.corpus_file), window=16, lm_coef=0.5)} if kind in ("lm", "both") else {}
        return MethodConfig(**{"objective": "nll", **own, **lm, **given})

    def inputs(self, load_teacher: Callable[[], Any] | None = None) -> FitInputs:
        return FitInputs(self.start, self.data, self.data, self.tokenizer, len(self.tokenizer), load_teacher, "float32")

    def train(
        self,
        directory: Path,
        kind: str = "plain",
        arguments: dict[str, Any] | None = None,
        *,
        load_teacher: Callable[[], Any] | None = None,
        keep_checkpoints: bool = False,
        **given: Any,
    ) -> dict[str, float]:
        """Train a student into ``directory``; ``arguments`` beside those of ``EVERY_TWO`` and ``CONSTANT``."""
        method = self.method(kind, arguments={**EVERY_TWO, **CONSTANT, **(arguments or {})}, **given)
        return fit(self.inputs(load_teacher or (lambda: self.teacher)), method, 3, directory, "t", keep_checkpoints=keep_checkpoints)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {f"{path.name}: {k}": v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}


def assert_same_weights(found: Path, wanted: Path) -> None:
    mine, theirs = weights(found), weights(wanted)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def left_by_a_kill(whole: Path, directory: Path, step: int, refresh_steps: int = 2) -> Path:
    """Copy what is there when a run is killed after its checkpoint at ``step``, from a run that has kept all of its own."""
    for source in (whole / "checkpoints").glob("checkpoint-*"):
        if int(source.name.rsplit("-", 1)[1]) <= step:
            shutil.copytree(source, directory / "checkpoints" / source.name)
    for source in (whole / "rollouts").glob("round-*"):
        if int(source.name[6:10]) <= step // refresh_steps:
            (shutil.copytree if source.is_dir() else shutil.copy)(source, _parent(directory / "rollouts") / source.name)
    return directory


def _parent(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
