"""One bound on token ids, where the ids have gaps, where a head has more rows than tokens, and where it has fewer."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import EOS, command, save_tiny_model, tiny_recipe_dict
from transformers import AutoModelForCausalLM, PreTrainedModel

from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.experiment.models import vocab_size
from tdistill.experiment.pipeline import Run
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.rollouts import cache
from tdistill.experiment.sample import answer
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import eos_token_ids, load_tokenizer
from tdistill.models.vocabulary import Vocabulary, vocabulary_size
from tdistill.recipe.schema import ActionSpace, Sampling
from tdistill.runtime.errors import ModelError
from tdistill.teachers.transformers import generate_batch, score_batch
from tdistill.training.trainer import DistillTrainer

GAP = 40  # ids without a token before the end-of-text token


def save_with_gap(directory: Path) -> Path:
    """A model whose tokenizer has 257 tokens, the last of which is id 296: ``len(tokenizer)`` would cut it off."""
    save_tiny_model(directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    old = content["model"]["vocab"][EOS]
    content["model"]["vocab"][EOS] = old + GAP
    for token in content["added_tokens"]:
        token["id"] += GAP
    (directory / "tokenizer.json").write_text(json.dumps(content))
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        head, embeddings = model.lm_head.weight, model.model.embed_tokens.weight
        for weight in (head, embeddings):
            weight[old + GAP] = weight[old].clone()
            weight[old : old + GAP] = 0.0
    model.config.eos_token_id = model.generation_config.eos_token_id = old + GAP
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def gap(tmp_path_factory) -> Path:
    return save_with_gap(tmp_path_factory.mktemp("gap"))


def resized(directory: Path, rows: int) -> PreTrainedModel:
    model = load_model(find_model(str(directory)))
    model.resize_token_embeddings(rows)
    return model


def prompt(*ids: int) -> TokenizedPrompt:
    return TokenizedPrompt(Prompt("asked", ({"role": "user", "content": "?"},)), ids)


def test_the_bound_is_the_largest_id_plus_one(tiny_teacher, gap):
    for directory, size in ((tiny_teacher, 257), (gap, 297)):
        source = find_model(str(directory))
        model, tokenizer = load_model(source), load_tokenizer(source)
        assert len(tokenizer) == 257
        assert vocabulary_size(tokenizer, {"teacher": model}, eos_token_ids(model, tokenizer)) == size


def test_models_with_other_numbers_of_rows_share_the_tokenizers_bound(tiny_teacher):
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    assert vocabulary_size(tokenizer, {"teacher": resized(tiny_teacher, 320), "student": resized(tiny_teacher, 272)}, [256]) == 257


def test_a_token_without_a_row_does_not_make_a_model_unusable(tiny_teacher):
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    tokenizer.add_tokens(["<image>"])  # as Gemma 3 1B has it: one token more than rows
    assert vocabulary_size(tokenizer, {"teacher": resized(tiny_teacher, 257), "student": resized(tiny_teacher, 304)}, [256]) == 257


def test_an_end_of_text_id_beyond_the_bound_is_refused(tiny_teacher):
    tokenizer = load_tokenizer(find_model(str(tiny_teacher)))
    with pytest.raises(ModelError, match=r"end-of-text ids \[256\] lie beyond the vocabulary of 250 tokens.*student's head rows 250"):
        vocabulary_size(tokenizer, {"teacher": resized(tiny_teacher, 304), "student": resized(tiny_teacher, 250)}, [256])
    with pytest.raises(ModelError, match=r"\[300\] lie beyond the vocabulary of 257"):
        vocabulary_size(tokenizer, {"teacher": resized(tiny_teacher, 304)}, [256, 300])


def test_the_trainer_takes_the_same_bound(gap, tmp_path):
    from transformers import TrainingArguments

    from tdistill.objectives import bind

    source = find_model(str(gap))
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    model, tokenizer = load_model(source), load_tokenizer(source)
    assert DistillTrainer(model, args, bind("nll"), processing_class=tokenizer).vocab_size == 297
    assert DistillTrainer(model, args, bind("nll")).vocab_size == 304
    assert DistillTrainer(model, args, bind("nll"), vocab_size=299).vocab_size == 299


@pytest.fixture(scope="module")
def run_with_gap(gap, tmp_path_factory) -> Run:
    """A whole run, with on-policy text, completions and a loss over the whole vocabulary."""
    directory = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe_dict(gap, directory)
    recipe["sft"]["arguments"]["max_steps"] = recipe["train"]["arguments"]["max_steps"] = 2
    recipe["train"] |= {"objective": {"name": "iq_learn", "anchor": "tail"}, "baselines": {}, "monitor": {"log_completions": 2}}
    recipe["train"] |= {"on_policy": {"lmbda": 0.5, "refresh_steps": 1}}
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert command("run", path) == 0
    return Run(open_recipe(path))


def test_texts_end_where_the_ids_have_gaps(run_with_gap):
    run = run_with_gap
    assert vocab_size(run) == 297
    caches = [cache(run, split) for split in ("train", "valid", "test")]
    last = [data[i]["response_ids"].tolist()[-1] for data in caches for i in range(len(data))]
    assert last.count(296) == sum(data.manifest.counts["finished"] for data in caches) > 0, "the end-of-text row is not sliced off"
    answers = [json.loads(line) for path in (run.directory("evaluate") / "answers").iterdir() for line in path.read_text().splitlines()]
    assert any(record["finished"] and record["tokens"][-1] == 296 for record in answers)


def test_a_sampled_answer_ends_where_the_ids_have_gaps(gap):
    lengths = {len(answer(gap, "question", 1.0, 1.0, 200, seed)) for seed in range(3)}
    assert min(lengths) < 200


def test_an_old_models_stage_says_what_to_do(run_with_gap):
    path = run_with_gap.directory("models") / "models.json"
    content = json.loads(path.read_text())
    try:
        path.write_text(json.dumps({k: v for k, v in content.items() if k != "vocab_size"}))
        with pytest.raises(ModelError, match=r"has no vocab_size: an older tdistill wrote it\. Delete .* and run again"):
            vocab_size(run_with_gap)
    finally:
        path.write_text(json.dumps(content))


def test_a_prompt_with_a_token_that_has_no_embedding_is_named(tiny_teacher):
    model = load_model(find_model(str(tiny_teacher)))
    with pytest.raises(ModelError, match="Prompt asked has the token id 304, but LlamaForCausalLM has embeddings of 304 tokens only"):
        generate_batch(model, [(prompt(1, 304), 0)], Sampling(max_completion_length=2), Vocabulary(257, [256]))
    with pytest.raises(ModelError, match="Prompt asked has the token id 999"):
        score_batch(model, [(prompt(999), [1])], Vocabulary(257, [256]), ActionSpace())


@pytest.mark.parametrize(("response", "what"), [([1, 257], "the token id 257, beyond the vocabulary of 257"), ([], "no token")])
def test_a_response_that_cannot_be_scored_is_named(response, what, tiny_teacher):
    with pytest.raises(ModelError, match=f"The response to prompt asked has {what}"):
        score_batch(load_model(find_model(str(tiny_teacher))), [(prompt(1), response)], Vocabulary(257, [256]), ActionSpace())
