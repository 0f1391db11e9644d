"""The language-modelling term: what its windows are, what it costs, and how it is divided."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
import torch
import yaml

from tdistill.cli import main
from tdistill.data.corpus import PackedCorpus, read_documents
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.student import StudentModel
from tdistill.models.tokenizer import load_tokenizer
from tdistill.recipe.schema import HeadConfig, LmConfig
from tdistill.runtime.errors import ConfigError, DataError
from tdistill.training.batch import OnlineTeacher
from tdistill.training.language_modelling import window_loss

PARAGRAPHS = [f"Paragraph {i} of the corpus" + ", and more" * (i % 4) + "." for i in range(40)]


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> Any:
    return load_model(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(find_model(str(tiny_teacher)))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(PARAGRAPHS) + "\n")
    return path


def test_windows_hold_every_token_once_in_order(corpus: Path, tokenizer: Any) -> None:
    packed = PackedCorpus(str(corpus), tokenizer, 32)
    flat = np.concatenate([packed[i] for i in range(len(packed))])
    want = [t for p in PARAGRAPHS for t in [*tokenizer(p, add_special_tokens=False).input_ids, tokenizer.eos_token_id]]
    np.testing.assert_array_equal(flat, want[: len(flat)])
    assert len(want) - 32 < len(flat) <= len(want)


def test_every_form_of_a_corpus_is_the_same(corpus: Path, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": p}) for p in PARAGRAPHS)
    (tmp_path / "c.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    for name in ("corpus.txt", "c.jsonl", "c.jsonl.gz"):
        assert list(read_documents(str(tmp_path / name))) == PARAGRAPHS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"short", "less than one window of 64"),
        ("c.txt", b"\xff\xfe", "UTF-16 text, not UTF-8"),
        ("c.jsonl", b'{"text": "a"}\n{"txt": "b"}', "line 2: expected an object"),
        ("c.txt.gz", b"no gzip", "can't be read"),
        ("c.pdf", b"x", "give a .txt or .jsonl file"),
    ],
)
def test_a_corpus_that_is_none_says_why(name: str, content: bytes, message: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        PackedCorpus(str(tmp_path / name), tokenizer, 64)


@pytest.mark.parametrize("head", ["full", "chunked", "sampled"])
def test_the_losses_are_cross_entropy_and_the_dense_divergence(head: Any, teacher: Any, tokenizer: Any) -> None:
    student = prune_layers(teacher, [0, 3])
    vocab = len(tokenizer)
    windows = torch.randint(vocab, (3, 12), generator=torch.Generator().manual_seed(0))
    made = StudentModel(student)
    made.use_head(HeadConfig(name=head))
    total, parts = window_loss(made, windows, LmConfig(corpus="none", kd_ratio=0.25), OnlineTeacher(teacher, vocab), vocab)
    ce, kd = parts["cross_entropy"], parts["kd"]
    with torch.no_grad():
        q, p = (m(windows[:, :-1]).logits[..., :vocab].log_softmax(-1) for m in (student, teacher))
    torch.testing.assert_close(ce, -q.gather(-1, windows[:, 1:, None]).squeeze(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kd, (p.exp() * (p - q)).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, (0.75 * ce + 0.25 * kd).sum(), atol=1e-4, rtol=1e-6)
    total.backward()
    assert student.lm_head.weight.grad.abs().sum() > 0
    assert teacher.lm_head.weight.grad is None
    alone, parts = window_loss(made, windows, LmConfig(corpus="none"), None, vocab)
    assert parts.keys() == {"cross_entropy"}
    torch.testing.assert_close(alone, ce.sum(), atol=1e-4, rtol=1e-6)


def trained(recipe: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[dict[str, float]]:
    for stage in ("rollout", "sft", "train"):
        monkeypatch.setattr("sys.argv", ["tdistill", stage, str(recipe), *overrides])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    directory = places.student(recipe, overrides)
    return [h for h in json.loads((directory / "log_history.json").read_text())["history"] if "loss" in h]


def test_the_term_is_added_with_its_own_divisor(tiny_recipe: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(tiny_recipe.read_text())
    content["train"] |= {"baselines": {}, "objective": {"name": "reverse_kl"}, "lm": {"corpus": str(corpus), "window": 24, "lm_coef": 0.5}}
    content["train"]["arguments"] |= {"per_device_train_batch_size": 4, "max_steps": 2, "lr_scheduler_type": "constant"}
    tiny_recipe.write_text(yaml.safe_dump(content))
    whole = trained(tiny_recipe, monkeypatch)
    assert whole[0]["lm/cross_entropy"] > 1.0
    cut = trained(tiny_recipe, monkeypatch, "train.arguments.per_device_train_batch_size=1", "train.arguments.gradient_accumulation_steps=4")
    for a, b in zip(whole, cut, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    double = trained(tiny_recipe, monkeypatch, "train.lm.lm_coef=1.0")
    assert double[0]["loss"] - whole[0]["loss"] == pytest.approx(0.5 * whole[0]["lm/cross_entropy"], rel=1e-4)
    taught = trained(tiny_recipe, monkeypatch, "train.lm.kd_ratio=0.3")
    want = 0.5 * (0.3 * taught[0]["lm/kd"] + 0.7 * taught[0]["lm/cross_entropy"])
    assert taught[0]["loss"] - (whole[0]["loss"] - 0.5 * whole[0]["lm/cross_entropy"]) == pytest.approx(want, rel=1e-4)


def test_a_missing_corpus_stops_before_anything_starts(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("sys.argv", ["tdistill", "run", str(tiny_recipe), "train.lm={corpus: nowhere.txt}"])
    with pytest.raises(SystemExit):
        main()
    assert "No corpus at nowhere.txt" in capsys.readouterr().err
    assert not (tiny_recipe.parent / "run").exists()
    with pytest.raises(ConfigError, match="kd_ratio"):
        open_recipe(tiny_recipe, ["train.lm={corpus: nowhere.txt, kd_ratio: 1.5}"])
