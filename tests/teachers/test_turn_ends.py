"""The command line with a model whose template ends turns with a token that neither the tokenizer nor the generation config names."""

import json
from pathlib import Path

import numpy as np
import places
import pytest
import yaml
from conftest import command, save_tiny_model, tiny_recipe_dict
from tokenizer_kinds import byte_level, llama_3

from tdistill.cache.read import open_cache
from tdistill.data.prompts import Prompt, TokenizedPrompt
from tdistill.evaluation.answers import answer_record
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import eos_token_ids
from tdistill.models.vocabulary import Vocabulary
from tdistill.recipe.schema import ActionSpace
from tdistill.teachers.transformers import score_batch

QUESTION = "say <|eot_id|> or <|end_of_text|>"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_model(tmp_path_factory.mktemp("llama_3"))
    tokenizer, model = llama_3(), load_model(find_model(str(directory)))
    tokenizer.save_pretrained(directory)
    end = tokenizer.eos_token_id
    model.config.eos_token_id = model.config.pad_token_id = model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    model.save_pretrained(directory)
    return directory


def test_human_answers_end_as_turns_do_and_control_strings_are_text(teacher: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe_dict(teacher, tmp_path)
    recipe["rollout"] |= {"score_references": True, "max_completion_length": 40}
    for split in ("train", "valid", "test"):
        line = {
            "messages": [{"role": "user", "content": f"{QUESTION} {split}"}, {"role": "assistant", "content": f"{split}: <|eot_id|> it is"}]
        }
        with Path(recipe["data"][split]).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert command("rollout", path) == 0

    tokenizer = llama_3()
    controls = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    turn, text_end = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    _, table = open_cache(places.rollout(path, "test-human"), {})
    rows = table.to_pylist()
    assert len(rows) == 7
    for row in rows:
        assert row["response_ids"][-1] == turn
        assert row["finished"]
        assert not controls & set(row["response_ids"][:-1])
        assert text_end not in row["prompt_ids"]
        assert np.count_nonzero(np.asarray(row["prompt_ids"]) == turn) == 1
    assert {"test: <|eot_id|> it is"} == {row["text"] for row in rows if "it is" in row["text"]}
    _, drawn = open_cache(places.rollout(path, "test"), {})
    ended = [row["response_ids"][-1] for row in drawn.to_pylist() if row["finished"]]
    assert set(ended) <= {turn, text_end}


def test_sample_reads_control_strings_as_text(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("sample", teacher, QUESTION, "--max-completion-length", 4) == 0
    capsys.readouterr()
    for prompt, message in (("a\udcffb", "half of a surrogate pair"), (" ", "The prompt is empty"), ("a\x00", "NUL character")):
        assert command("sample", teacher, prompt) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_sample_asks_for_no_more_tokens_than_the_model_reads(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("sample", teacher, "x", "--max-completion-length", 250) == 2
    assert "context is 256" in capsys.readouterr().err
    assert command("sample", teacher, "x", "--max-completion-length", 10**12) == 2
    assert command("sample", "~nobody-here/model", "x") == 2


def test_the_end_of_a_turn_is_no_text_even_where_it_is_not_special(teacher: Path, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "model")
    tokenizer = byte_level(["<|endoftext|>"], "{% for m in messages %}{{ m['content'] }}<stop>{% endfor %}", eos_token="<|endoftext|>")
    tokenizer.add_tokens(["<stop>"])
    tokenizer.save_pretrained(directory)
    model = load_model(find_model(str(directory)))
    eos = eos_token_ids(model, tokenizer)
    stop = tokenizer.convert_tokens_to_ids("<stop>")
    assert stop in eos
    prompt = TokenizedPrompt(Prompt("p", ({"role": "user", "content": "q"},)), (1, 2))
    (row,) = score_batch(model, [(prompt, [*tokenizer("ab").input_ids, stop])], Vocabulary(len(tokenizer), eos), ActionSpace())
    assert row.finished
    assert answer_record(row, tokenizer)["text"] == tokenizer.decode(row.text_ids) == "ab"
