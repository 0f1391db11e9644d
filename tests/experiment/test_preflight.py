"""What can be known before the roll-outs is said before the roll-outs, and nothing is written then."""

import json
from pathlib import Path
from typing import Any

import places
import pytest
import yaml
from conftest import command, save_tiny_model, tiny_recipe_dict

from tdistill.data.overlap import conversation_key, held_out_prompts
from tdistill.data.prompts import Prompt, prompt_set_key
from tdistill.experiment.context import context_length
from tdistill.experiment.experiment import Experiment
from tdistill.experiment.preflight import preflight
from tdistill.experiment.rollouts import rollouts
from tdistill.runtime.errors import DataError, ModelError, TdistillError


@pytest.fixture
def recipe(tiny_teacher: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe_dict(tiny_teacher, tmp_path)))
    return path


def looked_at(recipe: Path, *overrides: str) -> Experiment:
    run = places.experiment(recipe, overrides)
    preflight(run)
    return run


CONTEXTS: dict[str, tuple[dict[str, Any], int | None]] = {
    "rotary": ({"max_position_embeddings": 4096}, 4096),
    "GPT-2": ({"n_positions": 1024, "n_ctx": 1024}, 1024),
    "MPT": ({"max_seq_len": 2048}, 2048),
    "composite": ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 9}, 512),
    "scaled": ({"max_position_embeddings": 1024, "rope_scaling": {"type": "linear", "factor": 4.0}}, 4096),
    "Llama 3.1": (
        {
            "max_position_embeddings": 131072,
            "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        },
        131072,
    ),
    "no limit stated": ({"hidden_size": 8}, None),
    "XLNet": ({"max_position_embeddings": -1}, None),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_of_a_model_is_read_from_its_configuration(name: str) -> None:
    config, length = CONTEXTS[name]
    assert context_length(config) == length


@pytest.mark.parametrize("value", ["4096", True, 1e3])
def test_a_context_that_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match="must be a whole number of tokens"):
        context_length({"max_position_embeddings": value})


LENGTHS = {
    "roll-outs": (["rollout.max_completion_length=129"], "data.max_prompt_length + rollout.max_completion_length = 257 tokens"),
    "evaluation": (["evaluation.max_completion_length=200"], "data.max_prompt_length + evaluation.max_completion_length = 328 tokens"),
    "windows": (["train.lm={corpus: CORPUS, window: 300}"], "train.lm.window = 300 tokens"),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_every_length_beyond_the_context_is_refused(name: str, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some words\n\n" * 100)
    overrides, message = LENGTHS[name]
    with pytest.raises(DataError) as error:
        looked_at(recipe, *(o.replace("CORPUS", str(tmp_path / "corpus.txt")) for o in overrides))
    assert message in str(error.value)
    assert "model's context is 256" in str(error.value)


@pytest.mark.parametrize("shorter", ["teacher", "student"])
def test_the_shorter_context_of_the_two_models_counts(shorter: str, recipe: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "short")
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 100}
    (model / "config.json").write_text(json.dumps(config))
    teacher = yaml.safe_load(recipe.read_text())["teacher"]["teacher_model_name_or_path"]
    paths = {"teacher": teacher, "student": teacher, shorter: model}
    student = f"student={{init: pretrained, student_model_name_or_path: {paths['student']}}}"
    with pytest.raises(DataError, match=f"= 140 tokens, but the {shorter} model's context is 100"):
        looked_at(recipe, f"teacher.teacher_model_name_or_path={paths['teacher']}", student)


def repeat_in(recipe: Path, split: str, text: str) -> None:
    path = Path(yaml.safe_load(recipe.read_text())["data"][split])
    path.write_text(path.read_text() + json.dumps({"prompt": text, "completion": "a"}) + "\n")


def test_two_spellings_of_a_conversation_are_one() -> None:
    def key(text: str) -> object:
        return conversation_key(Prompt("p", ({"role": "user", "content": text},)))

    assert key("Train  QUESTION\u00a00\n") == key("train question 0") == key("ｔrain question 0")
    assert key("train question 1") != key("train question 0")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_prompts_that_are_trained_on_are_refused_by_default(split: str, recipe: Path) -> None:
    repeat_in(recipe, split, "Train  question 0")
    with pytest.raises(DataError, match=rf"1 of 7 prompts of {split} \(.*\) are also in train, such as 'Train  question 0'"):
        looked_at(recipe)
    looked_at(recipe, f"data.max_{split}_prompts=6")  # it is cut off
    assert not (recipe.parent / "run").exists()


def test_prompts_that_are_trained_on_are_dropped_or_counted_as_asked(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    repeat_in(recipe, "test", "train question 0")
    dropped, counted = (looked_at(recipe, f"data.overlap={how}") for how in ("drop", "count"))
    said = " ".join(capsys.readouterr().err.split())
    assert "left out (data.overlap: drop)" in said
    assert "kept and counted (data.overlap: count)" in said
    assert [len(held_out_prompts(run.recipe.data, "test")) for run in (dropped, counted)] == [6, 7]
    keys = [prompt_set_key(run.prompts("test"), with_references=False) for run in (dropped, counted, places.experiment(recipe))]
    assert keys[0] != keys[1] == keys[2], "to count changes no prompt"


def test_the_report_says_that_test_prompts_were_trained_on(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    repeat_in(recipe, "test", "train question 0")
    assert command("run", recipe, "data.overlap=count", "train.baselines={}") == 0
    (report,) = (recipe.parent / "run").glob("report/*/report.md")
    assert "1 of them also trained on" in report.read_text()
    assert "never trained on" not in report.read_text()
    run = places.experiment(recipe, ["data.overlap=count"])
    assert [run.notes(rollouts(run)[split])["also_in_train"] for split in ("valid", "test")] == [0, 1]
    # The roll-outs are complete, and now it is asked to refuse.
    assert command("run", recipe, "train.baselines={}") == 2
    assert "are also in train" in " ".join(capsys.readouterr().err.split())


REFUSED = {
    "a mistyped path": (["teacher.teacher_model_name_or_path=DIR/tiny_teachr0"], "'teacher.teacher_model_name_or_path': No model at"),
    "a student's path": (
        ["student={init: pretrained, student_model_name_or_path: /no/m}"],
        "'student.student_model_name_or_path': No model at",
    ),
    "no owner": (["teacher.teacher_model_name_or_path=gpt2"], "has its owner before it: openai-community/gpt2"),
    "unknown home": (["data.train=~nouser/x.jsonl"], "'data.train': no home directory is known for '~nouser'"),
    "a long path": (["data.train=" + "x" * 5000], "'data.train': can't be a path"),
    "no path": (["output_dir=' '"], "'output_dir': must name"),
    "a file": (["output_dir=DIR/recipe.yaml/run"], "is a file, not a directory"),
    "no file": (["data.valid=DIR/none.jsonl"], "none.jsonl"),
    "human without answers": (["evaluation.reference=human", "data.test=DIR/bare.jsonl"], "has no answers"),
    "learning from no answers": (
        ["train.origins=[human]", "rollout.score_references=true", "data.valid=DIR/bare.jsonl"],
        "has no answers to learn from",
    ),
    "a short corpus": (["train.lm={corpus: DIR/short.txt, window: 100}"], "less than one window of 100"),
    "workers that are kept and none": (["train.arguments.dataloader_persistent_workers=true"], "'train.arguments': the data loader"),
    "a large seed": (["seed=5000000000"], "'seed': Input should be less than 4294967296"),
    "a secret": (["train.arguments.hub_token=hf_abc"], "'train.arguments.hub_token' is a secret"),
    "a secret elsewhere": (["train.baselines.x={name: nll, api_key: hf_abc}"], "api_key' is a secret"),
    "not finite": (["train.lm={corpus: a.txt, lm_coef: .inf}"], "'train.lm.lm_coef' must be a finite number"),
    "a value without a head": (["train.objective=nll", "train.value.learning_rate=1.0"], "has no value head"),
    "layers of a pretrained student": (
        ["student={init: pretrained, student_model_name_or_path: a/b, num_hidden_layers: 2}"],
        "keeps all layers of its model",
    ),
    "a pretrained student that is pruned": (["student.student_model_name_or_path=a/b"], "is read with init: pretrained only"),
    "attention without a GPU": (["teacher.attn_implementation=flash_attention_2"], "'teacher.attn_implementation': flash_attention_2 "),
    "an unknown attention": (["student.attn_implementation=fast"], "'student.attn_implementation': Input should be 'eager', 'sdpa'"),
    "watching no validation": (
        ["train.monitor.log_completions=1", "train.arguments.eval_steps=8", "train.arguments.save_steps=8"],
        "acts at validations",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_work_is_refused_before_anything_is_written(
    name: str, recipe: Path, tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "tiny_teacher0").symlink_to(tiny_teacher)
    (tmp_path / "short.txt").write_text("few words")
    (tmp_path / "bare.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    overrides, message = REFUSED[name]
    assert command("run", recipe, *(o.replace("DIR", str(tmp_path)) for o in overrides)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "hf_abc" not in said
    assert "Value error" not in said
    assert len(said) < 1500
    if name == "a mistyped path":
        assert f"Did you mean '{tmp_path}/tiny_teacher0'?" in said
    assert not (tmp_path / "run").exists()


def test_a_home_directory_is_meant_by_a_tilde(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.experiment(recipe, ["output_dir=~/there"]).root == tmp_path / "there"


def test_a_teacher_without_weights_is_a_message(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TdistillError, match="teacher_model_name_or_path"):
        looked_at(recipe, f"teacher.teacher_model_name_or_path={tmp_path / 'empty'}")
