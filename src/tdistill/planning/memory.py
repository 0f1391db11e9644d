"""Compute what each stage holds in memory at its largest moments, part by part.

P parameters of a model, b bytes of a number, B texts at once, L tokens of a text, T response tokens, V rows of the head, D its width.
"""

from dataclasses import dataclass, field

from tdistill.planning.sizes import ModelSize

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = 4
MIB = 1 << 20
# Of a process beside models: tokenizer, prompts, Arrow, and the libraries' own objects.
PROCESS, PER_TOKEN_NAME = 20 * MIB, 300
# A cached token and candidate in a training process, while it is read and afterwards.
CACHED_TOKEN, CACHED_CANDIDATE, READING = 141, 7.3, 3
# A candidate of a shard that is not written yet: Python's numbers and Arrow's.
UNWRITTEN_CANDIDATE = 60
SAMPLING = 5  # float32 copies of [B, V] while a token is drawn
SCORING = 3  # of [B, T, V] while a teacher scores
DIVERGENCES = 5  # of [B, T, V] while two models' log-probs are compared
CONCENTRATION = 5  # of [B, T, V] while one model's log-probs are sorted


@dataclass(frozen=True)
class Moment:
    """Hold what is in memory at one moment of a stage: part → bytes. ``device`` holds the parts that lie on the GPU, where there is one."""

    name: str
    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)

    def on(self, gpu: bool) -> tuple[dict[str, int], dict[str, int]]:
        """Return the parts in the GPU's memory and those in the machine's. Without a GPU all lie in the machine's."""
        if gpu:
            return self.device, self.host
        both = dict(self.host)
        for part, size in self.device.items():
            both[part] = both.get(part, 0) + size
        return {}, both


def weights(size: ModelSize, dtype: str) -> int:
    """Return b·P bytes."""
    return BYTES[dtype] * size.parameters


def key_values(numbers: int, batch: int, length: float, dtype: str, layers: int) -> int:
    """Return b·B·L·n·(1 + 1/layers) bytes, n numbers a token: the cache, and a layer's copy while it grows by one token."""
    return int(BYTES[dtype] * batch * length * numbers * (1 + 1 / layers))


def process(vocabulary: int) -> int:
    """Return 20 MiB + 300·V bytes: a process and its tokenizer."""
    return PROCESS + PER_TOKEN_NAME * vocabulary


def cached(tokens: float, candidates: float, reading: bool) -> int:
    """Return tokens·(141 + 7.3·K) bytes for a cache in a training process; three times that while it is read."""
    return int(tokens * (CACHED_TOKEN + CACHED_CANDIDATE * candidates) * (READING if reading else 1))


def models_stage(teacher: ModelSize, student: ModelSize, pruned: bool, from_gguf: bool) -> list[Moment]:
    """Return the moments of `models`: a model is loaded in float32 on the CPU, saved, and loaded again to compare.

    The teacher alone: 4·P_t; of a GGUF file twice. The start: 4·P_t + 4·P_s while it is pruned, then 8·P_s.
    """
    both = {"weights": FLOAT32 * student.parameters, "teacher": FLOAT32 * teacher.parameters if pruned else 0}
    return [
        Moment("loading the teacher", host={"teacher": FLOAT32 * teacher.parameters * (2 if from_gguf else 1)}),
        Moment("pruning" if pruned else "loading the student", host=both),
        Moment("comparing the saved start", host={"weights": 2 * FLOAT32 * student.parameters}),
    ]


@dataclass(frozen=True)
class Generation:
    """Hold how a model writes: how many texts at once, how long, and over which vocabulary."""

    size: ModelSize
    numbers: int  # in the key-value cache, for each token
    dtype: str
    batch: int
    prompt: float  # tokens
    response: float
    rows: int

    def parts(self) -> dict[str, int]:
        """Return the cache's bytes, and 5·4·B·V for the draw of a token."""
        length = self.prompt + self.response
        return {
            "KV cache": key_values(self.numbers, self.batch, length, self.dtype, self.size.layers),
            "head": SAMPLING * FLOAT32 * self.batch * self.rows,
        }


def rollout_stage(writing: Generation, shard_tokens: float, candidates: float, scored: int) -> list[Moment]:
    """Return the moments of a roll-out: writing, and scoring references where ``scored`` is their number of tokens at once.

    Args:
        writing: how the teacher writes.
        shard_tokens: tokens of one file of the cache, which are held until it is written.
        candidates: mean number of candidates of a token.
        scored: B·T of references that are scored at once; 0: none are.
    """
    teacher, rows = weights(writing.size, writing.dtype), int(shard_tokens * candidates * UNWRITTEN_CANDIDATE)
    found = [Moment("writing", {"teacher": teacher, **writing.parts()}, {"cache": rows})]
    if scored:
        head = SCORING * FLOAT32 * scored * writing.rows
        found.append(Moment("scoring references", {"teacher": teacher, "head": head}, {"cache": rows}))
    return found


@dataclass(frozen=True)
class Training:
    """Hold the sizes of one student's training run, in bytes where no unit is named."""

    student: ModelSize
    adam: int  # the optimizer's state
    activations: int
    head: int  # logits and their gradients
    head_gradient: int  # of the head's weight, all that are there at once in the backward pass; 0 where the head is frozen
    gradient_in_loss: int  # of the head's weight, where the head takes it beside the loss
    logits: int  # the logits' gradient alone, from which that of the head's weight is computed
    validation: int  # of the head while it validates
    accumulates: bool  # gradients of earlier micro-batches are there during the forward pass
    teacher: int  # its weights, where it runs online
    target: int  # weights of the target network
    windows: int  # activations and logits of the language-modelling term
    data: int  # the caches


def train_stage(run: Training, shards: int = 1) -> list[Moment]:
    """Return the moments of training.

    Always 4·P + 8·P_trainable, and 4·P_trainable for gradients where they accumulate.
    The loss: activations + head, and 4·V·D where the head takes its weight's gradient there.
    The head's gradient: activations + logits + 4·V·D, as often as it is there at once.
    The optimizer's step: 4·P_trainable. Validation: its own logits.

    Args:
        run: the sizes.
        shards: GPUs that share weights, gradients and moments (FSDP).
    """
    size = run.student
    weight, gradient, adam = (n // shards for n in (FLOAT32 * size.parameters, FLOAT32 * size.trainable, run.adam))
    always = {"weights": weight, "optimizer": adam, "teacher": run.teacher, "target network": run.target}
    before, body = gradient if run.accumulates else 0, run.activations + run.windows
    loss = {"gradients": before + run.gradient_in_loss, "activations": body, "head": run.head}
    head = {"gradients": before + run.head_gradient, "activations": body, "head": run.logits}
    kept = {"cache": run.data}
    return [
        Moment("the loss and its gradient", always | loss, kept),
        Moment("the head's gradient", always | head, kept),
        Moment("optimizer's step", always | {"gradients": gradient}, kept),
        Moment("validation", always | {"head": run.validation}, kept),
    ]


def evaluate_stage(teacher: ModelSize, system: Generation, scored: int, answers: int) -> list[Moment]:
    """Return the moments of an evaluation, in which the teacher stays in memory.

    Args:
        teacher: its size.
        system: how the largest system writes.
        scored: B·T of the teacher's answers that are read at once, for the divergences.
        answers: B·T of a system's answers that the teacher scores at once.
    """
    models = {"teacher": weights(teacher, system.dtype), "weights": weights(system.size, system.dtype)}
    unit = FLOAT32 * system.rows
    return [
        Moment("writing", models | system.parts()),
        Moment("scoring answers", models | {"head": SCORING * unit * answers}),
        Moment("reading the teacher's answers", models | {"head": SCORING * unit * scored}, {"log-probs": unit * scored}),
        Moment("divergences", models, {"log-probs": DIVERGENCES * unit * scored}),
        Moment("the teacher's concentration", {"teacher": models["teacher"]}, {"log-probs": CONCENTRATION * unit * scored}),
    ]
