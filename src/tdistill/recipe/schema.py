"""Define a recipe: one frozen, strict section for each room of the library. A room takes its section as it is; no field is copied by hand.

Defaults that depend on another section (a seed, a length, a nucleus) are filled in when a recipe is validated, so that whoever reads a
section reads the value that counts.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tdistill.recipe.plain import find_unplain

MOST = 10_000_000  # of any count: above it memory or patience ends, and a typing error is likelier
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
# Beyond these bounds logits over a temperature leave what float32 can tell apart.
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]


class Strict(BaseModel):
    """Refuse unknown keys, wrong types, and values that no recipe file can hold: NaN, infinity, integers beyond 64 bits, objects."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        found = find_unplain(value, numbers_only=True) if isinstance(value, dict) else None
        if found is not None:
            raise ValueError(f"{found.place or 'the section'} {found.problem}")
        return value


def _evaluation_seed(seed: Any) -> Any:
    return (seed + EVALUATION_SEED_OFFSET) % 2**32 if isinstance(seed, int) and not isinstance(seed, bool) else seed


def _get(section: Any, key: str, default: Any) -> Any:
    """Return a section's value, or the default where it is not set. A section is a mapping or was validated before."""
    found = section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)
    return default if found is None else found


def _filled(section: Any, **defaults: Any) -> Any:
    """Return a section with defaults for the keys that are missing or null. What is no section is left for validation to refuse."""
    if isinstance(section, BaseModel):
        section = {key: getattr(section, key) for key in section.model_fields_set}
    if not isinstance(section, Mapping):
        return section
    return {**section, **{key: default for key, default in defaults.items() if section.get(key) is None}}


class DataConfig(Strict):
    """Name the prompt sets: ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` files, or hub data sets (``owner/name:split``)."""

    train: str = Field(description="prompts to learn from")
    valid: str = Field(description="prompts that choose checkpoints and settings")
    test: str = Field(description="prompts that only the final evaluation sees")
    max_train_prompts: Count | None = Field(None, description="only the first n")
    max_valid_prompts: Count | None = Field(None)
    max_test_prompts: Count | None = Field(None)
    max_prompt_length: Count = Field(512, description="tokens, template included")
    overlong: Literal["skip", "refuse"] = Field("skip", description="longer prompts are dropped and counted, or an error")
    overlap: Literal["refuse", "drop", "count"] = Field(
        "refuse", description="prompts of test or valid that are in train too: an error, dropped from test and valid, or only counted"
    )


class TeacherConfig(Strict):
    """Name the model to imitate."""

    teacher_model_name_or_path: str = Field(description="directory, .gguf file, packaged:smollm2, or hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantization: dict[str, Any] | None = Field(
        None, description="quantization_config of transformers, e.g. {quant_method: bitsandbytes, load_in_8bit: true}"
    )
    trust_remote_code: bool = False


class StudentConfig(Strict):
    """Describe the model to train: some of the teacher's layers, or a pretrained model with the same vocabulary."""

    init: Literal["prune", "pretrained"] = "prune"
    num_hidden_layers: Count | None = Field(None, description="prune: how many of the teacher's layers to keep (the outer ones)")
    keep_layers: list[int] | None = Field(None, description="prune: which, from 0, instead of the outer ones")
    student_model_name_or_path: str | None = Field(None, description="pretrained: directory or hub id")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "StudentConfig":
        if self.init == "pretrained" and not self.student_model_name_or_path:
            raise ValueError("init: pretrained needs student_model_name_or_path")
        if self.init == "pretrained" and (self.num_hidden_layers is not None or self.keep_layers is not None):
            raise ValueError("init: pretrained keeps all layers of its model: leave num_hidden_layers and keep_layers out")
        if self.init == "prune" and self.student_model_name_or_path is not None:
            raise ValueError("student_model_name_or_path is read with init: pretrained only; init: prune makes the student from the teacher")
        if self.init == "prune" and self.num_hidden_layers is None and self.keep_layers is None:
            raise ValueError("init: prune needs num_hidden_layers or keep_layers")
        if self.keep_layers is not None and (not self.keep_layers or len(set(self.keep_layers)) != len(self.keep_layers)):
            raise ValueError(f"keep_layers must name different layers, at least one, got {self.keep_layers}")
        if self.keep_layers is not None and self.num_hidden_layers not in (None, len(self.keep_layers)):
            raise ValueError(f"num_hidden_layers={self.num_hidden_layers}, but keep_layers names {len(self.keep_layers)}")
        return self


Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Answers of an evaluation are drawn with other noise than the roll-outs: the teacher must not repeat its own reference.
EVALUATION_SEED_OFFSET = 1_000_003


class Sampling(Strict):
    """Set the distribution that text is drawn from: softmax(logits / temperature), cut to ``top_k``, then to the nucleus ``top_p``."""

    temperature: Temperature = Field(1.0, description="temperature of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of sampling; rollout.top_p is rollout.teacher_top_p by default")
    top_k: CountOrZero = Field(0, description="most tokens to sample from; 0: no limit")
    max_completion_length: Count = Field(256, description="longest answer in tokens; evaluation's is the roll-outs' by default")
    seed: Seed = Field(0, description="seed of the noise; by default from the recipe's seed")


class RolloutConfig(Sampling):
    """Set how the teacher answers the prompts, and what is recorded for every token."""

    teacher_top_p: float = Field(0.8, gt=0, le=1, description="p of the recorded action space; training may use any smaller p")
    max_candidates: Count | None = Field(None, description="cap on |A_p|")
    num_generations: Count = Field(1, description="responses per prompt")
    batch_size: Count = Field(32, description="responses generated at once")
    shard_batches: Count = Field(4, description="batches per shard: a stop loses at most one shard")
    score_references: bool = Field(False, description="score the prompts' own answers into a cache too (origin human)")

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        return _filled(value, top_p=_get(value, "teacher_top_p", 0.8))

    @field_validator("teacher_top_p")
    @classmethod
    def _cacheable(cls, p: float) -> float:
        if p == 1.0:
            raise ValueError("p = 1 is never cached (every token would be a candidate): roll out at p < 1 and set train.teacher_top_p: 1.0")
        return p


Terms = Annotated[dict[str, Any] | list[dict[str, Any]], BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
Origins = list[Literal["teacher", "human"]]


class SftConfig(Strict):
    """Set the supervised fine-tuning before distillation. It uses the same trainer with ``nll``."""

    origins: Origins = Field(default=["teacher"], min_length=1, max_length=1, description="whose answers to learn")
    seed: Seed = Field(0, description="seed of the order of the data; by default the recipe's seed")
    arguments: dict[str, Any] = Field(default={}, description="passed to transformers.TrainingArguments")

    def method(self) -> "MethodConfig":
        """Return the training of the SFT student as a method."""
        return MethodConfig(objective={"name": "nll"}, origins=self.origins, arguments=self.arguments)


class CandidateRule(Strict):
    """Cut the top-p candidates further; ``mdp.candidates.rule_mask`` explains each rule."""

    name: Literal["top_k", "min_p", "adaptive"]
    value: float = Field(gt=0, description="top_k: tokens; min_p: share of the first token's probability; adaptive: nats per candidate")

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.name == "top_k" and not (self.value >= 1 and float(self.value).is_integer()):
            raise ValueError(f"candidate rule top_k: value must be a whole number ≥ 1, got {self.value}")
        if self.name == "min_p" and self.value > 1.0:
            raise ValueError(f"candidate rule min_p: value must be in (0, 1], got {self.value}")
        return self


class OnPolicyConfig(Strict):
    """Add the student's own roll-outs to the training data: the student answers training prompts, and the teacher scores these answers."""

    lmbda: float = Field(0.5, ge=0, le=1, description="share of responses that the student wrote; 0: none")
    refresh_steps: Count | None = Field(None, description="optimizer steps between roll-outs; null: once, by the start")
    replay: Count = Field(
        1, description="past rounds to sample from; with 2, every response is used about twice and a round generates half as many"
    )
    temperature: Temperature = Field(1.0, description="temperature of the student's sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the student's sampling")
    teacher_mix: float = Field(0.0, ge=0, lt=1, description="share of the teacher in every token's distribution")


class LmConfig(Strict):
    """Add lm_coef·[(1 − kd_ratio)·CE + kd_ratio·KL(teacher ‖ student)] on a plain-text corpus: every example brings one packed window.

    CE and KL are each a mean per token of the windows.
    """

    corpus: str = Field(description=".txt (paragraphs apart by blank lines) or .jsonl with text; or either as .gz")
    lm_coef: float = Field(1.0, gt=0, description="weight of the term")
    kd_ratio: float = Field(0.0, ge=0, le=1, description="share of KL to the teacher in it, the rest is cross-entropy; above 0: teacher online")
    window: int = Field(256, ge=2, le=MOST, description="tokens")

    @property
    def reads_teacher(self) -> bool:
        """Tell whether the term needs the teacher online."""
        return self.kd_ratio > 0.0


class ValueConfig(Strict):
    """Set how the value head learns, for objectives that have one, and how fast a target network follows.

    The value head starts at 0. Until it has learnt the level of the returns, an advantage measured from it says that every token was a
    bad one: ``warmup_steps`` lets it learn alone first. In these steps the gradient norm, and so its clip, is that of the head alone.
    """

    learning_rate: float | None = Field(None, gt=0, description="of the value head; by default the student's")
    warmup_steps: CountOrZero = Field(0, description="first steps in which the value head alone learns")
    detach: bool = Field(False, description="the value head's loss does not move the language model")
    # The default is the rate of the soft updates of SAC (Haarnoja et al. 2018, table 1).
    target_tau: float = Field(0.005, gt=0, le=1, description="Polyak rate, for objectives with target_network: true")


class PeftConfig(Strict):
    """Train LoRA adapters; the student's own weights stay as they are."""

    lora: dict[str, Any] = Field(description="passed to peft.LoraConfig, e.g. {r: 16, lora_alpha: 32, target_modules: all-linear}")
    merge: bool = Field(False, description="save whole models, the adapters merged")


class MonitorConfig(Strict):
    """Set what is logged while a student trains, when training stops early, and which checkpoints are kept."""

    early_stopping_patience: Count | None = Field(None, description="validations without a better one, after which a run stops")
    log_completions: CountOrZero = Field(0, description="validation prompts answered at every validation, for eyes")
    keep_checkpoints: bool = Field(False, description="keep optimizer checkpoints after the student is saved")


class BaselineConfig(Strict):
    """Describe a method trained for comparison. In a recipe its objective may stand alone."""

    objective: Terms = Field(description="name and arguments, or a weighted list")
    arguments: dict[str, Any] = Field(default={}, description="what differs from train.arguments, such as a learning rate of its own")
    on_policy: OnPolicyConfig | None = Field(None, description="own student roll-outs; by default train.on_policy")
    value: ValueConfig | None = Field(None, description="own settings of the value head; by default train.value")


class MethodConfig(Strict):
    """Set how one student is trained. With its start, its data and a seed it is all that shapes the student."""

    objective: Terms = Field(description="name and arguments, or a weighted list")
    teacher_top_p: float | None = Field(None, gt=0, le=1, description="p of the action space, up to the roll-outs'; 1.0: teacher online")
    candidate_rule: CandidateRule | None = Field(None, description="cut the candidates further than p")
    origins: Origins = Field(default=["teacher"], min_length=1, max_length=1, description="whose answers to learn from")
    on_policy: OnPolicyConfig | None = Field(None, description="mix in the student's own roll-outs")
    lm: LmConfig | None = Field(None, description="add language modelling on a corpus")
    value: ValueConfig = ValueConfig()
    peft: PeftConfig | None = Field(None, description="train LoRA adapters")
    monitor: MonitorConfig = MonitorConfig()
    arguments: dict[str, Any] = Field(default={}, description="passed to transformers.TrainingArguments")


class TrainConfig(MethodConfig):
    """Set distillation by an objective, and baselines from the same start on the same data, each with every seed."""

    baselines: dict[str, BaselineConfig] = Field(default={}, description="name → objective, or objective and arguments")
    seeds: list[Seed] = Field(default=[0], min_length=1, description="training seeds: one student each; by default the recipe's seed")

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
            if name in RESERVED_SYSTEMS or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"{name!r} can't name a baseline: use letters, digits, _ and -, and none of {RESERVED_SYSTEMS}")
        if not isinstance(value, dict):
            return value
        return {k: v if isinstance(v, dict | BaselineConfig) and "objective" in dict(v) else {"objective": v} for k, v in value.items()}

    def methods(self) -> dict[str, MethodConfig]:
        """Return name → method of all students: the baselines in their order, then ``distilled``."""
        shared = {name: getattr(self, name) for name in MethodConfig.model_fields}
        found = {}
        for name, own in self.baselines.items():
            changed = {"objective": own.objective, "arguments": {**self.arguments, **own.arguments}}
            changed |= {key: getattr(own, key) for key in ("on_policy", "value") if getattr(own, key) is not None}
            found[name] = MethodConfig(**{**shared, **changed})
        return found | {DISTILLED: MethodConfig(**shared)}


DISTILLED = "distilled"
RESERVED_SYSTEMS = ("teacher", "start", "sft", "distilled")


class EvaluationConfig(Sampling):
    """Set what is measured on the test prompts, in the same way for every system."""

    top_p: float = Field(0.8, gt=0, le=1, description="nucleus of sampling")
    num_generations: Count = Field(1, description="answers per prompt and system")
    batch_size: Count = Field(32, description="answers generated at once")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    reference: Literal["teacher", "human"] = Field("teacher", description="whose answer ROUGE-L compares with")
    num_samples_shown: CountOrZero = Field(8, description="prompts shown in the report")


class Recipe(Strict):
    """Describe one experiment."""

    title: str = "tdistill run"
    output_dir: str
    seed: Seed = Field(17, description="seed of the roll-outs, of SFT, of training and (with an offset) of the evaluation, where they set none")
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    rollout: RolloutConfig = RolloutConfig()
    sft: SftConfig | None = Field(None, description="left out: distil from the start itself")
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        """Fill in what one section takes from another where it sets nothing of its own."""
        if not isinstance(value, Mapping):
            return value
        seed, rollout = _get(value, "seed", 17), _get(value, "rollout", {})
        length = _get(rollout, "max_completion_length", Sampling.model_fields["max_completion_length"].default)
        own = {
            "rollout": _filled(rollout, seed=seed),
            "train": _filled(value.get("train"), seeds=[seed]),
            "evaluation": _filled(_get(value, "evaluation", {}), max_completion_length=length, seed=_evaluation_seed(seed)),
        }
        if value.get("sft") is not None:
            own["sft"] = _filled(value["sft"], seed=seed)
        return {**value, **own}

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.evaluation.seed == self.rollout.seed:
            raise ValueError(
                f"evaluation.seed and rollout.seed are both {self.rollout.seed}: the teacher's answers would repeat its references. "
                "Leave evaluation.seed out, or give another"
            )
        return self
