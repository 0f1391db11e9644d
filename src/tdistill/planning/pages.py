"""Show a plan as tables and notes, and as JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tdistill.pages.parts import Document, Notes, Section
from tdistill.pages.tables import MISSING, Cell, Table, format_bytes, format_count, format_number, format_seconds, right_aligned
from tdistill.planning.facts import Facts
from tdistill.planning.plan import Misfit, StagePlan

DONE = "complete"


@dataclass(frozen=True)
class Planned:
    """Hold a plan: its stages, what does not fit, and the overrides that make it fit (None: none is known)."""

    facts: Facts
    stages: Sequence[StagePlan]
    unfit: Mapping[Misfit, list[str] | None]


def plan_document(planned: Planned) -> Document:
    """Return the tables and notes for the terminal."""
    stages = [stage for stage in planned.stages if not stage.complete]
    tables = [stages_table(planned.stages, planned.facts.machine.device.gpu)]
    for gpu in (True, False):
        parts = parts_table(stages, gpu)
        if parts.rows:
            tables.append(parts)
    notes = Notes([*assumptions(planned.facts), *verdicts(planned)], terminal=True)
    return Document("plan", {}, [Section("plan", "Plan", [*tables, notes])])


def stages_table(stages: Sequence[StagePlan], gpu: bool) -> Table:
    """Return what each stage takes."""
    header = ["stage", *(["GPU memory"] if gpu else []), "memory", "disk", "tokens", *([] if gpu else ["operations"]), "time"]
    rows = []
    for stage in stages:
        sizes = [format_bytes(stage.peak(True)[1])] * gpu + [format_bytes(stage.peak(False)[1]), format_bytes(stage.stays + stage.goes)]
        work = [stage.work.tokens, *([] if gpu else [stage.work.flops])]
        counted = [_count(n) for n in work]
        took = DONE if stage.complete else format_seconds(stage.work.seconds) if stage.work.seconds else MISSING
        rows.append([Cell(text) for text in (_title(stage), *sizes, *counted, took)])
    caption = "Memory: the most at one moment. Disk: with checkpoints, which go when a student is saved. Tokens: of responses."
    return Table(caption, header, rows, right_aligned(len(header)), terminal=True)


def _title(stage: StagePlan) -> str:
    return f"{stage.name} (×{stage.students})" if stage.students > 1 else stage.name


def _count(number: float) -> str:
    if number <= 0:
        return MISSING
    return format_count(int(number)) if number < 1e12 else f"{format_number(number / 1e12)}T"


def parts_table(stages: Sequence[StagePlan], gpu: bool) -> Table:
    """Return the parts of a memory at its fullest moment, for every stage."""
    rows = []
    for stage in stages:
        moment, total = stage.peak(gpu)
        parts = moment.on(stage.gpu)[0 if gpu else 1]
        name = [_title(stage), moment.name]
        for part, size in sorted(parts.items(), key=lambda item: -item[1]):
            if size:
                rows.append([*map(Cell, (*name, part, format_bytes(size), f"{size / total:.0%}"))])
                name = ["", ""]
    caption = f"{'GPU memory' if gpu else 'Memory'} by part, at the moment when it is fullest."
    return Table(caption, ["stage", "at", "part", "memory", "share"], rows, right_aligned(5, left=3), terminal=True)


def assumptions(facts: Facts) -> list[str]:
    """Say what is measured, what is a bound, and what is a typical value."""
    machine, train = facts.machine, facts.lengths["train"]
    if machine.measured:
        rates = ", ".join(f"{dtype} {_rate(n)}" for dtype, n in machine.device.flops.items())
        found = [f"{machine.device.name}: measured {rates}, {machine.bandwidth / 1e9:.0f} GB/s."]
    else:
        found = [f"{machine.device.name}: public peak numbers, of which training is taken to reach 40 %. This machine was not measured."]
    if train.known:
        found.append(f"The roll-outs exist: {train.mean_response:.0f} tokens a response, {train.candidates:.1f} candidates a token.")
        return found
    bound = "as given" if train.mean_response < train.longest_response else "the most that the recipe allows (--response-length says better)"
    found.append(f"Responses: {train.mean_response:g} tokens each, {bound}.")
    typical = "a typical number for this p (--candidates says better)" if train.typical else "as given"
    found.append(f"Candidates: {train.candidates:g} a token, {typical}.")
    return found


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.1f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.0f} GFLOP/s"


def verdicts(planned: Planned) -> list[str]:
    """Say what does not fit and which settings make it fit, or that all fits."""
    found = []
    for misfit, overrides in planned.unfit.items():
        helps = f"This makes it fit: {' '.join(overrides)}" if overrides else "No setting that is tried here makes it fit: take smaller models."
        if overrides is None and misfit.place == "disk":
            helps = "Free some space, or move output_dir."
        asked, free = format_bytes(misfit.asked), format_bytes(misfit.free)
        found.append(f"{misfit.stage} does not fit: it takes {asked} of {misfit.place}, and {free} are free. {helps}")
    return found or ["All stages fit."]


def plan_data(planned: Planned) -> dict[str, Any]:
    """Return the plan as JSON values."""
    facts = planned.facts
    stages = []
    for stage in planned.stages:
        moments = [{"moment": m.name, "gpu": m.on(stage.gpu)[0], "memory": m.on(stage.gpu)[1]} for m in stage.moments]
        stages.append(
            {
                "stage": stage.name,
                "students": stage.students,
                "complete": stage.complete,
                "gpu_bytes": stage.peak(True)[1],
                "memory_bytes": stage.peak(False)[1],
                "moments": moments,
                "disk_stays": stage.stays,
                "disk_goes": stage.goes,
                **asdict(stage.work),
            }
        )
    unfit = [{**asdict(misfit), "overrides": overrides} for misfit, overrides in planned.unfit.items()]
    sizes = {"teacher": asdict(facts.teacher.size), "student": asdict(facts.student.size)}
    machine = {"name": facts.machine.device.name, "measured": facts.machine.measured, "flops": facts.machine.device.flops}
    machine["bandwidth"] = facts.machine.device.bandwidth
    lengths = {split: asdict(own) for split, own in facts.lengths.items()}
    return {"stages": stages, "unfit": unfit, "models": sizes, "machine": machine, "lengths": lengths, "free_disk": facts.free_disk}
