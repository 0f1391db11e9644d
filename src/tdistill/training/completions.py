"""Log the student's answers to a few validation prompts at every validation, for people to read."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from tdistill.cache.schema import Response
from tdistill.models.student import StudentModel
from tdistill.models.vocabulary import Vocabulary
from tdistill.runtime.files import replacing
from tdistill.runtime.processes import is_main_process
from tdistill.teachers.transformers import generate_batch
from tdistill.training.inputs import FitInputs
from tdistill.training.sharding import answer_together, check_can_answer, is_sharded

COMPLETIONS = "completions.jsonl"


class LogCompletions(TrainerCallback):
    """Append one line for each prompt and validation to ``path``, and a table to TensorBoard, Weights & Biases or Trackio if they are on.

    Args:
        student: the student that is trained.
        inputs: what the run reads. The first prompts of ``valid`` are answered as ``sampling`` says, with the same noise every time, so
            that lines differ only by the student.
        count: number of prompts.
        path: a JSON-lines file.
        trackers: the Trainer's callbacks.

    Raises:
        ConfigError: DeepSpeed ZeRO-3 shards the student, which generates only with whole weights or under FSDP2.
    """

    def __init__(self, student: StudentModel, inputs: FitInputs, count: int, path: Path, trackers: Sequence[TrainerCallback] = ()):
        check_can_answer()
        self._student, self._tokenizer, self._path, self._trackers = student, inputs.tokenizer, path, trackers
        self._prompts, self._eos = inputs.valid.prompts()[:count], inputs.valid.manifest.settings["eos_ids"]
        self._sampling, self._vocab_size = inputs.sampling, inputs.vocab_size

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the lines of validations that a resumed run does again. The Trainer calls it."""
        if not (is_main_process() and self._path.exists()):
            return
        left = Counter(entry["step"] for entry in state.log_history if "eval_loss" in entry)
        left = Counter({step: times * len(self._prompts) for step, times in left.items()})
        kept = []
        for line in self._path.read_bytes().splitlines(keepends=True):
            step = _step_of(line)
            if step is not None and left[step] > 0:
                left[step] -= 1
                kept.append(line)
        with replacing(self._path) as handle:
            handle.writelines(kept)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log the answers. The Trainer calls it."""
        training = self._student.training
        self._student.eval()
        rows = self._answers(args)
        self._student.train(training)
        if rows is None:  # the first process has them
            return
        table = [
            {
                "step": state.global_step,
                "prompt": self._tokenizer.decode(row.prompt_ids, skip_special_tokens=True),
                "completion": self._tokenizer.decode(row.text_ids, skip_special_tokens=True),
                "finished": row.finished,
            }
            for row in rows
        ]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in table)
        _show(table, state.global_step, self._trackers)

    def _answers(self, args: TrainingArguments) -> list[Response] | None:
        batch = [(prompt, 0) for prompt in self._prompts]

        def answer(lm: Any) -> list[Response]:
            with torch.autocast(args.device.type, torch.bfloat16, enabled=AcceleratorState().mixed_precision == "bf16"):
                return generate_batch(lm, batch, self._sampling, Vocabulary(self._vocab_size, self._eos))

        if is_sharded(self._student):
            return answer_together(self._student, answer)
        return answer(self._student.lm) if is_main_process() else None


def _step_of(line: bytes) -> int | None:
    """Return the step of a line, or None if a kill cut it short."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _show(table: Sequence[dict[str, Any]], step: int, callbacks: Sequence[TrainerCallback]) -> None:
    columns = list(table[0])
    data = [[row[c] for c in columns] for row in table]
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            rows = "\n".join(f"| {_cell(r['prompt'])} | {_cell(r['completion'])} |" for r in table)
            callback.tb_writer.add_text("completions", f"| prompt | completion |\n|---|---|\n{rows}", step)
        if isinstance(callback, WandbCallback) and callback._wandb is not None and callback._wandb.run is not None:
            callback._wandb.log({"completions": callback._wandb.Table(columns, data)}, commit=False)
        if isinstance(callback, TrackioCallback) and callback._initialized:
            callback._trackio.log({"completions": callback._trackio.Table(columns, data)})


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
