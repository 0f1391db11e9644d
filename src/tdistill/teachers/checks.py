"""Check what goes into a model and comes out of it while text is written and scored."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.runtime.errors import ModelError


def check_finite(logits: Tensor, names: Sequence[str], real: Tensor) -> None:
    """Refuse logits that are NaN or infinite.

    Args:
        logits: [B, V] or [B, T, V].
        names: names of the B rows, for the message; without them it gives the row's number.
        real: [B] or [B, T] bool, what counts: padding may be anything.

    Raises:
        ModelError: logits that count are not finite.
    """
    low, high = torch.aminmax(logits, dim=-1)  # both are NaN where any logit is
    bad = ~(torch.isfinite(low) & torch.isfinite(high)) & real.to(logits.device)
    if bad.any():
        row = int(bad.nonzero()[0][0])
        name = f"prompt {names[row]}" if names else f"row {row} of the batch"
        raise ModelError(
            f"The model's logits are not finite on {name}. Its weights may be damaged, or its dtype too narrow for it: float16 overflows at "
            "65,504. Use bfloat16 or float32 (teacher.dtype, evaluation.dtype), or look at the prompt."
        )


def check_ids(model: PreTrainedModel, prompts: Sequence[TokenizedPrompt]) -> None:
    """Refuse prompts with a token that the model has no embedding of.

    Raises:
        ModelError: the prompt, its token and the rows are named.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    for prompt in prompts:
        if max(prompt.ids) >= rows:
            raise ModelError(
                f"Prompt {prompt.prompt.prompt_id} has the token id {max(prompt.ids)}, but {type(model).__name__} has embeddings of "
                f"{rows} tokens only. Take that token out of the prompt or its template."
            )


def check_response(prompt: TokenizedPrompt, response: Sequence[int], vocab_size: int) -> None:
    """Refuse an empty response, and one with a token outside the vocabulary.

    Raises:
        ModelError: the prompt is named.
    """
    if len(response) == 0 or max(response) >= vocab_size:
        what = f"the token id {max(response)}, beyond the vocabulary of {vocab_size} tokens" if len(response) else "no token"
        raise ModelError(f"The response to prompt {prompt.prompt.prompt_id} has {what}: it can't be scored.")
