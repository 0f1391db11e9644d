"""Run a causal LM over padded text: the attention mask and the positions are the same wherever a model is called.

The last T columns of the text of ``layout`` score the T response tokens; ``logits_to_keep`` makes the head compute these columns alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tdistill.models.layout import positions
from tdistill.runtime.errors import ModelError


def step_outputs(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, steps: int, with_hidden: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return a model's logits [B, T, rows] at the last ``steps`` columns of padded text, and its last hidden states [B, T, D] there.

    Args:
        model: a causal LM.
        input_ids: [B, L] token ids, see ``layout``.
        attention_mask: [B, L] 1 at real tokens.
        steps: T.
        with_hidden: return the hidden states too; else None stands in their place.
    """
    out = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask),
        logits_to_keep=steps,
        output_hidden_states=with_hidden,
        use_cache=False,
    )
    return out.logits[:, -steps:], out.hidden_states[-1][:, -steps:] if with_hidden else None


@torch.inference_mode()
def step_logp(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, steps: int, vocab_size: int, names: Sequence[str] = ()
) -> Tensor:
    """Return a model's log-probs [B, T, V] at the last ``steps`` columns, float32, over the tokens of its vocabulary.

    Args:
        model: a causal LM.
        input_ids: [B, L] token ids, see ``layout``.
        attention_mask: [B, L] 1 at real tokens.
        steps: T.
        vocab_size: V.
        names: names of the rows, for messages.

    Raises:
        ModelError: logits at a real token are not finite.
    """
    logits = step_outputs(model, input_ids, attention_mask, steps)[0][..., :vocab_size].float()
    check_finite(logits, names, attention_mask[:, -steps:].bool())
    return torch.log_softmax(logits, -1)


def next_logits(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, cache: DynamicCache) -> Tensor:
    """Return the logits [B, rows] of the next token, and put the keys and values of ``input_ids`` into the cache.

    Args:
        model: a causal LM.
        input_ids: [B, N] the tokens that are new to the cache.
        attention_mask: [B, L] 1 at real tokens, of all that the model has read, ``input_ids`` included.
        cache: KV cache of the L − N tokens before.
    """
    return model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions(attention_mask)[:, -input_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


def check_finite(logits: Tensor, names: Sequence[str], real: Tensor) -> None:
    """Refuse logits that are NaN or infinite.

    Args:
        logits: [B, V] or [B, T, V].
        names: names of the B rows, for the message; without them it gives the row's number.
        real: [B] or [B, T] bool, True where the logits count: padding may be anything.

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
