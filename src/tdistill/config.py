"""Define a recipe: one frozen, strict model for each stage. No behaviour beyond checking; ``recipe.load_recipe`` reads the file."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tdistill.plain import find_unplain

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


class RolloutConfig(Strict):
    """Set how the teacher answers the prompts, and what is recorded for every token."""

    teacher_top_p: float = Field(0.8, gt=0, le=1, description="p of the action space recorded; training may use any smaller p")
    max_candidates: Count | None = Field(None, description="cap on |A_p|")
    temperature: Temperature = Field(1.0, description="of sampling")
    top_p: float | None = Field(None, gt=0, le=1, description="of sampling; by default teacher_top_p")
    top_k: CountOrZero = Field(0, description="of sampling; 0 = no cut")
    num_generations: Count = Field(1, description="responses per prompt")
    max_completion_length: Count = Field(256, description="tokens")
    batch_size: Count = Field(32)
    shard_batches: Count = Field(4, description="batches per shard: what a kill can cost")
    score_references: bool = Field(False, description="score the prompts' own answers into the cache too (origin human)")

    @field_validator("teacher_top_p")
    @classmethod
    def _cacheable(cls, p: float) -> float:
        if p == 1.0:
            raise ValueError("p = 1 is never cached (every token would be a candidate): roll out at p < 1 and set train.teacher_top_p: 1.0")
        return p


class SftConfig(Strict):
    """Set the supervised fine-tuning before distillation. It uses the same trainer with ``nll``."""

    origins: list[Literal["teacher", "human"]] = Field(default=["teacher"], min_length=1, max_length=1, description="whose answers to learn")
    arguments: dict[str, Any] = Field(default={}, description="passed to transformers.TrainingArguments")


class CandidateRuleConfig(Strict):
    """Cut the top-p candidates further; ``mdp.candidates.CandidateRule`` explains each rule."""

    name: Literal["top_k", "min_p", "adaptive"]
    value: float = Field(gt=0, description="top_k: tokens; min_p: share of the first token's probability; adaptive: nats per candidate")


class OnPolicyConfig(Strict):
    """Add the student's own roll-outs to the training data: the student answers training prompts, and the teacher scores these answers."""

    lmbda: float = Field(0.5, ge=0, le=1, description="share of responses that the student wrote; 0: none")
    refresh_steps: Count | None = Field(None, description="optimizer steps between roll-outs; null: once, by the start")
    replay: Count = Field(1, description="rounds whose roll-outs are drawn from; a round rolls out so many times fewer")
    temperature: Temperature = Field(1.0, description="of the student's sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="of the student's sampling")
    teacher_mix: float = Field(0.0, ge=0, lt=1, description="share of the teacher in every token's distribution")


class LmConfig(Strict):
    """Add a language-modelling term on a plain-text corpus: every example brings one packed window."""

    corpus: str = Field(description=".txt (paragraphs apart by blank lines) or .jsonl with text; or either as .gz")
    lm_coef: float = Field(1.0, gt=0, description="weight of the term")
    kd_ratio: float = Field(0.0, ge=0, le=1, description="share of KL to the teacher in it, the rest is cross-entropy; above 0: teacher online")
    window: int = Field(256, ge=2, le=MOST, description="tokens")


class ValueConfig(Strict):
    """Set how the value head learns, for objectives that have one, and how fast a target network follows."""

    learning_rate: float | None = Field(None, gt=0, description="of the value head; by default the student's")
    warmup_steps: CountOrZero = Field(0, description="first steps in which the value head alone learns")
    detach: bool = Field(False, description="the value head's loss does not move the language model")
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
    """Describe a student trained for comparison. In a recipe its objective may stand alone."""

    objective: dict[str, Any] | list[dict[str, Any]] = Field(description="name and arguments, or a weighted list")
    arguments: dict[str, Any] = Field(default={}, description="what differs from train.arguments, such as a learning rate of its own")
    on_policy: OnPolicyConfig | None = Field(None, description="own student roll-outs; by default train.on_policy")
    value: ValueConfig | None = Field(None, description="own settings of the value head; by default train.value")


class TrainConfig(Strict):
    """Set distillation by an objective, and baselines from the same start on the same batches."""

    objective: dict[str, Any] | list[dict[str, Any]] = Field(description="name and arguments, or a weighted list")
    baselines: dict[str, BaselineConfig] = Field(default={}, description="name → objective, or objective and arguments")
    teacher_top_p: float | None = Field(None, gt=0, le=1, description="p of the action space, up to the roll-outs'; 1.0 = teacher online")
    candidate_rule: CandidateRuleConfig | None = Field(None, description="cut the candidates further than p")
    origins: list[Literal["teacher", "human"]] = Field(default=["teacher"], min_length=1, max_length=1)
    on_policy: OnPolicyConfig | None = Field(None, description="mix in the student's own roll-outs")
    lm: LmConfig | None = Field(None, description="add language modelling on a corpus")
    value: ValueConfig = ValueConfig()
    peft: PeftConfig | None = Field(None, description="train LoRA adapters")
    monitor: MonitorConfig = MonitorConfig()
    arguments: dict[str, Any] = Field(default={}, description="passed to transformers.TrainingArguments")

    @field_validator("objective", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("baselines", mode="before")
    @classmethod
    def _baselines(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name in RESERVED_SYSTEMS or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"{name!r} can't name a baseline: use letters, digits, _ and -, and none of {RESERVED_SYSTEMS}")
        if not isinstance(value, dict):
            return value
        return {k: v if isinstance(v, dict | BaselineConfig) and "objective" in dict(v) else {"objective": v} for k, v in value.items()}


RESERVED_SYSTEMS = ("teacher", "start", "sft", "distilled")


class EvaluationConfig(Strict):
    """Set what is measured on the test prompts, in the same way for every system."""

    temperature: Temperature = Field(1.0)
    top_p: float = Field(0.8, gt=0, le=1)
    num_generations: Count = Field(1, description="answers per prompt and system")
    max_completion_length: Count | None = Field(None, description="by default the roll-outs'")
    batch_size: Count = Field(32)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    reference: Literal["teacher", "human"] = Field("teacher", description="whose answer ROUGE-L compares with")
    num_samples_shown: CountOrZero = Field(8, description="prompts shown in the report")


class Recipe(Strict):
    """Describe one experiment."""

    title: str = "tdistill run"
    output_dir: str
    seed: int = Field(17, ge=0, lt=2**32)
    data: DataConfig
    teacher: TeacherConfig
    student: StudentConfig
    rollout: RolloutConfig = RolloutConfig()
    sft: SftConfig | None = Field(None, description="left out: distil from the start itself")
    train: TrainConfig
    evaluation: EvaluationConfig = EvaluationConfig()
