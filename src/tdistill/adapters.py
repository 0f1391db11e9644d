"""LoRA through PEFT: the student's own weights stay, low-rank adapters are trained and saved."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tdistill.errors import ConfigError, ModelError, nearest

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def require_peft() -> None:
    """Raise ``ConfigError`` where PEFT is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("LoRA needs the package peft: pip install 'tdistill[peft]'")


def check_lora(arguments: dict[str, Any]) -> None:
    """Check ``peft.LoraConfig``'s arguments before anything long starts.

    Raises:
        ConfigError: PEFT is missing, an unknown argument (the nearest is named), or one that PEFT refuses.
    """
    require_peft()
    from peft import LoraConfig

    known = LoraConfig.__dataclass_fields__
    for key in arguments:
        if key not in known:
            raise ConfigError(f"train.peft.lora.{key} is no argument of peft.LoraConfig.{nearest(key, known)}")
    try:
        LoraConfig(task_type="CAUSAL_LM", **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.peft.lora: {error}") from None


def add_lora(lm: PreTrainedModel, arguments: dict[str, Any]) -> Any:
    """The model with adapters, the only weights with gradient.

    Raises:
        ConfigError: none of the model's modules matches; those that it has are named.
    """
    check_lora(arguments)
    from peft import LoraConfig, get_peft_model

    try:
        adapted = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", **arguments))
    except ValueError as error:
        modules = sorted({name.rsplit(".", 1)[-1] for name, m in lm.named_modules() if type(m).__name__ == "Linear"})
        raise ConfigError(f"train.peft.lora does not fit the student: {error} Its linear modules: {', '.join(modules)}.") from None
    lm.enable_input_require_grads()  # else activation checkpointing finds no gradient to the first adapter
    return adapted


def is_adapter(directory: Path) -> bool:
    """The directory holds adapters, not a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def is_adapted(lm: Any) -> bool:
    """The model has adapters. Whoever made it so has imported PEFT: nobody else need have it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(lm, peft.PeftModel)


def bare_model(lm: Any) -> PreTrainedModel:
    """Return the model itself, without the wrapper that PEFT puts around it."""
    return lm.get_base_model() if is_adapted(lm) else lm


def base_directory(directory: Path) -> Path:
    """The model that the adapters in ``directory`` were trained on.

    Raises:
        ModelError: it is not there any more.
    """
    named = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if not Path(named).is_dir():
        raise ModelError(f"{directory} holds adapters of {named!r}, which is no directory here. Train with merge: true for a whole model.")
    return Path(named)


def merged(base: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The base with the adapters of ``directory`` added to its weights."""
    require_peft()
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(directory)).merge_and_unload()


def load_adapter_weights(adapted: Any, directory: Path) -> None:
    """Read back saved adapters, in place.

    Raises:
        ModelError: the files are missing, or are those of other adapters.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    path = directory / ADAPTER_WEIGHTS
    state = load_file(path) if path.is_file() else {}
    if state.keys() != get_peft_model_state_dict(adapted).keys():
        raise ModelError(f"{directory} does not hold this student's adapters.")
    set_peft_model_state_dict(adapted, state)
