"""Ask a saved student something."""

from pathlib import Path

from tdistill.data.prompts import Prompt, TokenizedPrompt, render
from tdistill.experiment.context import check_fits, read_model_config
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import eos_token_ids, load_tokenizer
from tdistill.models.vocabulary import Vocabulary, vocabulary_size
from tdistill.recipe.schema import Sampling
from tdistill.runtime.errors import DataError
from tdistill.teachers.transformers import generate_batch


def answer(student: Path, prompt: str, temperature: float, top_p: float, max_completion_length: int, seed: int) -> str:
    """Return one sampled answer of a model directory to a prompt.

    Raises:
        ModelError: no model there.
        DataError: an empty prompt, one that can't be read as text, or more tokens than the model's context.
    """
    if not prompt.strip():
        raise DataError("The prompt is empty.")
    source = find_model(str(student))
    model, tokenizer = load_model(source), load_tokenizer(source)
    asked = Prompt("sample", ({"role": "user", "content": prompt},), where="The prompt")
    ids = render(tokenizer, asked)
    check_fits(len(ids) + max_completion_length, "The prompt + --max-completion-length", {"asked": read_model_config(source)})
    sampling = Sampling(temperature=temperature, top_p=top_p, max_completion_length=max_completion_length, seed=seed)
    eos = eos_token_ids(model, tokenizer)
    vocab = vocabulary_size(tokenizer, {"model": model}, eos)
    (row,) = generate_batch(model, [(TokenizedPrompt(asked, ids), 0)], sampling, Vocabulary(vocab, eos))
    return tokenizer.decode(row.text_ids, skip_special_tokens=True)
