"""List the systems that are measured: the teacher, the start, and every student. Load them as they are measured."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from tdistill.evaluation.metrics import TEACHER
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment, once
from tdistill.experiment.models import load_teacher, start, teacher, trusts_student
from tdistill.experiment.students import Trained, sft, students
from tdistill.models.find import find_model
from tdistill.models.load import compute_device, load_model
from tdistill.objectives import bind

START = "start"


@dataclass(frozen=True)
class System:
    """Describe a model that is measured."""

    name: str  # "teacher", "start", "sft", or the name of the method that trained it
    seed: int | None  # of its training, where a method has seeds
    title: str  # the name, with the seed where the recipe has several
    description: str
    artefact: Artefact


@once
def systems(experiment: Experiment) -> list[System]:
    """Return everything that the report compares: the teacher first, then in the order of training."""
    found = [
        System(TEACHER, None, TEACHER, experiment.teacher_source.name, teacher(experiment)),
        System(START, None, START, "the student before any training", start(experiment)),
    ]
    tuned = sft(experiment)
    if tuned is not None:
        found.append(System(tuned.name, None, tuned.name, "the start after supervised fine-tuning", tuned.artefact))
    return found + [System(s.name, s.seed, s.artefact.title, _described(experiment, s), s.artefact) for s in students(experiment)]


def _described(experiment: Experiment, student: Trained) -> str:
    baseline = experiment.recipe.train.baselines.get(student.name)
    own = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in (baseline.arguments if baseline else {}).items())
    return bind(student.method.objective).describe() + (f" ({own})" if own else "")


def load_system(experiment: Experiment, system: System) -> PreTrainedModel:
    """Load a system in the evaluation's dtype. The teacher, and the other system that was loaded last, stay in memory until ``release``."""
    held: dict[Path, PreTrainedModel] = experiment.memo.setdefault(load_system, {})
    directory, own = system.artefact.directory, teacher(experiment).directory
    if directory not in held:
        dtype = experiment.recipe.evaluation.dtype
        if directory == own:
            held[directory] = load_teacher(experiment, dtype)
        else:
            for other in held.keys() - {own}:
                del held[other]
            source, attention = find_model(str(directory)), experiment.recipe.student.attn_implementation
            model = load_model(source, dtype, trusts_student(experiment), attn_implementation=attention)
            held[directory] = model.to(compute_device())
    return held[directory]


def load_own_teacher(experiment: Experiment) -> PreTrainedModel:
    """Load the teacher in the evaluation's dtype, as ``load_system`` does."""
    return load_system(experiment, systems(experiment)[0])


def release(experiment: Experiment) -> None:
    """Free the models that ``load_system`` keeps in memory."""
    experiment.memo.pop(load_system, None)
