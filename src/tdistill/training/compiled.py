"""Compile the layers of a student (``torch_compile``)."""

import torch
from transformers import TrainingArguments

from tdistill.models.student import StudentModel
from tdistill.runtime.errors import ConfigError


def compile_layers(student: StudentModel, backend: str | None, mode: str | None) -> None:
    """Compile every layer of the language model in its place. Names, types and what is saved stay as they are, and a copy is not compiled.

    The head and the objective are left as they are: the shapes of their work change with every batch. One layer is compiled for all, so
    that this takes a fraction of the time that the whole model would take.

    Raises:
        ConfigError: the architecture does not say which of its modules are layers.
    """
    names = set(student._no_split_modules)
    layers = [module for module in student.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(f"torch_compile: {type(student.lm).__name__} does not name its layers (_no_split_modules). Leave it out.")
    for layer in layers:
        layer.compile(backend=backend or "inductor", mode=mode)


def compile_once(args: TrainingArguments) -> None:
    """Compile a small layer and its gradient, as training will: a missing C++ compiler is found now."""
    layer = torch.nn.Linear(4, 4).to(args.device)
    layer.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    layer(torch.ones(2, 4, device=args.device)).sum().backward()
