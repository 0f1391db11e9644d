"""Damaged chat templates: a prompt's text reaches the model whole, or an error says what to mend."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from tokenizer_kinds import CHATML, LLAMA_2, PHI_3, PLAIN, chatml

from fuzz.mutate import mutated_bytes
from tdistill.data.prompts import Prompt, render_prompts

QUESTIONS = ("What is a barcode?", "What is a bar code?")
SNIPPETS = (
    "{{ messages }}", "{{ messages[0] }}", "{{ messages[-1]['content'] }}", "{{ 'x' * 10**6 }}", "{{ 1 / 0 }}",
    "{% for i in range(9) %}",
    "{% endfor %}", "{% if messages %}", "{% endif %}", "{% set messages = [] %}", "{% set m = 1 %}", "{{ m }}", "{{ tools }}",
    "{%", "%}", "{{", "}}",
    "{#", "#}", "{{ bos_token }}", "{{ eos_token }}", "{{ raise_exception('no') }}", "| upper", "| trim", "| length", "[::-1]", "{{ '\\x00' }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include 'x' %}",
    "{% generation %}", "{{ strftime_now('%Y') }}", "<|im_end|>", "{% raw %}",
)  # fmt: skip


def damaged(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    sources = (CHATML, PHI_3, LLAMA_2, PLAIN)
    for i in range(count):
        source = sources[i % len(sources)]
        if rng.random() < 0.5:
            (content,) = mutated_bytes(source.encode(), seed * count + i, 1)
            yield content.decode("utf-8", "replace")
        else:
            at = rng.randrange(len(source))
            yield source[:at] + rng.choice(SNIPPETS) + source[at + rng.choice((0, 0, 3, 12)) :]


def squeezed(text: str) -> str:
    return "".join(text.split())


def read_all(outcomes: Any, seed: int, count: int) -> None:
    tokenizer = chatml(bos_token="<|im_start|>")
    prompts = [Prompt(text, ({"role": "user", "content": text},), where="p.jsonl, line 1") for text in QUESTIONS]

    def attempt(template: str) -> list[tuple[int, ...]]:
        tokenizer.chat_template = template
        return render_prompts(tokenizer, prompts)

    def right(template: str, ids: list[tuple[int, ...]]) -> bool:
        usual = [tokenizer.apply_chat_template(list(p.messages), tokenize=False, add_generation_prompt=True) for p in prompts]
        kept = all(squeezed(p.text) in squeezed(tokenizer.decode(row)) for p, row in zip(prompts, ids, strict=True))
        return kept and len(set(ids)) == 2 and ids == [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in usual]

    counts = outcomes("templates", damaged(seed, count), attempt, right)
    assert counts["accepted"]
    assert counts["refused"] > count // 20


def test_a_damaged_template_writes_the_prompt_or_is_refused(outcomes: Any) -> None:
    read_all(outcomes, seed=1, count=60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_damaged_templates_write_the_prompt_or_are_refused(outcomes: Any, seed: int) -> None:
    read_all(outcomes, seed, count=400)
