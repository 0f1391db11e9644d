"""Describe what every stage of a recipe takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tdistill.evaluation.answers import SCORED_AT_ONCE
from tdistill.planning import disk, memory
from tdistill.planning.facts import Facts
from tdistill.planning.memory import Generation, Moment
from tdistill.planning.sizes import ModelSize
from tdistill.planning.students import StudentPlan
from tdistill.planning.time import Work, scoring, writing
from tdistill.recipe.schema import Recipe


@dataclass(frozen=True)
class StagePlan:
    """Hold what one stage takes."""

    name: str  # of the stage, and of the method that is trained
    moments: Sequence[Moment]
    stays: int = 0  # bytes on the disk
    goes: int = 0  # bytes on the disk that are removed when the stage ends
    work: Work = field(default_factory=Work)
    students: int = 1  # trained one after the other: one for each seed
    gpu: bool = False
    complete: bool = False

    def peak(self, gpu: bool) -> tuple[Moment, int]:
        """Return the moment at which the GPU's memory, or the machine's, is fullest, and its bytes there."""
        sizes = [(sum(m.on(self.gpu)[0 if gpu else 1].values()), m) for m in self.moments]
        size, moment = max(sizes, key=lambda pair: pair[0])
        return moment, size


def plan_stages(recipe: Recipe, facts: Facts, root: Path) -> list[StagePlan]:
    """Return the plan of every stage that `tdistill run` executes, in order.

    Args:
        recipe: what is asked for.
        facts: of this recipe, or of one that differs by settings that leave models, prompts and answers as they are.
        root: the output directory.
    """
    found = [_models(recipe, facts), _rollout(recipe, facts)]
    if recipe.sft is not None:
        found.append(_student(recipe, facts, root, "sft"))
    found += [_student(recipe, facts, root, name) for name in recipe.train.methods()]
    found.append(_evaluate(recipe, facts))
    gpu = facts.machine.device.gpu
    return [replace(stage, gpu=gpu, complete=_is_complete(stage.name, facts)) for stage in found]


def _is_complete(name: str, facts: Facts) -> bool:
    return name.split(" ")[0] in facts.complete


def _with_process(moments: Sequence[Moment], facts: Facts) -> list[Moment]:
    return [replace(m, host=m.host | {"process": memory.process(facts.tokenizer)}) for m in moments]


def _models(recipe: Recipe, facts: Facts) -> StagePlan:
    teacher, student = facts.teacher.size, facts.student.size
    moments = memory.models_stage(teacher, student, recipe.student.init == "prune", facts.from_gguf)
    stays = disk.student_bytes(student.parameters) + (disk.student_bytes(teacher.parameters) if facts.from_gguf else 0)
    return StagePlan("models", _with_process(moments, facts), stays + 2 * facts.tokenizer_bytes)


def _generation(size: ModelSize, numbers: int, facts: Facts, dtype: str, batch: int) -> Generation:
    """Return how a model answers the longest prompts of any split in batches of a size."""
    longest = max(split.longest_prompt for split in facts.lengths.values())
    response = max(split.longest_response for split in facts.lengths.values())
    return Generation(size, numbers, dtype, batch, longest, response, facts.vocabulary)


def _rollout(recipe: Recipe, facts: Facts) -> StagePlan:
    c, lengths = recipe.rollout, facts.lengths
    batch = min(c.batch_size, max(split.responses for split in lengths.values()))
    one = _generation(facts.teacher.size, facts.teacher_cache, facts, recipe.teacher.dtype, batch)
    shard = min(batch * c.shard_batches, max(split.responses for split in lengths.values())) * lengths["train"].mean_response
    scored = batch * c.max_completion_length if c.score_references else 0
    moments = memory.rollout_stage(one, shard, lengths["train"].candidates, scored)
    work = Work()
    for split in lengths.values():
        work += writing(replace(one, prompt=split.mean_prompt, response=split.mean_response), split.responses, facts.machine)
    caches = sum(map(disk.cache_bytes, lengths.values()))
    return StagePlan("rollout", _with_process(moments, facts), caches * (2 if c.score_references else 1), work=work)


def _student(recipe: Recipe, facts: Facts, root: Path, name: str) -> StagePlan:
    method = recipe.sft.method() if name == "sft" and recipe.sft is not None else recipe.train.methods()[name]
    own, count = StudentPlan(recipe, method, facts, root), 1 if name == "sft" else len(recipe.train.seeds)
    stays, goes = own.disk()
    return StagePlan(name if name == "sft" else f"train {name}", own.moments(), stays * count, goes, own.work() * count, count)


def _evaluate(recipe: Recipe, facts: Facts) -> StagePlan:
    c, test, teacher, student = recipe.evaluation, facts.lengths["test"], facts.teacher.size, facts.student.size
    answers = test.prompts * c.num_generations
    one = _generation(student, facts.student_cache, facts, c.dtype, min(c.batch_size, answers))
    own = replace(one, response=c.max_completion_length)
    scored = min(SCORED_AT_ONCE, test.responses) * test.longest_response
    moments = memory.evaluate_stage(teacher, own, scored, min(SCORED_AT_ONCE, answers) * c.max_completion_length)
    systems = [(teacher, facts.teacher_cache)] + [(student, facts.student_cache)] * (1 + (recipe.sft is not None))
    systems += [(student, facts.student_cache)] * (len(recipe.train.methods()) * len(recipe.train.seeds))
    length, work = min(test.mean_response, c.max_completion_length), Work()
    for size, numbers in systems:
        mean = replace(own, size=size, numbers=numbers, prompt=test.mean_prompt, response=length)
        work += writing(mean, answers, facts.machine)
        work += replace(scoring(teacher, c.dtype, answers, test.mean_prompt, length, facts.machine), tokens=0)
        for read in (teacher, size):
            work += replace(scoring(read, c.dtype, test.responses, test.mean_prompt, test.mean_response, facts.machine), tokens=0)
    return StagePlan("evaluate", _with_process(moments, facts), work=work)


@dataclass(frozen=True)
class Misfit:
    """Hold what does not fit: the stage, the place, the bytes asked for and those free."""

    stage: str
    place: str  # "GPU memory", "memory" or "disk"
    asked: int
    free: int


def misfits(stages: Sequence[StagePlan], facts: Facts) -> list[Misfit]:
    """Return what would not fit into the memory and the disk that are free. Complete stages take nothing more."""
    found, used = [], 0
    free: Mapping[str, int | None] = {"GPU memory": facts.machine.free_device, "memory": facts.machine.free_memory}
    for stage in stages:
        if stage.complete:
            continue
        for place, limit in free.items():
            size = stage.peak(place == "GPU memory")[1]
            if limit is not None and size > limit:
                found.append(Misfit(stage.name, place, size, limit))
        if facts.machine.measured and used + stage.stays + stage.goes > facts.free_disk:
            found.append(Misfit(stage.name, "disk", used + stage.stays + stage.goes, facts.free_disk))
        used += stage.stays
    return found
