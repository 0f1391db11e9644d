"""Load teachers and students. Weights come from safetensors or GGUF files, never from a pickle."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tdistill.models.find import ModelSource, base_of, read_config, whole_model
from tdistill.models.lora import is_adapter, merged
from tdistill.models.weights import foreign, load_whole, say_once
from tdistill.runtime.errors import ModelError
from tdistill.runtime.files import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    source: ModelSource,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    quantization: dict[str, Any] | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a causal LM in eval mode on the CPU: from safetensors, a dequantised GGUF, or adapters merged into their base.

    Args:
        source: from ``find_model``.
        dtype: dtype of the weights, or the one in which a quantised model computes.
        trust_remote_code: run the code that lies beside the model.
        quantization: transformers' ``quantization_config``. A quantised model is loaded on the device that computes, and can't be trained.
        attn_implementation: transformers' name of the code that computes the attention; None: its default for this model.

    Raises:
        ModelError: the dtype is unknown, the files can't be read as a causal LM or lack weights, the attention can't be computed so, or see
            ``check_quantization``.
    """
    if quantization:
        check_quantization(quantization)
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    if source.gguf_file and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{source.name!r} is a GGUF file, which needs the package gguf: pip install 'tdistill[demo]'")
    if is_adapter(source.directory):
        if quantization:
            raise ModelError(f"{source.name!r} holds adapters, which can't be merged into a quantised model: save the merged model first.")
        return _load_adapted(source, dtype, trust_remote_code, attn_implementation)
    _check_generation_config(source.directory)
    placed = {"quantization_config": dict(quantization), "device_map": {"": compute_device()}} if quantization else {}
    given = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code, **source.load_kwargs, **placed}
    if attn_implementation is not None:
        given["attn_implementation"] = attn_implementation
    model = load_whole(auto_class(source), source.directory, source.name, **given)
    _check_chosen(model, attn_implementation, source.name)
    if source.gguf_file:
        _forget_gguf(model)
    _switch_router_loss_off(model, source.name)
    return model.eval()


def _check_chosen(model: PreTrainedModel, attn_implementation: str | None, name: str) -> None:
    """Check that transformers took the attention that was asked for: for some models it takes another and logs a line."""
    taken = model.config._attn_implementation
    if attn_implementation not in (None, taken):
        raise ModelError(f"{name!r}: attn_implementation is {attn_implementation}, but transformers uses {taken} for this model. Set that one.")


def _check_generation_config(directory: Path) -> None:
    """Refuse a damaged ``generation_config.json``: transformers would go on without it, and so without the tokens that end a text."""
    path = directory / "generation_config.json"
    if path.exists() and not isinstance(read_json(path, ModelError, "Save the model again."), dict):
        raise ModelError(f"{path} must hold an object. Save the model again.")


def auto_class(source: ModelSource) -> Any:
    """Return the class that loads a model. Some models that also read images (Qwen2-VL) work as a causal LM, though transformers does not list
    them as one.
    """
    kind = None if source.gguf_file else str(read_config(source.directory).get("model_type"))
    reads_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def _switch_router_loss_off(model: PreTrainedModel, name: str) -> None:
    # transformers would compute a load-balancing loss in every forward pass, which fails while text is written with a cache.
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
            say_once(f"{name}: output_router_logits is switched off, tdistill's losses have no term for the router of experts")


def _load_adapted(source: ModelSource, dtype: str, trust_remote_code: bool, attn_implementation: str | None) -> PreTrainedModel:
    whole_model(source)  # a circle of adapters ends here
    base = load_model(base_of(source), dtype, trust_remote_code, attn_implementation=attn_implementation)
    with foreign(f"Can't load the adapters in {source.directory}"):
        return merged(base, source.directory).eval()


def check_quantization(config: dict[str, Any]) -> None:
    """Check a ``quantization_config`` before a model is loaded.

    Raises:
        ModelError: transformers does not know the method, or its package is missing or does not work on this machine.
    """
    from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

    try:
        quantizer = AutoHfQuantizer.from_config(AutoQuantizationConfig.from_dict(dict(config)))
        quantizer.validate_environment(device_map={"": compute_device()})
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"teacher.quantization: {config} can't be used here: {error}") from error


def compute_device() -> torch.device:
    """Return the device on which models generate and score: this process's GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _forget_gguf(model: PreTrainedModel) -> None:
    # The weights were dequantised on loading, but config and model still call themselves GGUF: whoever loads what is saved from
    # here would look for packed weights.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
