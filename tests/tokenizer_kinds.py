"""Small tokenizers of every kind that real models come with, with the control tokens and templates of model families."""

from collections.abc import Callable, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def byte_level(controls: list[str | AddedToken], template: str | None, **names: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with two merges; ``names`` are eos_token and so on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "th", "im"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("i", "m")], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([c if isinstance(c, AddedToken) else AddedToken(c, normalized=False) for c in controls])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def chatml(**names: str) -> PreTrainedTokenizerFast:
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, **({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"} | names)
    )


def llama_3() -> PreTrainedTokenizerFast:
    controls = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(controls, LLAMA_3, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def phi_3() -> PreTrainedTokenizerFast:
    """Its tokens swallow the white space after them."""
    swallowing = [
        AddedToken(name, rstrip=True, normalized=False, special=True) for name in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    ]
    return byte_level([*swallowing, "<|endoftext|>"], PHI_3, eos_token="<|endoftext|>")


def _sentencepiece_bpe(first: bool) -> PreTrainedTokenizerFast:
    """Blanks are ``▁``, one before the first word; ``<s>`` and ``</s>`` stand in the vocabulary; unknown characters are bytes."""
    letters = [chr(c) for c in range(33, 127)] + ["▁", "\n"]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=LLAMA_2, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """``</s>`` is a piece of the model itself, and the likeliest reading of these four characters."""
    pieces = [("<unk>", -20.0), ("</s>", 0.0), ("▁", -3.0), *((chr(c), -5.0) for c in range(33, 127))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁")
    backend.decoder = decoders.Metaspace("▁")
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def word_level() -> PreTrainedTokenizerFast:
    """Words between blanks; what is none of them is ``<unk>``, so that it can't write ``<eos>`` as text."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2, "b": 3, "x": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<eos>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


def slow() -> PreTrainedTokenizerBase:
    """Written in Python: bytes, and ``</s>``."""
    return ByT5Tokenizer(chat_template=PLAIN.replace("'\n'", "'</s>'"))


KINDS: Mapping[str, Callable[[], PreTrainedTokenizerBase]] = {
    "chatml": chatml,
    "llama-3": llama_3,
    "phi-3": phi_3,
    "llama-2": lambda: _sentencepiece_bpe(first=False),
    "mistral": lambda: _sentencepiece_bpe(first=True),
    "unigram": unigram,
    "slow": slow,
}
