"""Build teacher and student on the meta device, where a parameter has a shape and takes no memory, and count."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tdistill.models.find import ModelSource, whole_model
from tdistill.models.load import auto_class
from tdistill.models.lora import add_lora
from tdistill.models.prune import check_layer_count, outer_layers, pruned_config
from tdistill.models.weights import foreign
from tdistill.recipe.schema import Recipe


@dataclass(frozen=True)
class ModelShape:
    """Hold what builds a model of a certain shape."""

    name: str
    config: PreTrainedConfig
    auto_class: Any
    trust_remote_code: bool = False
    attention: str | None = None  # what computes the attention; None: transformers' default

    def build(self, lora: dict[str, Any] | None = None) -> Any:
        """Return the model on the meta device, with adapters where ``lora`` has their arguments.

        Raises:
            ModelError: transformers can't build it.
            ConfigError: the adapters do not fit.
        """
        given: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": self.trust_remote_code}
        if self.attention is not None:
            given["attn_implementation"] = self.attention
        with foreign(f"Can't build {self.name!r} from its configuration"), torch.device("meta"):
            model = self.auto_class.from_config(self.config, **given)
        if lora is None:
            return model
        with torch.device("meta"):
            return add_lora(model, lora)

    @cached_property
    def size(self) -> "ModelSize":
        """Return the numbers of the whole model."""
        return size_of(self.build())


@dataclass(frozen=True)
class ModelSize:
    """Hold the numbers of a model that a plan needs."""

    parameters: int  # tied ones once
    trainable: int
    rows: int  # of the head
    width: int  # of the hidden state that the head reads
    layers: int
    embedding: int  # parameters of the input embedding, which no matrix product reads; 0 where the head shares them
    largest: int  # parameters of the largest tensor

    @property
    def products(self) -> int:
        """Return the parameters that take part in a matrix product for every token: all but an input embedding of its own."""
        return self.parameters - self.embedding


def size_of(model: Any) -> ModelSize:
    """Return the numbers of a model on any device."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    parameters = list(model.parameters())
    tied = embeddings.weight is head.weight
    return ModelSize(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        rows=head.weight.shape[0],
        width=head.weight.shape[1],
        layers=model.config.get_text_config().num_hidden_layers,
        embedding=0 if tied else embeddings.weight.numel(),
        largest=max(p.numel() for p in parameters),
    )


def shape_of(source: ModelSource, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of a model: of a directory, of a GGUF file's header, or of the base of adapters.

    Raises:
        ModelError: its configuration can't be read.
    """
    source = whole_model(source)
    with foreign(f"Can't read the configuration of {source.name!r}"):
        config = AutoConfig.from_pretrained(source.directory, trust_remote_code=trust_remote_code, **source.load_kwargs)
    return ModelShape(source.name, config, auto_class(source), trust_remote_code)


def student_shape(recipe: Recipe, teacher: ModelShape, pretrained: ModelSource | None) -> ModelShape:
    """Return the shape of the student: some of the teacher's layers, or a pretrained model.

    Raises:
        ModelError: the teacher has fewer layers, or the configuration can't be read.
    """
    student = recipe.student
    if pretrained is not None:
        return replace(shape_of(pretrained, student.trust_remote_code), attention=student.attn_implementation)
    total = teacher.config.get_text_config().num_hidden_layers
    layers = student.keep_layers or outer_layers(total, int(student.num_hidden_layers or 0))
    check_layer_count(total, len(layers))
    config = pruned_config(teacher.config, layers)
    return ModelShape("student", config, teacher.auto_class, teacher.trust_remote_code, student.attn_implementation)


def key_value_numbers(model: PreTrainedModel) -> int:
    """Return how many numbers a model on the meta device keeps for each token that it has read: keys and values of all layers.

    Sliding windows are shorter, so for them it is a bound.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    return sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values)) // ids.shape[1]
