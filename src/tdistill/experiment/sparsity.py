"""Measure how concentrated the teacher is on the training prompts, and which p to take (the stage ``sparsity``, on demand)."""

from pathlib import Path
from typing import Any

from tdistill.evaluation.sparsity import measure_sparsity
from tdistill.experiment.evaluation import SCORED_AT_ONCE
from tdistill.experiment.models import load_teacher, vocab_size
from tdistill.experiment.pipeline import Run, provenance
from tdistill.experiment.rollouts import cache
from tdistill.pages.document import write_document
from tdistill.recipe.schema import CandidateRule
from tdistill.report.sparsity_page import recommended, rows, sparsity_document
from tdistill.runtime.files import write_jsonl

# nats per candidate
ADAPTIVE = (1e-2, 3e-3, 1e-3, 3e-4)


def sparsity_settings(run: Run) -> dict[str, Any]:
    """Return the settings that shape the page, beside the roll-outs."""
    return {"dtype": run.recipe.evaluation.dtype, "adaptive": ADAPTIVE}


def make_sparsity(run: Run, directory: Path) -> dict[str, Any]:
    """Measure every state of the training roll-outs; write ``sparsity.md``, ``sparsity.html`` and ``sparsity.jsonl``."""
    teacher, data, vocab = load_teacher(run, run.recipe.evaluation.dtype), cache(run, "train"), vocab_size(run)
    found = measure_sparsity(teacher, data, vocab, SCORED_AT_ONCE, rules=[CandidateRule(name="adaptive", value=value) for value in ADAPTIVE])
    facts = provenance(run.recipe)
    shown = {
        "teacher": run.teacher_source.name,
        "states": f"{len(found.entropy):,} of {len(data)} training answers",
        "dtype": facts["recipe"]["evaluation"]["dtype"],
    }
    shown |= {key: str(facts[key]) for key in ("seed", "tdistill", "torch", "git_commit", "machine")}
    markdown, page = write_document(directory, "sparsity", sparsity_document(found, shown))
    write_jsonl(directory / "sparsity.jsonl", rows(found))
    p, reason = recommended(found)
    return {"markdown": markdown.name, "page": page.name, "recommended_p": p, "reason": reason}
