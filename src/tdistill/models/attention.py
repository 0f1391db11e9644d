"""Check that a model's attention can be computed as a recipe says (``attn_implementation``), before anything long starts."""

import torch
from transformers import AutoConfig, PreTrainedModel

from tdistill.models.find import ModelSource, whole_model
from tdistill.models.forward import step_outputs
from tdistill.models.load import auto_class, compute_device
from tdistill.models.weights import foreign
from tdistill.runtime.errors import ModelError


def check_attention(source: ModelSource, attn_implementation: str, option: str, trust_remote_code: bool = False) -> None:
    """Check that an architecture has an attention implementation and that this machine runs it. No weight is read.

    Args:
        source: the model.
        attn_implementation: transformers' name of the implementation.
        option: the recipe's key, for messages.
        trust_remote_code: run the code that lies beside the model.

    Raises:
        ModelError: the architecture lacks it, a package is missing, or it needs a GPU.
    """
    device = compute_device().type
    if attn_implementation.startswith("flash") and device != "cuda":
        raise ModelError(f"'{option}': {attn_implementation} needs an NVIDIA GPU, and this machine computes on {device}. Set sdpa or null.")
    whole = whole_model(source)
    with foreign(f"'{option}': {attn_implementation} can't be used for {source.name!r} here, set another or null"), torch.device("meta"):
        config = AutoConfig.from_pretrained(whole.directory, trust_remote_code=trust_remote_code, **whole.load_kwargs)
        auto_class(whole).from_config(config, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code)


def check_training_attention(model: PreTrainedModel, option: str, autocast: torch.dtype | None) -> None:
    """Check that a model computes its attention and the gradient of it: some implementations only read, or only in half precision.

    Args:
        model: the student, as training loads it. It gets no gradient.
        option: the recipe's key, for messages.
        autocast: the dtype that training computes in; None: the weights'.

    Raises:
        ModelError: a step of training fails.
    """
    device = compute_device()
    model = model.to(device)
    ids = torch.arange(1, 9, device=device).view(2, 4)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    used = model.config._attn_implementation
    precision = str(autocast or model.dtype).removeprefix("torch.")
    what = f"'{option}': {used} can't train {type(model).__name__} in {precision} on {device.type}, set another or null"
    parameter = model.get_input_embeddings().weight
    with foreign(what), torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        logits, _ = step_outputs(model, ids, mask, steps=2)
        torch.autograd.grad(logits.float().logsumexp(-1).sum(), parameter)
