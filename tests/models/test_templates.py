"""Templates that read the clock: a pinned one writes the same text on any day."""

from datetime import datetime

import pytest

from tdistill.models.find import ModelSource, find_model
from tdistill.models.templates import pin_clock, render_conversations
from tdistill.models.tokenizer import load_tokenizer
from tdistill.runtime.errors import DataError

NOW = datetime(2024, 7, 26, 9, 5)
TURNS = [{"role": "user", "content": "Hello"}]
# As Llama 3.2 and SmolLM3 write it.
LLAMA = """{%- if strftime_now is defined %}{%- set date = strftime_now("%d %b %Y") %}{%- else %}{%- set date = "none" %}{%- endif %}
{{- "Today: " + date + "\\n" + messages[0].content }}"""


@pytest.fixture
def tokenizer(tiny_teacher):
    return load_tokenizer(find_model(str(tiny_teacher)))


def rendered(tokenizer) -> str:
    (text,) = render_conversations(tokenizer, [TURNS], ["here"])
    return text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAMA, "Today: 26 Jul 2024\nHello"),
        ("{{ strftime_now( '%H:%M' ) }} {{ messages[0].content }}", "09:05 Hello"),
        ("{% set y = strftime_now('%Y')|int + 1 %}{{ y }} {{ messages[0].content }}", "2025 Hello"),
        ("{{ messages[0].content }}", "Hello"),
    ],
)
def test_a_pinned_template_writes_the_date_of_one_moment(tokenizer, template, text):
    tokenizer.chat_template = template
    pin_clock(tokenizer, NOW)
    assert rendered(tokenizer) == text


def test_a_template_that_is_saved_after_it_was_pinned_stays_so(tokenizer, tmp_path):
    tokenizer.chat_template = LLAMA
    pin_clock(tokenizer, NOW)
    tokenizer.save_pretrained(tmp_path)
    assert rendered(load_tokenizer(ModelSource(str(tmp_path), tmp_path))) == "Today: 26 Jul 2024\nHello"


def test_every_named_template_is_pinned(tokenizer):
    tokenizer.chat_template = {"default": "{{ strftime_now('%Y') }} {{ messages[0].content }}", "tool_use": "{{ strftime_now('%d') }}"}
    pin_clock(tokenizer, NOW)
    assert tokenizer.chat_template == {"default": '{{ "2024" }} {{ messages[0].content }}', "tool_use": '{{ "26" }}'}


def test_a_tokenizer_without_a_template_stays_so(tokenizer):
    pin_clock(tokenizer, NOW)
    assert tokenizer.chat_template is None


def test_a_clock_that_cannot_be_pinned_is_refused(tokenizer):
    tokenizer.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }} {{ messages[0].content }}"
    with pytest.raises(DataError, match="reads the clock"):
        pin_clock(tokenizer, NOW)
