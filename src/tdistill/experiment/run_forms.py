"""Declare the forms of the files that stages write: the keys that are read, and the values that they can have."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from tdistill.runtime.forms import Count, Form, Name, Number, Positive

Scores = dict[str, dict[str, Number]]  # metric → prompt id → value
# metric → the least and the largest value that it can have; rounding of sums aside.
RANGES = {
    "rouge_l": (0.0, 100.0),
    "teacher_nll": (0.0, math.inf),
    "forward_kl": (0.0, math.inf),
    "reverse_kl": (0.0, math.inf),
    "student_mass": (0.0, 1.0),
    "entropy": (0.0, math.inf),
    "distinct_2": (0.0, 1.0),
    "mean_length": (1.0, math.inf),
}
ROUNDING = 1e-2


class ProvenanceForm(Form):
    """Declare where a stage's content comes from, as far as it is read."""

    recipe: dict[str, Any]
    machine: str


class StageForm(Form):
    """Declare the form of ``stage.json``, without what each stage notes."""

    stage: Name = ""
    key: Name
    notes: dict[str, Any]
    seconds: float = Field(ge=0)
    peak_memory_bytes: Count
    provenance: ProvenanceForm
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field({})


class TrainedForm(Form):
    """Declare what a student noted: ``done.json``, and the notes of ``sft``."""

    objective: Name
    validation: dict[str, Number]


class RolloutNotes(Form):
    """Declare what the roll-out stage noted about a prompt set."""

    responses: Positive
    tokens: Positive
    candidates: Positive
    checksum: Name


class EvaluateNotes(Form):
    """Declare what the evaluation noted."""

    protocol: Name
    systems: list[Name] = Field(min_length=1)


class PagesNotes(Form):
    """Declare what a stage that makes a page noted."""

    markdown: Name
    page: Name


class SparsityNotes(PagesNotes):
    """Declare what ``sparsity`` noted."""

    reason: str


class SizesForm(Form):
    """Declare the numbers of parameters of teacher and start."""

    teacher: Positive
    start: Positive


class ModelsForm(Form):
    """Declare the form of ``models.json``."""

    eos_ids: list[Count] = Field(min_length=1)
    tokenizer: Name
    template: Name
    layers: list[Count] | None
    parameters: SizesForm
    vocab_size: Positive | None = None


class ScoresForm(Form):
    """Declare the form of ``scores/NAME.json`` of an evaluation."""

    name: Name
    description: str
    parameters: Positive
    num_hidden_layers: Positive
    scores: Scores


class SparsityForm(Form):
    """Declare the form of ``sparsity.json``."""

    n_tokens: Positive
    vocab_size: Positive
    top_k_mass: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,9}$")], Annotated[float, Field(ge=0.0, le=1.0 + ROUNDING)]]
    sizes: dict[Annotated[str, Field(pattern=r"^(0\.[0-9]+|1\.0)$")], list[Positive]]


class AnswerForm(Form):
    """Declare the form of a line of ``answers/NAME.jsonl``."""

    prompt_id: Name
    sample_index: Count
    tokens: list[Count] = Field(min_length=1)
    finished: bool
    text: str
    own_logp: Number = 0.0


class SweepSettingsForm(Form):
    """Declare the settings of a sweep over temperatures, as far as they are read."""

    split: Literal["test", "valid"]


class SweepForm(Form):
    """Declare the form of ``sweep.json``."""

    settings: SweepSettingsForm
    recipe: dict[str, Any]


class SweepScoresForm(Form):
    """Declare the form of ``scores/NAME.json`` of a sweep."""

    name: Name
    temperature: float = Field(gt=0)
    scores: Scores


class LmEvalForm(Form):
    """Declare the form of ``SYSTEM.json`` of lm-eval."""

    system: Name
    results: dict[str, dict[str, Any]]


class TaskDataForm(Form):
    """Declare the form of ``data.json`` of a task."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PositionsForm(Form):
    """Declare sums and counts of the teacher's NLL, one for each token index."""

    sum: list[float]
    count: list[Count]


class TaskScoresForm(Form):
    """Declare the form of ``scores/SYSTEM.json`` of a task."""

    system: Name
    task: Name
    prompts: Positive
    scores: Scores
    nll_by_position: PositionsForm


class TeacherForm(Form):
    """Declare the teacher of a recipe, as far as comparing runs needs it."""

    teacher_model_name_or_path: Name
    dtype: Name


class LengthForm(Form):
    """Declare the longest answer, of roll-outs or an evaluation."""

    max_completion_length: Positive | None


class EvaluationForm(LengthForm):
    """Declare the evaluation of a recipe, as far as comparing runs needs it."""

    temperature: float = Field(gt=0)


class SystemForm(Form):
    """Declare a baseline of a recipe."""

    objective: dict[str, Any] | list[dict[str, Any]]
    arguments: dict[str, Any]
    on_policy: dict[str, Any] | None


class TrainForm(SystemForm):
    """Declare the training of a recipe, as far as comparing runs needs it."""

    baselines: dict[str, SystemForm]


class RecipeForm(Form):
    """Declare a resolved recipe of any version, as far as comparing runs needs it."""

    output_dir: Name
    seed: Count
    data: dict[str, Any]
    teacher: TeacherForm
    student: dict[str, Any]
    rollout: LengthForm
    sft: dict[str, Any] | None
    train: TrainForm
    evaluation: EvaluationForm


NOTES: dict[str, Any] = {
    "rollout": dict[str, RolloutNotes],
    "sft": TrainedForm,
    "train": dict[str, TrainedForm],
    "evaluate": EvaluateNotes,
    "report": PagesNotes,
    "sparsity": SparsityNotes,
}
