"""Find how many tokens a model can read at once, and check that every stage of a recipe fits teacher and student."""

from collections.abc import Mapping
from typing import Any

from tdistill.models.find import ModelSource, read_config, whole_model
from tdistill.models.gguf import gguf_config
from tdistill.recipe.schema import Recipe
from tdistill.runtime.errors import DataError, ModelError

# Every name that architectures of transformers give to their number of positions; GGUF's is translated by ``gguf_config``.
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_seq_length", "seq_length")
TEXT_KEYS = ("text_config", "llm_config", "language_config", "decoder")  # of models that read more than text
_SCALED = ("linear", "dynamic", "yarn", "llama3", "longrope")


def read_model_config(source: ModelSource) -> Mapping[str, Any]:
    """Return a model's configuration without loading it: of a directory, a GGUF file's header, or the base of adapters.

    Raises:
        ModelError: it can't be read.
    """
    source = whole_model(source)
    if source.gguf_file:
        return gguf_config(source.directory / source.gguf_file)
    return text_config(read_config(source.directory))


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a configuration that describes the language model."""
    for key in TEXT_KEYS:
        if isinstance(config.get(key), dict):
            return text_config(config[key])
    return config


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model reads at once, or None if its configuration states no limit.

    A limit that rotary scaling extends is taken as extended.

    Raises:
        ModelError: the configuration states something else than a whole number.
    """
    config = text_config(config)
    for key in LENGTH_KEYS:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"The model's configuration has {key}={value!r:.60}: it must be a whole number of tokens.")
        return max(value, _scaled(config, value)) if value > 0 else None  # XLNet writes -1 where there is no limit
    return None


def _scaled(config: Mapping[str, Any], length: int) -> int:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type")) not in _SCALED:
        return length
    factor, original = scaling.get("factor", 1), scaling.get("original_max_position_embeddings", length)
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (factor, original))
    return int(factor * original) if numbers and 1 <= factor <= 1024 and 0 < original <= 1 << 40 else length


def wanted_tokens(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Return what each model must read at once: ``teacher`` and ``student`` → option → tokens, over all stages.

    SFT, distillation, own text of the student and scored references read no more than the roll-outs do.
    """
    prompt, answer = recipe.data.max_prompt_length, recipe.rollout.max_completion_length
    both = {"data.max_prompt_length + rollout.max_completion_length": prompt + answer}
    if recipe.evaluation.max_completion_length is not None:
        both["data.max_prompt_length + evaluation.max_completion_length"] = prompt + recipe.evaluation.max_completion_length
    wanted = {"teacher": dict(both), "student": dict(both)}
    lm = recipe.train.lm
    if lm is not None:
        wanted["student"]["train.lm.window"] = lm.window
        if lm.kd_ratio > 0:
            wanted["teacher"]["train.lm.window"] = lm.window
    return wanted


def check_contexts(recipe: Recipe, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that every stage of a recipe fits both models.

    Args:
        recipe: what is asked for.
        configs: ``teacher`` and ``student`` → configuration. A pruned student has its teacher's.

    Raises:
        DataError: it does not; the option, both numbers and the model are named.
    """
    for model, options in wanted_tokens(recipe).items():
        for option, tokens in options.items():
            check_fits(tokens, option, {model: configs[model]})


def check_fits(tokens: int, option: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ``DataError`` if ``tokens``, which ``option`` asks for, are more than one of the models can read."""
    for model, config in configs.items():
        context = context_length(config)
        if context is not None and tokens > context:
            raise DataError(
                f"{option} = {tokens} tokens, but the {model} model's context is {context}: lower {'one' if '+' in option else 'it'}."
            )
