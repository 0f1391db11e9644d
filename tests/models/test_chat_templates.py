"""Chat templates run within bounds, and what they write is checked: a template is a program that came with a tokenizer."""

import resource
import time
from pathlib import Path

import pytest
from conftest import save_tiny_model
from tokenizer_kinds import CHATML, LLAMA_2, chatml, phi_3

from tdistill.data.prompts import Prompt, load_prompts, render, render_prompts, template_fingerprint, tokenize_prompts
from tdistill.models import templates
from tdistill.models.find import find_model
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import DataError

TEXT = "{{ messages[-1]['content'] }}"


def asked(*contents: str, roles: tuple[str, ...] = ("user",)) -> Prompt:
    return Prompt("p", tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True)), where="prompts.jsonl, line 7")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{", "fails on these turns .* TemplateSyntaxError"),
        ("{% if %}" + TEXT, "fails on these turns .* TemplateSyntaxError"),
        (TEXT + "{{ 1 / 0 }}", "ZeroDivisionError"),
        (TEXT + "{{ raise_exception('users must alternate') }}", "users must alternate"),
        (TEXT + "{{ tools[0]['name'] }}", "UndefinedError"),
        (TEXT + "{{ documents | length }}", "TypeError"),
        (TEXT + "{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        (TEXT + "{{ '\ud800' }}", "UnicodeEncodeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (TEXT + "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "RecursionError|ended its process"),
        ({"tool_use": TEXT}, "no default"),
        ({}, "ValueError"),
        ("", "writes nothing for these turns"),
        (" \n", "writes nothing for these turns"),
        ("{{ undefined }}", "writes nothing for these turns"),
        ("Answer:", "does not write the user turn 'Why so\\?' as it is"),
        ("{{ messages[-1]['content'][:3] }}", "does not write the user turn"),
        ("{{ messages[-1]['content'] | upper }}", "does not write the user turn"),
        (TEXT + "{{ 'x' * 10**9 }}", "needs more than 512 MiB"),
        (TEXT + "{{ '%1000000000d' % 1 }}", "needs more than 512 MiB"),
        (TEXT + "{{ '{:>1000000000}'.format(1) }}", "needs more than 512 MiB"),
        (TEXT + "{{ 'x' | center(1000000000) }}", "needs more than 512 MiB"),
        ("{% set ns = namespace(x='xx') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}", "needs more than 512"),
        (TEXT + "{% for i in range(11) %}{{ 'x' * (200000 + i) }}{% endfor %}", r"writes 2,200,062 characters, more than 1,000,028"),
    ],
)
def test_a_template_that_can_not_be_used_says_why(template: object, message: str) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = template
    with pytest.raises(
        DataError, match=rf"(?s)^prompts.jsonl, line 7: the chat template .*({message}).*[Cc]hat template \(chat_template.jinja"
    ):
        render(tokenizer, asked("Why so?"))


def test_a_template_can_not_run_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_CPU_SECONDS", 0.3)
    tokenizer = chatml()
    tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + TEXT
    with pytest.raises(DataError, match=r"line 7: the chat template took more than 0\.3 s of processor time"):
        render(tokenizer, asked("Why?"))


def test_a_template_that_only_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_SECONDS", 0.3)

    class Sleeping(type(chatml())):  # type: ignore[misc]
        """A model's own code may do anything, such as to wait for a server."""

        def apply_chat_template(self, *_: object, **__: object) -> str:
            time.sleep(60)
            return "late"

    tokenizer = chatml()
    tokenizer.__class__ = Sleeping
    start = time.monotonic()
    with pytest.raises(DataError, match=r"did not end within 0\.3 s"):
        render(tokenizer, asked("Why?"))
    assert time.monotonic() - start < 30


def test_a_template_leaves_this_process_as_it_was() -> None:
    tokenizer = chatml()
    before = resource.getrlimit(resource.RLIMIT_AS), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer.chat_template = TEXT + "{{ 'x' * 10**8 }}"
    with pytest.raises(DataError, match="100,000,007 characters|512 MiB"):
        render(tokenizer, asked("Why so?"))
    assert resource.getrlimit(resource.RLIMIT_AS) == before[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[1] < 50 << 10  # kB


@pytest.mark.parametrize("template", [CHATML, {"default": CHATML, "tool_use": TEXT}])
def test_a_template_may_have_names(template: object) -> None:
    tokenizer = chatml()
    want = render(tokenizer, asked("Why?"))
    tokenizer.chat_template = template
    assert render(tokenizer, asked("Why?")) == want
    assert len(template_fingerprint(tokenizer)) == 16


@pytest.mark.parametrize(
    ("template", "content"),
    [
        ("{{ messages[-1]['content'] | trim }}", "  two  \n words "),
        ("{{ messages[-1]['content'].split() | join(' ') }}", "  two  \n words "),
        ("{{ messages[-1] | tojson }}", 'a "quoted"\n\\ text'),
        ("{{ messages[-1]['content'] }}" * 4, "four times"),
    ],
)
def test_white_space_and_quoting_may_differ(template: str, content: str) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = template
    assert render(tokenizer, asked(content))


def test_the_message_names_the_conversation_that_the_template_refuses() -> None:
    tokenizer = phi_3()
    tokenizer.chat_template = LLAMA_2
    prompts = [asked("q"), asked("q", "a", "r", roles=("user", "assistant", "user"))]
    assert len(render_prompts(tokenizer, prompts)) == 2
    system = Prompt("s", ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}), where="x.jsonl, line 3")
    with pytest.raises(DataError, match=r"^x.jsonl, line 3: .* on these turns \(system, user\) .*Only user and assistant"):
        render_prompts(tokenizer, [*prompts, system])


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_turn_that_the_template_leaves_out_is_refused(role: str) -> None:
    tokenizer = chatml()
    tokenizer.chat_template = TEXT
    with pytest.raises(DataError, match=f"line 7: the chat template does not write the {role} turn 'first'"):
        render(tokenizer, asked("first", "second", roles=(role, "user")))


def test_thoughts_before_an_earlier_answer_may_be_left_out() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}\n{% endfor %}"
    turns = asked("q", "<think>hm</think>answer", "r", roles=("user", "assistant", "user"))
    assert tokenizer.decode(render(tokenizer, turns)) == "q\nanswer\nr\n"


def test_a_prompt_file_and_its_template_meet_in_one_message(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(find_model(str(save_tiny_model(tmp_path / "model"))))
    tokenizer.chat_template = "{{ raise_exception('no') if 'bad' in messages[-1]['content'] else messages[-1]['content'] }}"
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "good"}\n\n{"prompt": "bad"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 3: the chat template fails .* no\. "):
        tokenize_prompts(load_prompts(str(path)), tokenizer, 64, "skip")


def test_prompts_that_are_all_too_long_name_what_is_set() -> None:
    tokenizer = chatml()
    prompts = [asked("x" * 90), asked("x" * 70)]
    for overlong in ("skip", "refuse"):
        with pytest.raises(
            DataError, match=rf"All 2 prompts .*max_prompt_length=16 .* so data.overlong={overlong} leaves none. Raise"
        ) as refusal:
            tokenize_prompts(prompts, tokenizer, 16, overlong)
        assert "set data.overlong: skip" not in str(refusal.value)
    with pytest.raises(DataError, match="1 of 2 prompts are longer .* or set data.overlong: skip"):
        tokenize_prompts(prompts, tokenizer, len(render(tokenizer, prompts[1])), "refuse")
