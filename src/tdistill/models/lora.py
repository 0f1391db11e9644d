"""Train and save low-rank adapters (LoRA) through PEFT. The student's own weights do not change."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tdistill.runtime.errors import ConfigError, ModelError, brief, nearest
from tdistill.runtime.files import read_json
from tdistill.runtime.hints import describe_hint, fits, hints_of
from tdistill.runtime.paths import local_path

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def require_peft() -> None:
    """Raise ``ConfigError`` where PEFT is missing."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("LoRA needs the package peft: pip install 'tdistill[peft]'")


# Names that other libraries give to PEFT's arguments.
LORA_NAMES = {"rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "modules": "target_modules"}

LORA_REFUSED = {
    **dict.fromkeys(("task_type", "peft_type", "base_model_name_or_path", "auto_mapping", "revision"), "tdistill sets it"),
    "inference_mode": "no adapter would be trained",
    # PiSSA, OLoRA, CorDA, EVA, LoftQ: what is saved would be added to weights that it does not belong to.
    "init_lora_weights": "only true, false, gaussian and orthogonal leave the weights as they are that the adapters are saved for",
    "loftq_config": "it changes the weights that the adapters are saved for",
    "megatron_config": "Megatron's layers are not used here",
    "layer_replication": "it makes another model of the student, which the adapters' files do not hold",
}


def check_lora(arguments: dict[str, Any]) -> None:
    """Check ``peft.LoraConfig``'s arguments before anything long starts.

    Raises:
        ConfigError: PEFT is missing, or an argument is unknown (the nearest one is named) or refused by PEFT.
    """
    require_peft()
    from peft import LoraConfig

    hints = hints_of(LoraConfig)
    for key, value in arguments.items():
        place = f"train.peft.lora.{key}"
        if key not in hints:
            meant = f" Did you mean {LORA_NAMES[key]!r}?" if key in LORA_NAMES else nearest(key, hints)
            raise ConfigError(f"{place} is no argument of peft.LoraConfig.{meant}")
        if key in LORA_REFUSED and (key != "init_lora_weights" or value not in (True, False, "gaussian", "orthogonal")):
            raise ConfigError(f"{place} is not supported: {LORA_REFUSED[key]}. Leave it out.")
        if not fits(value, hints[key]):
            raise ConfigError(f"{place} must be {describe_hint(hints[key])}, got {brief(value)}.")
    for key, least in {"r": 1, "lora_alpha": 0, "lora_dropout": 0}.items():
        if arguments.get(key, least) < least:
            raise ConfigError(f"train.peft.lora.{key} must be at least {least}, got {brief(arguments[key])}.")
    if arguments.get("lora_dropout", 0) >= 1:
        raise ConfigError(f"train.peft.lora.lora_dropout must be below 1, got {brief(arguments['lora_dropout'])}.")
    for key, kind in {"rank_pattern": int, "alpha_pattern": int | float}.items():
        if any(isinstance(x, bool) or not isinstance(x, kind) or x <= 0 for x in (arguments.get(key) or {}).values()):
            raise ConfigError(f"train.peft.lora.{key} must give every pattern a number above 0.")
    try:
        LoraConfig(task_type="CAUSAL_LM", **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.peft.lora: {error}") from None


def add_lora(lm: PreTrainedModel, arguments: dict[str, Any]) -> Any:
    """Return the model with adapters. Only the adapters have a gradient.

    Raises:
        ConfigError: none of the model's modules matches (those that it has are named), adapters would change tied weights, or could
            never be merged.
    """
    check_lora(arguments)
    from peft import LoraConfig, get_peft_model

    tied = _tied(lm)
    try:
        adapted = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", **arguments))
    except ValueError as error:
        modules = sorted({name.rsplit(".", 1)[-1] for name, m in lm.named_modules() if type(m).__name__ == "Linear"})
        raise ConfigError(f"train.peft.lora does not fit the student: {error} Its linear modules: {', '.join(modules)}.") from None
    _refuse_tied(adapted, tied)
    if arguments.get("lora_bias"):
        _refuse_lost_bias(adapted)
    lm.enable_input_require_grads()  # else activation checkpointing finds no gradient to the first adapter
    return adapted


def _tied(lm: PreTrainedModel) -> dict[int, list[str]]:
    """Return the parameters that several modules share: id → their names."""
    names: dict[int, list[str]] = {}
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: found for key, found in names.items() if len(found) > 1}


def _refuse_tied(adapted: Any, tied: dict[int, list[str]]) -> None:
    # An adapter changes one module's weight. Saved or merged, it changes those of both, so the student would be another than the one
    # that was validated.
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for module in adapted.modules():
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        hit = [tied[id(p)] for p in inner.parameters() if id(p) in tied]
        if hit:
            raise ConfigError(
                f"train.peft.lora adapts weights that the student shares between modules ({', '.join(hit[0])}): adapters of the one are not "
                "adapters of the other. Leave them out of target_modules, modules_to_save and trainable_token_indices, or give a student "
                "with tie_word_embeddings: false."
            )


def _refuse_lost_bias(adapted: Any) -> None:
    # Adapters are merged where a student is loaded, and PEFT can't add their bias to a layer that has none.
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in adapted.named_modules():
        if isinstance(module, BaseTunerLayer) and getattr(module.get_base_layer(), "bias", None) is None:
            raise ConfigError(f"train.peft.lora.lora_bias: {name} has no bias that it could be added to. Leave lora_bias out.")


def is_adapter(directory: Path) -> bool:
    """Tell whether the directory holds adapters and not a whole model."""
    return (directory / ADAPTER_CONFIG).is_file()


def is_adapted(lm: Any) -> bool:
    """Tell whether the model has adapters. PEFT is not imported here: whoever added adapters has imported it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(lm, peft.PeftModel)


def bare_model(lm: Any) -> PreTrainedModel:
    """Return the model itself, without the wrapper that PEFT puts around it."""
    return lm.get_base_model() if is_adapted(lm) else lm


def adapter_weights(directory: Path) -> Path:
    """Return the file that holds a directory's adapters.

    Raises:
        ModelError: it is missing, or there is only a pickle.
    """
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = directory / "adapter_model.bin"
        why = f"only a pickle ({pickled.name}), which can run code: convert it to safetensors" if pickled.exists() else f"no {ADAPTER_WEIGHTS}"
        raise ModelError(f"{directory} holds adapters ({ADAPTER_CONFIG}), but {why}.")
    return path


def base_name(directory: Path) -> str:
    """Return the model that the adapters in ``directory`` were trained on: a directory, or a name for ``find_model``.

    A relative path is resolved from the adapters' own directory first, then from the working directory.

    Raises:
        ModelError: the configuration can't be read, or names no base model.
    """
    config = read_json(directory / ADAPTER_CONFIG, ModelError, "Save the adapters again.")
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(named, str) or not named or "\0" in named:
        raise ModelError(f"{directory / ADAPTER_CONFIG} must name its base model in base_model_name_or_path, got {named!r:.80}.")
    beside = directory / local_path(named, ModelError)
    return str(beside) if beside.is_dir() else named


def merged(base: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Return the base with the adapters of ``directory`` added to its weights.

    Raises:
        ModelError: the adapters do not fit the base, or are of a kind that can't be merged.
    """
    require_peft()
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(directory))
    config.inference_mode = True
    adapted = get_peft_model(base, config)
    if not isinstance(adapted.base_model, _mergeable()):
        raise ModelError(f"{directory} holds adapters of the kind {config.peft_type}, which can't be merged into a model: use LoRA.")
    load_adapter_weights(adapted, directory)
    return adapted.merge_and_unload()


def _mergeable() -> type:
    from peft.tuners.tuners_utils import BaseTuner

    return BaseTuner


def load_adapter_weights(adapted: Any, directory: Path) -> None:
    """Read back saved adapters, in place.

    Raises:
        ModelError: the files are missing, damaged, or are those of other adapters.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(adapter_weights(directory))
    except SafetensorError as error:
        raise ModelError(f"{directory / ADAPTER_WEIGHTS} can't be read: {error}") from error
    own = get_peft_model_state_dict(adapted)
    wrong = sorted(own.keys() ^ state.keys()) or sorted(k for k, v in state.items() if own[k].shape != v.shape)
    if wrong:
        raise ModelError(f"{directory} does not hold this model's adapters: {wrong[0]} is missing, unknown or of another shape.")
    set_peft_model_state_dict(adapted, state)
