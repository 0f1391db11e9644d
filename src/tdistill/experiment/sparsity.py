"""Measure how concentrated the teacher is on the training prompts, and recommend a p (the stage ``sparsity``, on demand)."""

from functools import partial
from pathlib import Path
from typing import Any

from tdistill.evaluation.answers import SCORED_AT_ONCE
from tdistill.evaluation.sparsity import measure_sparsity
from tdistill.experiment.answers import held_out
from tdistill.experiment.artefact import Artefact
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.models import computing, teacher, vocab_size
from tdistill.experiment.provenance import provenance
from tdistill.experiment.rollouts import rollouts
from tdistill.experiment.systems import load_own_teacher, release
from tdistill.pages.document import write_document
from tdistill.recipe.schema import CandidateRule
from tdistill.report.sparsity_page import recommended, rows, sparsity_document
from tdistill.runtime.files import write_jsonl
from tdistill.runtime.forms import Form, Name

PAGES, ROWS = ("sparsity.md", "sparsity.html"), "sparsity.jsonl"
ADAPTIVE = (1e-2, 3e-3, 1e-3, 3e-4)  # nats per candidate


class SparsityNotes(Form):
    """Declare what ``sparsity`` notes."""

    recommended_p: float
    reason: Name


def sparsity(experiment: Experiment) -> Artefact:
    """Return the page on how concentrated the teacher is on the training roll-outs."""
    return Artefact(
        experiment.root,
        "sparsity",
        "sparsity",
        {**computing(experiment), "adaptive": ADAPTIVE},
        partial(_make, experiment),
        {"teacher": teacher(experiment), "rollouts": rollouts(experiment)["train"]},
        notes_form=SparsityNotes,
        pages=PAGES,
    )


def _make(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Measure every state of the training roll-outs; write ``sparsity.md``, ``sparsity.html`` and ``sparsity.jsonl``."""
    data, rules = held_out(experiment, "train"), [CandidateRule(name="adaptive", value=value) for value in ADAPTIVE]
    found = measure_sparsity(load_own_teacher(experiment), data, vocab_size(experiment), SCORED_AT_ONCE, rules)
    release(experiment)
    facts = provenance(experiment.recipe)
    shown = {
        "teacher": experiment.teacher_source.name,
        "states": f"{len(found.entropy):,} of {len(data)} training answers",
        "dtype": experiment.recipe.evaluation.dtype,
    }
    shown |= {key: str(facts[key]) for key in ("seed", "tdistill", "torch", "git_commit", "machine")}
    write_document(directory, "sparsity", sparsity_document(found, shown))
    write_jsonl(directory / ROWS, rows(found))
    p, reason = recommended(found)
    return {"recommended_p": p, "reason": reason}
