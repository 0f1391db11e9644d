"""Check the token ids that go into a model."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from tdistill.data.prompts import TokenizedPrompt
from tdistill.runtime.errors import ModelError


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
