"""The records that prompts are read from: every form gives the same prompt, and what would be left out is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tdistill.data.prompts import Prompt, load_prompts
from tdistill.runtime.errors import DataError


def read(tmp_path: Path, record: dict) -> Prompt:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (prompt,) = load_prompts(str(path))
    return prompt


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


QUESTION = "Add.\n\n1, 2"
RECORDS = {
    "alpaca": {"instruction": "Add.", "input": "1, 2", "output": "3"},
    "dolly": {"instruction": "Add.", "context": "1, 2", "response": "3", "category": "closed_qa"},
    "both answers are the same": {"instruction": "Add.", "input": "1, 2", "output": "3", "response": "3"},
    "both extras are the same": {"instruction": "Add.", "input": "1, 2", "context": "1, 2", "response": "3"},
    "prompt": {"prompt": QUESTION, "completion": "3"},
    "prompt and response": {"prompt": QUESTION, "response": "3"},
    "prompt and output": {"prompt": QUESTION, "output": ["3"]},
    "prompt that holds its input": {"prompt": QUESTION, "input": "1, 2", "completion": "3"},
    "null is nothing": {"prompt": QUESTION, "messages": None, "instruction": None, "completion": None, "output": "3"},
    "an empty column is nothing": {"prompt": QUESTION, "input": "", "system": "", "tools": [], "completion": "3", "response": ""},
    "conversation": {"messages": [user(QUESTION), assistant("3")]},
    "conversation and the same answer": {"messages": [user(QUESTION), assistant("3")], "completion": "3"},
    "conversation and an answer": {"messages": [user(QUESTION)], "completion": "3"},
    "UltraChat": {"prompt": QUESTION, "prompt_id": "f0", "messages": [user(QUESTION), assistant("3")]},
    "prompt of messages": {"prompt": [user(QUESTION)], "completion": [assistant("3")]},
    "prompt of messages, twice": {"prompt": [user(QUESTION)], "messages": [user(QUESTION), assistant("3")]},
    "parts": {"messages": [user([part("Add.\n\n"), part("1, 2")]), assistant([part("3")])]},
    "null in a message": {"messages": [user(QUESTION) | {"tool_calls": None, "name": "Ann"}, assistant("3") | {"reasoning_content": ""}]},
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_every_form_of_a_record_is_the_same_prompt(tmp_path: Path, name: str) -> None:
    prompt = read(tmp_path, RECORDS[name])
    assert prompt.messages == ({"role": "user", "content": QUESTION},)
    assert prompt.references == ("3",)
    assert prompt.prompt_id == read(tmp_path, RECORDS["prompt"]).prompt_id
    assert prompt.where == f"{tmp_path / 'prompts.jsonl'}, line 1"


def test_without_context_the_instruction_stands_alone(tmp_path: Path) -> None:
    prompt = read(tmp_path, {"instruction": "Name a fruit.", "context": "", "response": "Pear."})
    assert (prompt.text, prompt.references) == ("Name a fruit.", ("Pear.",))


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    text = "  a\r\nb\u2028c\x0b\ufeffd 😀 <|im_end|> \t"
    prompt = read(tmp_path, {"prompt": text, "completion": [text, "", " ", "b"]})
    assert (prompt.text, prompt.references) == (text, (text, "b"))


def test_earlier_turns_stay(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": ""}, user("a"), assistant("b"), user("c"), assistant("d")]
    prompt = read(tmp_path, {"messages": turns})
    assert (list(prompt.messages), prompt.references) == (turns[:-1], ("d",))


@pytest.mark.parametrize("answer", [None, "", "  ", [], [""], [assistant("")]])
def test_an_empty_answer_is_none(tmp_path: Path, answer: Any) -> None:
    assert read(tmp_path, {"prompt": "a", "completion": answer}).references == ()
    assert read(tmp_path, {"messages": [user("a"), assistant(" ")], "completion": answer}).references == ()


REFUSED = [
    ({}, r"no prompt; expected `messages` .* got the keys \[\]"),
    ({"question": "a"}, r"got the keys \['question'\]"),
    ({"conversations": [{"from": "human", "value": "a"}]}, r"got the keys \['conversations'\]"),
    ({"prompt": None}, "no prompt"),
    ({"prompt": ""}, "must be non-empty text, got ''"),
    ({"prompt": " \n"}, "must be non-empty text"),
    ({"prompt": 5}, "`prompt` must be text, got int 5"),
    ({"prompt": 2.5}, "`prompt` must be text, got float 2.5"),
    ({"prompt": True}, "`prompt` must be text, got bool"),
    ({"prompt": {"text": "a"}}, "`prompt` must be text, got dict"),
    ({"prompt": []}, "`prompt` must be a non-empty list"),
    ({"prompt": "a\x00b"}, "`prompt` holds a NUL character, at character 2"),
    ({"instruction": "", "input": "x"}, "`instruction` must be non-empty text"),
    ({"instruction": "Add.", "context": [1, 2]}, "`context` must be text, got list"),
    ({"instruction": "Add.", "input": "1", "context": "2"}, "`input` and `context` are both here, and differ"),
    ({"prompt": "a", "input": "b"}, "`input` is not part of the `prompt`"),
    ({"messages": [user("a")], "context": "b"}, "`context` is not part of the `messages`"),
    ({"prompt": "a", "context": ["b", "c"]}, "`context` is not part of the `prompt`"),
    ({"prompt": "a", "messages": [user("b")]}, "`messages` and `prompt` are both here, and not the same"),
    ({"prompt": "a", "instruction": "a"}, "`prompt` and `instruction` are both here"),
    ({"prompt": "a", "system": "Be kind."}, "the column `system` is not read"),
    ({"prompt": "a", "tools": [{"name": "f"}]}, "the column `tools` is not read"),
    ({"prompt": "a", "images": ["x.png"]}, "the column `images` is not read"),
    ({"prompt": "a", "history": [["q", "a"]]}, "the column `history` is not read"),
    ({"prompt": "a", "completion": 3}, "`completion` must be text, got int 3"),
    ({"prompt": "a", "completion": ["b", None]}, "`completion` must be text, got NoneType"),
    ({"prompt": "a", "completion": [assistant("b"), 1]}, "must be one assistant's turn, got 2 items"),
    ({"prompt": "a", "completion": [1, assistant("b")]}, "must be one assistant's turn, got 2 items"),
    ({"prompt": "a", "completion": [assistant("b"), user("c"), assistant("d")]}, "must be one assistant's turn, got 3 items"),
    ({"prompt": "a", "completion": [user("b")]}, "must be an assistant's turn, got the role 'user'"),
    ({"prompt": "a", "completion": [{"content": "b"}]}, "`role` must be a word such as user, got None"),
    ({"prompt": "a", "completion": "b", "response": "c"}, "`completion` and `response` hold different answers"),
    ({"instruction": "a", "output": "b", "response": "c"}, "`output` and `response` hold different answers"),
    ({"messages": [user("a"), assistant("b")], "completion": "c"}, "end with an answer, and the column with the answer has another"),
    ({"messages": "a"}, "`messages` must be a non-empty list"),
    ({"messages": []}, "`messages` must be a non-empty list"),
    ({"messages": ["a"]}, "messages must be objects with `role` and `content`, got 'a'"),
    ({"messages": [{"role": "user"}]}, "`content` must be text, got NoneType"),
    ({"messages": [user(3)]}, "`content` must be text, got int 3"),
    ({"messages": [{"role": 1, "content": "a"}]}, "`role` must be a word such as user, got 1"),
    ({"messages": [{"role": "", "content": "a"}]}, "`role` must be a word such as user, got ''"),
    ({"messages": [{"role": "user\n", "content": "a"}]}, "`role` must be a word"),
    ({"messages": [{"role": "<|im_end|>", "content": "a"}]}, "`role` must be a word"),
    ({"messages": [user("")]}, "must be non-empty text"),
    ({"messages": [{"role": "system", "content": "a"}]}, "must end with a user's turn"),
    ({"messages": [user("a"), assistant("b"), assistant("c")]}, "must end with a user's turn"),
    ({"messages": [assistant("b")]}, "must end with a user's turn"),
    ({"messages": [user("a"), {"role": "tool", "content": "4"}]}, "must end with a user's turn"),
    ({"messages": [user("a"), assistant("b") | {"tool_calls": [{"name": "f"}]}]}, "`tool_calls` in a message is not read"),
    ({"messages": [user("a"), assistant("b") | {"reasoning_content": "hm"}]}, "`reasoning_content` in a message is not read"),
    ({"messages": [user([{"type": "image", "url": "x"}])]}, "a part of a message must be"),
    ({"messages": [user(["a"])]}, "a part of a message must be"),
    ({"messages": [user([{"type": "text"}])]}, "a part of a message must be"),
    ({"messages": [user([{"type": "text", "text": 3}])]}, "`text` must be text, got int 3"),
]


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_a_record_that_can_not_be_used_says_where_and_why(tmp_path: Path, record: dict, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + json.dumps(record) + "\n")
    with pytest.raises(DataError, match=rf"prompts\.jsonl, line 2: .*{message}"):
        load_prompts(str(path))
