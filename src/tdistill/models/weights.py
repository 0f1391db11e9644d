"""Load all the weights of a model from safetensors files, or none of them; pickles are refused."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tdistill.runtime.errors import ModelError, TdistillError
from tdistill.runtime.files import read_json
from tdistill.runtime.progress import say

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")
# torch.save writes a zip file or, in its older form, a plain pickle.
PICKLE_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
DISTRIBUTED = re.compile(r"^shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors$")
SHOWN_KEYS = 4
# Names of sizes in configurations: those that count layers, and those that are a dimension of some tensor.
LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "decoder_layers"})
WIDTHS = frozenset(
    {"vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "num_attention_heads", "n_head", "n_heads"}
    | {"num_key_value_heads", "head_dim", "num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"}
)
SPARE_WIDTH = 8  # quantised weights are packed, up to 8 numbers in one


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turn an error of a library that reads foreign files into ``ModelError``.

    Configurations, tokenizers and remote code can raise any class: the tokenizers library raises ``Exception`` itself.
    """
    try:
        yield
    except TdistillError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {type(error).__name__}: {error}") from error


def weight_files(directory: Path) -> list[Path]:
    """Return the files that hold a model directory's weights: ``model.safetensors``, else the shards that the index names.

    Raises:
        ModelError: there are no weights or only pickles, a shard is missing or is not a safetensors file, or the index names a file
            elsewhere.
    """
    index = directory / SAFE_WEIGHTS_INDEX_NAME
    if (directory / SAFE_WEIGHTS_NAME).is_file():
        files = [directory / SAFE_WEIGHTS_NAME]
    elif index.is_file():
        files = [directory / name for name in _shards(index)]
    else:
        raise ModelError(f"{directory} {_why_none(directory)}.")
    if any(DISTRIBUTED.match(path.name) for path in directory.iterdir()):
        raise ModelError(f"{directory} holds a distributed checkpoint (shard-*.safetensors): save the whole model with save_pretrained.")
    for path in files:
        _check_is_safetensors(path)
    return files


def _why_none(directory: Path) -> str:
    pickled = _pickled(directory)
    if pickled:
        return f"holds only pickled weights ({pickled[0]}), which can run code: convert them to safetensors"
    other = sorted(p.name for p in directory.glob("*.safetensors"))
    if other:
        return f"holds neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}, only {other[0]}: rename it, or save the model again"
    return "holds no *.safetensors"


def _pickled(directory: Path) -> list[str]:
    return sorted({p.name for pattern in PICKLED for p in directory.glob(pattern) if p.name != "training_args.bin"})


def _shards(index: Path) -> list[str]:
    content = read_json(index, ModelError, "Save the model again.")
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise ModelError(f"{index} must hold a weight_map from tensor names to file names. Save the model again.")
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise ModelError(f"{index} names the file {name!r} outside its own directory: put all shards beside the index.")
        if not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name!r}, which is no safetensors file and may be a pickle: convert it to safetensors.")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index} names {name!r}, which is missing: copy or download the whole model again.")
    return sorted(set(names.values()))


def _check_is_safetensors(path: Path) -> None:
    with path.open("rb") as handle:
        beginning = handle.read(9)
    if beginning.startswith(PICKLE_BEGINNINGS) and beginning[8:] != b"{":
        raise ModelError(f"{path} is a pickle under the name of a safetensors file. Pickles can run code: convert it to safetensors.")


def check_plausible(directory: Path, files: Sequence[Path]) -> None:
    """Refuse a configuration that asks for far more than its weights hold: to build that model would take all memory, or never end.

    A model has no more layers than tensors, and its widths and its vocabulary are dimensions of its tensors.

    Args:
        directory: a model directory.
        files: its weights.

    Raises:
        ModelError: a number in ``config.json`` does not fit these weights, or the weights can't be read.
    """
    path = directory / CONFIG_NAME
    tensors, widest = 0, 1
    for file in files:
        with foreign(f"Can't load the weights {file}"), safe_open(file, "pt") as handle:
            shapes = [handle.get_slice(key).get_shape() for key in sorted(handle.keys())]
        tensors, widest = tensors + len(shapes), max([widest, *(max(shape, default=1) for shape in shapes)])
    for section in _sections(read_json(path, ModelError, "Save the model again.")):
        for keys, most, what in ((LAYERS, tensors, "tensors"), (WIDTHS, SPARE_WIDTH * widest, "as the largest width")):
            for key in keys & section.keys():
                if type(section[key]) is int and section[key] > most:
                    raise ModelError(
                        f"{path}: {key} is {section[key]!s:.40}, but the weights beside it allow {most} at most ({what}). Correct the file, "
                        "or save the model again."
                    )


def _sections(config: Any) -> Iterator[dict[str, Any]]:
    """Return a configuration and those inside it, such as ``text_config``."""
    if isinstance(config, dict):
        yield config
        for value in config.values():
            yield from _sections(value)


def load_whole(auto_class: Any, directory: Path, name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model with every one of its tensors, as ``auto_class.from_pretrained`` does.

    Args:
        auto_class: ``AutoModelForCausalLM``, or a model's own class.
        directory: a model directory.
        name: for messages.
        **kwargs: arguments of ``from_pretrained``.

    Raises:
        ModelError: the files can't be read, lack tensors, or hold tensors of other shapes.
    """
    if "gguf_file" not in kwargs:
        check_plausible(directory, weight_files(directory))
        kwargs["use_safetensors"] = True
        _say_what_is_not_read(directory)
    with foreign(f"Can't load {name!r} as a causal language model"):
        # Other shapes are refused below: transformers' own error does not name them.
        model, info = auto_class.from_pretrained(directory, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    missing, unexpected = sorted(info["missing_keys"]), sorted(map(str, info["unexpected_keys"]))
    wrong = sorted(f"{key} {list(here)}, not {list(wanted)}" for key, here, wanted in info["mismatched_keys"])
    if missing or wrong:
        what = f"lacks {_listed(missing)}" if missing else f"holds {_listed(wrong)}"
        also = f", and has {_listed(unexpected)}, which {type(model).__name__} does not know" if unexpected else ""
        raise ModelError(
            f"{name!r} {what}{also}. Such weights would be random numbers. Save the model again with save_pretrained (of a compiled or "
            "wrapped model: of the model inside)."
        )
    beyond = _layers_beyond(unexpected, model)
    if beyond:
        raise ModelError(
            f"The configuration of {name!r} has num_hidden_layers={model.config.get_text_config().num_hidden_layers}, but its files also "
            f"hold {_listed(beyond)}: correct config.json. To leave layers out, use student.keep_layers."
        )
    if unexpected:
        say_once(f"{name}: {_listed(unexpected)} in its files belong to no part of {type(model).__name__} and are not used")
    return model


def _layers_beyond(unexpected: Sequence[str], model: PreTrainedModel) -> list[str]:
    """Return the tensors of layers beyond the number in the configuration. Without them it would be another model."""
    total = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [(key, re.search(r"\b(?:layers|h|blocks)\.(\d+)\.", key)) for key in unexpected]
    return [key for key, match in found if match and total is not None and int(match[1]) >= total]


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"{len(keys)} tensor{'s' * (len(keys) > 1)} ({', '.join(keys[:SHOWN_KEYS])}{more})"


@cache
def say_once(text: str) -> None:
    """Print a line about a model once, also if the model is loaded several times in a run."""
    say(text)


def _say_what_is_not_read(directory: Path) -> None:
    pickled = sorted(p.name for p in directory.glob("pytorch_model*.bin*"))
    if (directory / SAFE_WEIGHTS_NAME).is_file() and (directory / SAFE_WEIGHTS_INDEX_NAME).is_file():
        pickled.insert(0, SAFE_WEIGHTS_INDEX_NAME)
    if pickled:
        say_once(f"{directory}: {', '.join(pickled)} not read, the weights are those of its safetensors files")
