"""Every edit makes the right artefacts anew, and no others: a table of what each artefact's key holds."""

import gzip
import inspect
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import places
import pytest
import yaml
from conftest import tiny_recipe_dict
from safetensors.torch import load_file, save_file

from tdistill.experiment.graph import STAGES
from tdistill.experiment.models import load_own_tokenizer
from tdistill.objectives import registry

EVERYTHING = {"teacher", "start", "train", "valid", "test", "sft", "sft_continued", "distilled", "evaluation", "report"}
TRAINED = {"sft", "sft_continued", "distilled", "evaluation", "report"}
SHOWN = {"evaluation", "report"}


def keys(recipe: Path) -> dict[str, frozenset[str]]:
    """Return what the table names → the keys behind it. Models are made: later keys hold what they noted."""
    experiment = places.made(recipe)
    found: dict[str, set[str]] = {}
    for stage, spec in STAGES.items():
        for artefact in spec.artefacts(experiment):
            name = {"evaluate": "evaluation", "report": "report", "sparsity": "sparsity"}.get(stage) or artefact.title
            found.setdefault(name.removeprefix("roll-outs of "), set()).add(artefact.key)
    found.pop("sparsity")
    return {name: frozenset(own) for name, own in found.items()}


class Place:
    """A teacher and prompt files that a test may edit, and the recipe over them."""

    def __init__(self, tmp_path: Path, teacher: Path):
        self.root, self.teacher = tmp_path, tmp_path / "teacher"
        shutil.copytree(teacher, self.teacher)
        self.raw = tiny_recipe_dict(self.teacher, tmp_path)
        self.raw["train"]["lm"] = {"corpus": str(tmp_path / "corpus.txt"), "window": 8}
        (tmp_path / "corpus.txt").write_text("A long text about nothing at all. " * 20)

    def recipe(self) -> Path:
        path = self.root / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.raw))
        return path

    def edit_json(self, name: str, **values) -> None:
        path = self.teacher / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def lines(self, split: str) -> list[str]:
        return Path(self.raw["data"][split]).read_text().splitlines()

    def write_lines(self, split: str, lines: list[str]) -> None:
        Path(self.raw["data"][split]).write_text("\n".join(lines) + "\n")


@pytest.fixture
def place(tmp_path, tiny_teacher):
    return Place(tmp_path, tiny_teacher)


def set_to(section: str, **values):
    return lambda place, _: place.raw.setdefault(section, {}).update(values)


def edit_template(place, _):
    (place.teacher / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}!")


def edit_weights(place, _):
    weights = load_file(place.teacher / "model.safetensors")
    save_file({k: v + 1e-3 for k, v in weights.items()}, place.teacher / "model.safetensors", {"format": "pt"})


def add_prompt(split: str):
    line = json.dumps({"prompt": f"one more of {split}", "completion": "x"})
    return lambda place, _: place.write_lines(split, [*place.lines(split), line])


def edit_answer(split: str):
    return lambda place, _: place.write_lines(split, [json.dumps(json.loads(x) | {"completion": "another"}) for x in place.lines(split)])


def compress_prompts(place, _):
    path = Path(place.raw["data"]["train"])
    with gzip.open(f"{path}.gz", "wb") as handle:
        handle.write(path.read_bytes())
    place.raw["data"]["train"] = f"{path}.gz"


def reorder_columns(place, _):
    place.write_lines("train", [json.dumps(dict(reversed(json.loads(x).items()))) for x in place.lines("train")])


def move_all(place, _):
    shutil.move(place.teacher, place.root / "elsewhere")
    place.raw["teacher"]["teacher_model_name_or_path"] = str(place.root / "elsewhere")
    os.utime(place.root / "elsewhere/model.safetensors", (1, 1))
    place.raw["output_dir"] = str(place.root / "other-run")


def change_default(name: str, argument: str, value):
    def edit(_, monkeypatch):
        entry = registry.OBJECTIVES[name]

        def changed(steps, **arguments):
            return entry.fn(steps, **arguments)

        parameters = inspect.signature(entry.fn).parameters
        assert argument in parameters
        changed.__annotations__ = dict(entry.fn.__annotations__)
        changed.__signature__ = inspect.signature(entry.fn).replace(
            parameters=[p.replace(default=value) if p.name == argument else p for p in parameters.values()]
        )
        monkeypatch.setitem(registry.OBJECTIVES, name, replace(entry, fn=changed))

    return edit


def raise_version(name: str):
    def edit(_, monkeypatch):
        entry = registry.OBJECTIVES[name]
        monkeypatch.setitem(registry.OBJECTIVES, name, replace(entry, version=entry.version + 1))

    return edit


def set_argument(where: str, **values):
    def edit(place, _):
        section = place.raw[where] if where != "sft_continued" else place.raw["train"]["baselines"][where]
        section["arguments"].update(values)

    return edit


def say_default(place, _):
    place.raw["train"]["objective"]["gamma"] = 0.99


def edit_corpus(place, _):
    (place.root / "corpus.txt").write_text("Another long text about something else. " * 20)


def nothing(place, _):
    pass


EDITS = [
    ("nothing", nothing, set()),
    ("template", edit_template, EVERYTHING),
    ("eos list", lambda place, _: place.edit_json("generation_config.json", eos_token_id=[256, 10]), EVERYTHING),
    ("generation config", lambda place, _: place.edit_json("generation_config.json", temperature=0.5, do_sample=True), EVERYTHING),
    ("config", lambda place, _: place.edit_json("config.json", rms_norm_eps=1e-3), EVERYTHING),
    ("weights", edit_weights, EVERYTHING),
    ("a file that no one reads", lambda place, _: (place.teacher / "README.md").write_text("x"), set()),
    ("places and clocks", move_all, set()),
    ("a test prompt", add_prompt("test"), {"test", *SHOWN}),
    ("a validation prompt", add_prompt("valid"), {"valid", *TRAINED}),
    ("a training prompt", add_prompt("train"), {"train", *TRAINED}),
    ("answers nobody reads", edit_answer("train"), set()),
    ("compressed prompts", compress_prompts, set()),
    ("order of columns", reorder_columns, set()),
    ("fewer test prompts", set_to("data", max_test_prompts=4), {"test", *SHOWN}),
    ("roll-outs' p", set_to("rollout", teacher_top_p=0.9), EVERYTHING - {"teacher", "start"}),
    ("roll-outs' seed", set_to("rollout", seed=99), EVERYTHING - {"teacher", "start"}),
    ("roll-outs' batches", set_to("rollout", batch_size=4, shard_batches=1), set()),
    ("layers", set_to("student", num_hidden_layers=3), {"start", *TRAINED}),
    ("what computes the teacher's attention", set_to("teacher", attn_implementation="eager"), EVERYTHING - {"teacher", "start"}),
    ("what computes the student's attention", set_to("student", attn_implementation="eager"), TRAINED),
    ("the attention that is the default", set_to("student", attn_implementation=None), set()),
    ("sft's rate", set_argument("sft", learning_rate=2e-3), TRAINED),
    ("sft's seed", set_to("sft", seed=8), TRAINED),
    ("a baseline's steps", set_argument("sft_continued", max_steps=2), {"sft_continued", *SHOWN}),
    ("train's rate", set_argument("train", learning_rate=2e-3), {"sft_continued", "distilled", *SHOWN}),
    ("the same rate, written otherwise", set_argument("train", learning_rate=0.001), set()),
    ("batches of validation", set_argument("train", per_device_eval_batch_size=3), set()),
    ("logging", set_argument("train", logging_steps=3, report_to="none"), set()),
    ("watched answers", lambda place, _: place.raw["train"].update(monitor={"log_completions": 2}), set()),
    ("a default of the objective", change_default("iq_learn", "gamma", 0.5), {"distilled", *SHOWN}),
    ("that default given, which the report says", say_default, SHOWN),
    ("the objective's version", raise_version("iq_learn"), {"distilled", *SHOWN}),
    ("the anchor's version", raise_version("tail"), {"distilled", *SHOWN}),
    ("another objective's version", raise_version("jsd"), set()),
    ("own text of share 0", lambda place, _: place.raw["train"].update(on_policy={"lmbda": 0}), set()),
    ("the corpus", edit_corpus, {"sft_continued", "distilled", *SHOWN}),
    ("a baseline more", lambda place, _: place.raw["train"]["baselines"].update(more={"name": "jsd"}), {"more", *SHOWN}),
    ("evaluation's nucleus", set_to("evaluation", top_p=0.9), SHOWN),
    ("evaluation's batches", set_to("evaluation", batch_size=2), set()),
    ("samples shown", set_to("evaluation", num_samples_shown=1), {"report"}),
    ("an exact head", lambda place, _: place.raw["train"].update(head="chunked"), set()),
    ("an estimate", lambda place, _: place.raw["train"].update(head={"name": "sampled"}), {"sft_continued", "distilled", *SHOWN}),
    ("the title", lambda place, _: place.raw.update(title="another"), {"report"}),
]


@pytest.mark.parametrize(("edit", "anew"), [(edit, anew) for _, edit, anew in EDITS], ids=[name for name, _, _ in EDITS])
def test_an_edit_makes_the_right_artefacts_anew_and_no_others(edit, anew, place, monkeypatch):
    before = keys(place.recipe())
    assert set(before) == EVERYTHING
    edit(place, monkeypatch)
    after = keys(place.recipe())
    assert {name for name in after if after[name] != before.get(name)} == anew


def test_a_seed_more_is_one_student_more_and_the_others_keep_their_keys(place):
    place.raw["train"]["seeds"] = [17, 18]
    before = places.experiment(place.recipe())
    places.made(place.recipe())
    old = {a.key for a in STAGES["train"].artefacts(before)}
    place.raw["train"]["seeds"] = [17, 18, 19]
    new = [a for a in STAGES["train"].artefacts(places.experiment(place.recipe())) if a.key not in old]
    assert sorted(a.title for a in new) == ["distilled, seed 19", "sft_continued, seed 19"]


def test_one_more_test_prompt_leaves_the_answers_of_no_student_but_their_roll_outs(place):
    place.raw["rollout"]["score_references"] = True
    before = keys(place.recipe())
    edit_answer("train")(place, None)
    after = keys(place.recipe())
    assert {name for name in after if after[name] != before[name]} == {"train-human"}


CLOCK = "{% for m in messages %}{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }} {{ m['content'] }}{% endfor %}"


def test_a_template_that_reads_the_clock_is_pinned_once(place):
    (place.teacher / "chat_template.jinja").write_text(CLOCK)
    before = keys(place.recipe())
    assert keys(place.recipe()) == before, "another moment, the same prompts"
    experiment = places.experiment(place.recipe())
    first, second = (load_own_tokenizer(experiment).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) for _ in range(2))
    assert first == second
    shutil.rmtree(places.teacher(place.recipe()))
    after = keys(place.recipe())
    assert after["teacher"] == before["teacher"]
    assert after["train"] != before["train"], "a teacher that was made anew at another moment has other prompts"
