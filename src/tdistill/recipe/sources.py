"""Define the sections of a recipe that name what comes from outside: prompts, the teacher, and the student's start."""

from typing import Any, Literal

from pydantic import Field, model_validator

from tdistill.recipe.section import Attention, Count, Dtype, Section


class DataConfig(Section):
    """Name the prompt sets: ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` files, or hub data sets (``owner/name:split``)."""

    train: str = Field(description="file or hub data set with the prompts to learn from")
    valid: str = Field(description="file or hub data set with the prompts that choose checkpoints and settings")
    test: str = Field(description="file or hub data set with the prompts that only the final evaluation reads")
    max_train_prompts: Count | None = Field(None, description="use only the first n training prompts; null: all")
    max_valid_prompts: Count | None = Field(None, description="use only the first n validation prompts; null: all")
    max_test_prompts: Count | None = Field(None, description="use only the first n test prompts; null: all")
    max_prompt_length: Count = Field(512, description="longest prompt in tokens, chat template included")
    overlong: Literal["skip", "refuse"] = Field(
        "skip", description="what to do with longer prompts: drop and count them (skip), or stop with an error (refuse)"
    )
    overlap: Literal["refuse", "drop", "count"] = Field(
        "refuse",
        description="prompts of test or valid that are in train too: stop with an error (refuse), drop them (drop), or only count them (count)",
    )


class TeacherConfig(Section):
    """Name the model to imitate."""

    teacher_model_name_or_path: str = Field(description="the teacher: a directory, a .gguf file, packaged:smollm2, or a hub id")
    dtype: Dtype = Field("bfloat16", description="dtype in which the teacher runs")
    quantization: dict[str, Any] | None = Field(
        None, description="quantization_config of transformers, for example {quant_method: bitsandbytes, load_in_8bit: true}; null: none"
    )
    attn_implementation: Attention | None = Field(None, description="what computes the teacher's attention; null: transformers' default")
    trust_remote_code: bool = Field(False, description="run the code that lies in the teacher's directory")


class StudentConfig(Section):
    """Describe the model to train: some of the teacher's layers, or a pretrained model with the same vocabulary."""

    init: Literal["prune", "pretrained"] = Field(
        "prune", description="where the student comes from: some layers of the teacher (prune), or a model of its own (pretrained)"
    )
    num_hidden_layers: Count | None = Field(
        None, description="with init: prune, the number of the teacher's layers to keep; they are taken from both ends"
    )
    keep_layers: list[int] | None = Field(
        None, description="with init: prune, the teacher's layers to keep, counted from 0, instead of num_hidden_layers"
    )
    student_model_name_or_path: str | None = Field(None, description="with init: pretrained, the student: a directory or a hub id")
    attn_implementation: Attention | None = Field(None, description="what computes the student's attention; null: transformers' default")
    trust_remote_code: bool = Field(False, description="run the code that lies in the student's directory")

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
