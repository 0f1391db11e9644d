"""The records that prompts are read from."""

import json
from pathlib import Path

import pytest

from tdistill.errors import DataError
from tdistill.rollout.prompts import Prompt, load_prompts


def read(tmp_path: Path, record: dict) -> Prompt:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (prompt,) = load_prompts(str(path))
    return prompt


RECORDS = {
    "alpaca": {"instruction": "Add.", "input": "1, 2", "output": "3"},
    "dolly": {"instruction": "Add.", "context": "1, 2", "response": "3", "category": "closed_qa"},
    "prompt": {"prompt": "Add.\n\n1, 2", "completion": "3"},
    "conversation": {"messages": [{"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"}]},
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_form_of_a_record_is_the_same_prompt(tmp_path, name):
    prompt = read(tmp_path, RECORDS[name])
    assert prompt.messages == ({"role": "user", "content": "Add.\n\n1, 2"},)
    assert prompt.references == ("3",)


def test_without_context_the_instruction_stands_alone(tmp_path):
    prompt = read(tmp_path, {"instruction": "Name a fruit.", "context": "", "response": "Pear."})
    assert (prompt.text, prompt.references) == ("Name a fruit.", ("Pear.",))


def test_context_that_is_no_text_is_named(tmp_path):
    with pytest.raises(DataError, match="`context` must be text, got list"):
        read(tmp_path, {"instruction": "Add.", "context": [1, 2]})
