"""Define a recipe: one frozen, strict section for each room of the library. A room takes its section as it is; no field is copied by hand.

Defaults that depend on another section (a seed, a length, a nucleus) are filled in when a recipe is validated, so that whoever reads a
section reads the value that counts.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tdistill.recipe.section import MOST, Count, CountOrZero, Dtype, Section, filled, get
from tdistill.recipe.sources import DataConfig, StudentConfig, TeacherConfig

Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Beyond these bounds logits over a temperature leave what float32 can tell apart.
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
DEFAULT_SEED = 17
# Answers of an evaluation are drawn with other noise than the roll-outs: the teacher must not repeat its own reference.
EVALUATION_SEED_OFFSET = 1_000_003


class Sampling(Section):
    """Set the distribution that text is drawn from: softmax(logits / temperature), cut to ``top_k``, then to the nucleus ``top_p``."""

    temperature: Temperature = Field(1.0, description="temperature of the sampling distribution")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of probability that tokens are sampled from (nucleus sampling); by default rollout.top_p is rollout.teacher_top_p",
    )
    top_k: CountOrZero = Field(0, description="number of most likely tokens that tokens are sampled from; 0: no limit")
    max_completion_length: Count = Field(
        256, description="longest answer in tokens; by default evaluation.max_completion_length is rollout.max_completion_length"
    )
    seed: Seed = Field(
        0, description="seed of the sampling noise; by default rollout.seed is the recipe's seed, and evaluation.seed is that plus 1000003"
    )


class ActionSpace(Section):
    """Set the reduced action space A_p: which of the teacher's tokens are recorded as candidates."""

    teacher_top_p: float = Field(
        0.8,
        gt=0,
        le=1,
        description="p of the recorded action space: the fewest tokens whose probability reaches p; training may use any smaller p",
    )
    max_candidates: Count | None = Field(None, description="largest number of recorded candidates for a token; null: no limit")


class RolloutConfig(ActionSpace, Sampling):
    """Set how the teacher answers the prompts, and what is recorded for every token."""

    num_generations: Count = Field(1, description="number of responses for each prompt")
    batch_size: Count = Field(32, description="number of responses generated at once")
    shard_batches: Count = Field(4, description="number of batches in a file of the cache; a stop loses at most one file")
    score_references: bool = Field(False, description="also score the prompts' own answers by the teacher, for training with origins: [human]")

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        p = get(value, "teacher_top_p", cls.model_fields["teacher_top_p"].default)
        return filled(value, top_p=p if isinstance(p, float) and 0.0 < p <= 1.0 else 1.0)

    @field_validator("teacher_top_p")
    @classmethod
    def _cacheable(cls, p: float) -> float:
        if p == 1.0:
            raise ValueError("p = 1 is never cached (every token would be a candidate): roll out at p < 1 and set train.teacher_top_p: 1.0")
        return p


Terms = Annotated[dict[str, Any] | list[dict[str, Any]], BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
Origins = list[Literal["teacher", "human"]]


class SftConfig(Section):
    """Set the supervised fine-tuning before distillation. It uses the same trainer with ``nll``."""

    origins: Origins = Field(default=["teacher"], min_length=1, max_length=1, description="whose answers to learn from: teacher or human")
    seed: Seed = Field(0, description="seed of the order of the data and of dropout; by default the recipe's seed")
    arguments: dict[str, Any] = Field(default={}, description="arguments of transformers.TrainingArguments")

    def method(self) -> "MethodConfig":
        """Return the training of the SFT student as a method."""
        return MethodConfig(objective={"name": "nll"}, origins=self.origins, arguments=self.arguments)


class CandidateRule(Section):
    """Cut the top-p candidates further; ``mdp.candidates.rule_mask`` explains each rule."""

    name: Literal["top_k", "min_p", "adaptive"] = Field(description="name of the rule")
    value: float = Field(
        gt=0, description="top_k: number of tokens; min_p: share of the most likely token's probability; adaptive: nats for each candidate"
    )

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.name == "top_k" and not (self.value >= 1 and float(self.value).is_integer()):
            raise ValueError(f"candidate rule top_k: value must be a whole number ≥ 1, got {self.value}")
        if self.name == "min_p" and self.value > 1.0:
            raise ValueError(f"candidate rule min_p: value must be in (0, 1], got {self.value}")
        return self


class OnPolicyConfig(Section):
    """Add the student's own roll-outs to the training data: the student answers training prompts, and the teacher scores these answers."""

    lmbda: float = Field(0.5, ge=0, le=1, description="share of the training responses that the student writes; 0: none")
    refresh_steps: Count | None = Field(
        None, description="optimizer steps between two rounds of student roll-outs; null: one round, by the student before training"
    )
    replay: Count = Field(
        1, description="number of newest rounds to sample from; with 2, every response is used about twice and a round generates half as many"
    )
    temperature: Temperature = Field(1.0, description="temperature of the student's sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="share of probability that the student samples from (nucleus sampling)")
    teacher_mix: float = Field(
        0.0, ge=0, lt=1, description="share of the teacher in the distribution that every token is sampled from; 0: the student alone"
    )
    best_of: Count = Field(
        1,
        description="number of answers that the student writes to each prompt of a round; the one that the teacher finds likeliest per token "
        "is kept, and above 1 it counts as a demonstration",
    )

    def shaping(self) -> dict[str, Any]:
        """Return the settings that shape a student. ``best_of: 1`` is left out, so that students of earlier versions stay valid."""
        return self.model_dump(exclude={"best_of"} if self.best_of == 1 else None)


class LmConfig(Section):
    """Add lm_coef·[(1 − kd_ratio)·CE + kd_ratio·KL(teacher ‖ student)] on a plain-text corpus: every example brings one packed window.

    CE and KL are each a mean per token of the windows.
    """

    corpus: str = Field(description="file of documents: .txt with blank lines between them, .jsonl with a key text, or .gz of either")
    lm_coef: float = Field(1.0, gt=0, description="weight of the term in the loss")
    kd_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the KL to the teacher in the term, the rest is cross-entropy; above 0 the teacher runs while the student trains",
    )
    window: int = Field(256, ge=2, le=MOST, description="length of a window of the corpus in tokens")

    @property
    def reads_teacher(self) -> bool:
        """Tell whether the term needs the teacher online."""
        return self.kd_ratio > 0.0


class ValueConfig(Section):
    """Set how the value head learns, for objectives that have one, and how fast a target network follows.

    The value head starts at 0, so its first errors are as large as the returns. Where a text costs many nats, their gradient can ruin the
    language model: by default the head reads the hidden states and does not move them (``detach``). ``warmup_steps`` lets the head learn
    alone first. In these steps the gradient norm, and so its clip, is that of the head alone.
    """

    learning_rate: float | None = Field(None, gt=0, description="learning rate of the value head; null: the student's")
    warmup_steps: CountOrZero = Field(0, description="number of first steps in which only the value head learns")
    detach: bool = Field(True, description="keep the value head's gradient out of the language model; false: the head's loss trains it too")
    # The default is the rate of the soft updates of SAC (Haarnoja et al. 2018, table 1).
    target_tau: float = Field(
        0.005, gt=0, le=1, description="share of the student in each update of the target network, for objectives with target_network: true"
    )


class PeftConfig(Section):
    """Train LoRA adapters; the student's own weights stay as they are."""

    lora: dict[str, Any] = Field(description="arguments of peft.LoraConfig, for example {r: 16, lora_alpha: 32, target_modules: all-linear}")
    merge: bool = Field(False, description="save a whole model with the adapters merged into it, not the adapters alone")


class HeadConfig(Section):
    """Set how the student's logits are computed. In a recipe the name may stand alone."""

    name: Literal["auto", "full", "chunked", "candidates", "sampled"] = Field(
        "auto",
        description="full: all logits at once; chunked: a block at a time, exact; candidates: those of candidates alone, exact for objectives "
        "without log-partition; sampled: candidates and random tokens, an estimate; auto: the cheapest exact one",
    )
    samples: Count | None = Field(None, description="sampled: number of random tokens that stand for all others in a step; null: 4096")

    @model_validator(mode="after")
    def _own(self) -> Self:
        if self.samples is not None and self.name != "sampled":
            raise ValueError(f"samples is a setting of head: sampled, not of {self.name}: leave it out")
        return self

    def shaping(self) -> dict[str, Any] | None:
        """Return the settings that shape a student: those of an estimate. The exact heads give the same student but for rounding."""
        return self.model_dump() if self.name == "sampled" else None


HeadChoice = Annotated[HeadConfig, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]


class MonitorConfig(Section):
    """Set what is logged while a student trains, when training stops early, and which checkpoints are kept."""

    early_stopping_patience: Count | None = Field(
        None, description="number of validations in a row without a better one after which training stops; null: never"
    )
    log_completions: CountOrZero = Field(
        0, description="number of validation prompts that the student answers at every validation, for people to read"
    )
    keep_checkpoints: bool = Field(False, description="keep the checkpoints with their optimizer states after the student is saved")


class BaselineConfig(Section):
    """Describe a method trained for comparison. In a recipe its objective may stand alone."""

    objective: Terms = Field(description="objective: its name, its name with arguments, or a list of objectives with weights")
    arguments: dict[str, Any] = Field(default={}, description="arguments that differ from train.arguments, such as another learning rate")
    on_policy: OnPolicyConfig | None = Field(None, description="student roll-outs of this baseline; null: train.on_policy")
    value: ValueConfig | None = Field(None, description="value head of this baseline; null: train.value")
    head: HeadChoice | None = Field(None, description="how this baseline's logits are computed; null: train.head")


class MethodConfig(Section):
    """Set how one student is trained. With its start, its data and a seed it is all that shapes the student."""

    objective: Terms = Field(description="objective: its name, its name with arguments, or a list of objectives with weights")
    teacher_top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="p of the action space, at most rollout.teacher_top_p (null); 1.0: all tokens, the teacher runs while the student trains",
    )
    candidate_rule: CandidateRule | None = Field(None, description="rule that cuts the candidates further than p; null: none")
    origins: Origins = Field(default=["teacher"], min_length=1, max_length=1, description="whose answers to learn from: teacher or human")
    on_policy: OnPolicyConfig | None = Field(None, description="student roll-outs among the training data; null: none")
    lm: LmConfig | None = Field(None, description="language-modelling term on a corpus; null: none")
    value: ValueConfig = Field(ValueConfig(), description="value head and target network, for objectives that have them")
    head: HeadChoice = Field(HeadConfig(), description="how the student's logits are computed while it is trained")
    peft: PeftConfig | None = Field(None, description="LoRA adapters to train instead of all weights; null: all weights")
    monitor: MonitorConfig = Field(MonitorConfig(), description="what is logged and kept while a student trains")
    arguments: dict[str, Any] = Field(default={}, description="arguments of transformers.TrainingArguments")

    @property
    def own_text(self) -> OnPolicyConfig | None:
        """Return the settings of the student's own text; None if the student writes none (``lmbda: 0`` is none too)."""
        return self.on_policy if self.on_policy is not None and self.on_policy.lmbda > 0 else None


class TrainConfig(MethodConfig):
    """Set distillation by an objective, and baselines from the same start on the same data, each with every seed."""

    baselines: dict[str, BaselineConfig] = Field(
        default={}, description="students trained for comparison: name → objective, or objective with arguments, on_policy, value and head"
    )
    seeds: list[Seed] = Field(
        default=[0], min_length=1, description="training seeds: every method is trained once with each; by default the recipe's seed"
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError(f"seeds must differ from each other, got {value}")
        return value

    @field_validator("baselines", mode="before")
    @classmethod
    def _baselines(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name in RESERVED_SYSTEMS or str(name).startswith(RESERVED_PREFIX) or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"{name!r} can't name a baseline: use letters, digits, _ and -, none of {RESERVED_SYSTEMS}, and no {RESERVED_PREFIX} first"
                )
        if not isinstance(value, dict):
            return value
        return {k: v if isinstance(v, dict | BaselineConfig) and "objective" in dict(v) else {"objective": v} for k, v in value.items()}

    def methods(self) -> dict[str, MethodConfig]:
        """Return name → method of all students: the baselines in their order, then ``distilled``."""
        shared = {name: getattr(self, name) for name in MethodConfig.model_fields}
        found = {}
        for name, own in self.baselines.items():
            changed = {"objective": own.objective, "arguments": {**self.arguments, **own.arguments}}
            changed |= {key: getattr(own, key) for key in ("on_policy", "value", "head") if getattr(own, key) is not None}
            found[name] = MethodConfig(**{**shared, **changed})
        return found | {DISTILLED: MethodConfig(**shared)}


DISTILLED = "distilled"
# Systems that every recipe has, and other names in ``output_dir/latest``.
RESERVED_SYSTEMS = ("teacher", "start", "sft", "distilled", "report", "evaluation")
RESERVED_PREFIX = "rollouts-"


class EvaluationConfig(Sampling):
    """Set what is measured on the test prompts, in the same way for every system."""

    top_p: float = Field(0.8, gt=0, le=1, description="share of probability that tokens are sampled from (nucleus sampling)")
    num_generations: Count = Field(1, description="number of answers for each prompt and system")
    batch_size: Count = Field(32, description="number of answers generated at once")
    dtype: Dtype = Field("bfloat16", description="dtype in which all systems run while they are evaluated")
    reference: Literal["teacher", "human"] = Field(
        "teacher", description="whose answer ROUGE-L compares with: the teacher's, or those in the prompt file"
    )
    num_samples_shown: CountOrZero = Field(8, description="number of prompts whose answers the report shows")


class Recipe(Section):
    """Describe one experiment."""

    title: str = Field("tdistill run", description="title of the report and of the student's model card")
    output_dir: str = Field(description="directory of all results")
    seed: Seed = Field(
        DEFAULT_SEED, description="seed of roll-outs, SFT and training where they set none; evaluation's is this one plus 1000003"
    )
    data: DataConfig = Field(description="prompts")
    teacher: TeacherConfig = Field(description="model to imitate")
    student: StudentConfig = Field(description="model to train")
    rollout: RolloutConfig = Field(RolloutConfig(), description="how the teacher answers, and what is recorded")
    sft: SftConfig | None = Field(None, description="supervised fine-tuning before distillation; null: distil from the start itself")
    train: TrainConfig = Field(description="distillation, and baselines")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is measured on the test prompts")

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        """Fill in what one section takes from another where it sets nothing of its own."""
        if not isinstance(value, Mapping):
            return value
        rollout = get(value, "rollout", {})
        # A value of the wrong type is reported where it stands, and nowhere else.
        seed = _whole(get(value, "seed", DEFAULT_SEED), DEFAULT_SEED, 2**32)
        default = Sampling.model_fields["max_completion_length"].default
        length = _whole(get(rollout, "max_completion_length", default), default, MOST + 1)
        evaluation = {"max_completion_length": length, "seed": (seed + EVALUATION_SEED_OFFSET) % 2**32}
        own = {
            "rollout": filled(value.get("rollout", {}), seed=seed),  # a section that is null is refused
            "train": filled(value.get("train"), seeds=[seed]),
            "evaluation": filled(value.get("evaluation", {}), **evaluation),
        }
        if value.get("sft") is not None:
            own["sft"] = filled(value["sft"], seed=seed)
        return {**value, **own}

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.evaluation.seed == self.rollout.seed:
            raise ValueError(
                f"evaluation.seed and rollout.seed are both {self.rollout.seed}: the teacher's answers would repeat its references. "
                "Leave evaluation.seed out, or give another"
            )
        return self


def _whole(value: Any, default: int, below: int) -> int:
    """Return a value if it is a whole number from 0 up to, but not including, ``below``; else the default."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below else default
