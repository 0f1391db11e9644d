"""Keys of artefacts for the rarer kinds of input: shards, adapters, GGUF, a pretrained student, human answers, and settings nobody reads."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from conftest import save_tiny_model
from experiment.test_who_depends_on_what import EVERYTHING, SHOWN, TRAINED, Place, edit_answer, keys
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from tdistill.experiment.experiment import Experiment
from tdistill.experiment.recipe_checks import open_recipe
from tdistill.experiment.students import shaping
from tdistill.recipe.schema import ValueConfig

Edit = Callable[[Place], Any]
STUDENTS = {"sft_continued", "distilled", *SHOWN}


@pytest.fixture
def place(tmp_path: Path, tiny_teacher: Path) -> Place:
    return Place(tmp_path, tiny_teacher)


def shifted(path: Path) -> None:
    save_file({k: v + 1e-3 for k, v in load_file(path).items()}, path, {"format": "pt"})


def shard(place: Place) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(place.teacher), AutoTokenizer.from_pretrained(place.teacher)
    shutil.rmtree(place.teacher)
    model.save_pretrained(place.teacher, max_shard_size="40KB")
    tokenizer.save_pretrained(place.teacher)


def shards(place: Place) -> list[Path]:
    return sorted(place.teacher.glob("model-*.safetensors"))


def rename_last_shard(place: Place, change: bool) -> None:
    """Point the index to another file, with the same numbers or others."""
    index, last = place.teacher / "model.safetensors.index.json", shards(place)[-1]
    shutil.copy(last, place.teacher / "other.safetensors")
    index.write_text(index.read_text().replace(last.name, "other.safetensors"))
    if change:
        shifted(place.teacher / "other.safetensors")


def adapt(place: Place) -> None:
    """Make the teacher a directory of adapters of a base beside it."""
    base = shutil.copytree(place.teacher, place.root / "base")
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    shutil.rmtree(place.teacher)
    model.save_pretrained(place.teacher)
    edit(place.teacher / "adapter_config.json", base_model_name_or_path=str(base))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def move_base(place: Place) -> None:
    shutil.move(place.root / "base", place.root / "moved")
    edit(place.teacher / "adapter_config.json", base_model_name_or_path=str(place.root / "moved"))


def pretrain(place: Place) -> None:
    save_tiny_model(place.root / "student", seed=5)
    place.raw["student"] = {"init": "pretrained", "student_model_name_or_path": str(place.root / "student")}


def learn_from_humans(place: Place) -> None:
    place.raw["rollout"]["score_references"] = True
    place.raw["train"]["origins"] = ["human"]


def learn_values(place: Place) -> None:
    place.raw["train"]["baselines"]["valued"] = {"objective": {"name": "csil", "gauge": "learned"}}
    place.raw["train"]["value"] = {"warmup_steps": 1}


def train(**values: Any) -> Edit:
    return lambda place: place.raw["train"].update(values)


def section(name: str, **values: Any) -> Edit:
    return lambda place: place.raw.setdefault(name, {}).update(values)


def no_edit(_: Place) -> None:
    pass


def compress_corpus(place: Place) -> None:
    (place.root / "corpus.txt.gz").write_bytes(gzip.compress((place.root / "corpus.txt").read_bytes()))
    place.raw["train"]["lm"]["corpus"] = str(place.root / "corpus.txt.gz")


def arguments(**values: Any) -> Edit:
    return lambda place: place.raw["train"]["arguments"].update(values)


def repeat_prompt(split: str) -> Edit:
    return lambda place: place.write_lines(split, [*place.lines(split), place.lines(split)[0]])


def share_prompt(place: Place) -> None:
    place.write_lines("test", [*place.lines("test"), place.lines("train")[0]])
    place.raw["data"]["overlap"] = "count"


ROLLED = EVERYTHING - {"teacher", "start"}
CASES: list[tuple[str, Edit, Edit, set[str]]] = [
    ("a shard's numbers", shard, lambda p: shifted(shards(p)[-1]), EVERYTHING),
    ("an index that points to other numbers", shard, lambda p: rename_last_shard(p, True), EVERYTHING),
    ("an unused shard", shard, lambda p: shutil.copy(shards(p)[0], p.teacher / "model-99999-of-99999.safetensors"), set()),
    ("adapters", adapt, lambda p: shifted(p.teacher / "adapter_model.safetensors"), EVERYTHING),
    ("adapters' alpha", adapt, lambda p: edit(p.teacher / "adapter_config.json", lora_alpha=3), EVERYTHING),
    ("adapters' base", adapt, lambda p: shifted(p.root / "base/model.safetensors"), EVERYTHING),
    ("the base's eos", adapt, lambda p: edit(p.root / "base/generation_config.json", eos_token_id=[256, 10]), EVERYTHING),
    ("the base's template", adapt, lambda p: (p.root / "base/chat_template.jinja").write_text("{{ messages[0]['content'] }}!"), EVERYTHING),
    ("where the base lies", adapt, move_base, set()),
    ("student's weights", pretrain, lambda p: shifted(p.root / "student/model.safetensors"), {"start", *TRAINED}),
    ("student's config", pretrain, lambda p: edit(p.root / "student/config.json", rms_norm_eps=1e-3), {"start", *TRAINED}),
    ("student's generation", pretrain, lambda p: edit(p.root / "student/generation_config.json", eos_token_id=[256, 10]), {"start", *TRAINED}),
    ("student's template", pretrain, lambda p: (p.root / "student/chat_template.jinja").write_text("x"), {"start", *TRAINED}),
    ("teacher's weights", pretrain, lambda p: shifted(p.teacher / "model.safetensors"), EVERYTHING),
    ("human answers", learn_from_humans, lambda p: edit_answer("train")(p, None), {"train-human", *STUDENTS}),
    ("human test answers unread", learn_from_humans, lambda p: edit_answer("test")(p, None), {"test-human"}),
    ("human references", section("evaluation", reference="human"), lambda p: edit_answer("test")(p, None), SHOWN),
    ("human references of train", section("evaluation", reference="human"), lambda p: edit_answer("train")(p, None), set()),
    ("candidate rule", no_edit, train(candidate_rule={"name": "top_k", "value": 2}), STUDENTS),
    (
        "candidate rule written otherwise",
        train(candidate_rule={"name": "top_k", "value": 2}),
        train(candidate_rule={"name": "top_k", "value": 2.0}),
        set(),
    ),
    ("train p", no_edit, train(teacher_top_p=0.7), STUDENTS),
    ("train p that is the roll-outs'", no_edit, train(teacher_top_p=0.8), set()),
    ("on policy", no_edit, train(on_policy={"lmbda": 0.5}), STUDENTS),
    ("on policy of nothing", no_edit, train(on_policy={"lmbda": 0.0}), set()),
    ("on policy's rest with lmbda 0", train(on_policy={"lmbda": 0.0}), train(on_policy={"lmbda": 0.0, "temperature": 0.5}), set()),
    ("values of one objective", learn_values, train(value={"warmup_steps": 2}), {"valued", *SHOWN}),
    ("detach of one objective", learn_values, train(value={"warmup_steps": 1, "detach": False}), {"valued", *SHOWN}),
    ("detach as by default", learn_values, train(value={"warmup_steps": 1, "detach": True}), set()),
    ("compressed corpus", no_edit, compress_corpus, set()),
    ("lm coef", no_edit, lambda p: p.raw["train"]["lm"].update(lm_coef=2.0), STUDENTS),
    ("lm coef whole", lambda p: p.raw["train"]["lm"].update(lm_coef=2.0), lambda p: p.raw["train"]["lm"].update(lm_coef=2), set()),
    ("peft", no_edit, train(peft={"lora": {"r": 2, "target_modules": ["q_proj"]}}), STUDENTS),
    ("early stopping", no_edit, train(monitor={"early_stopping_patience": 1}), STUDENTS),
    ("kept checkpoints", no_edit, train(monitor={"keep_checkpoints": True}), set()),
    ("metric", no_edit, arguments(metric_for_best_model="eval_nll"), STUDENTS),
    ("metric without eval_", arguments(metric_for_best_model="eval_nll"), arguments(metric_for_best_model="nll"), set()),
    ("same seeds", no_edit, train(seeds=[3]), set()),
    ("another seed", no_edit, train(seeds=[4]), STUDENTS),
    ("recipe's seed", no_edit, lambda p: p.raw.update(seed=4), ROLLED),
    ("roll-outs' nucleus given", no_edit, section("rollout", top_p=0.8), set()),
    ("evaluation's seed", no_edit, section("evaluation", seed=5), SHOWN),
    ("evaluation's seed given", no_edit, section("evaluation", seed=3 + 1_000_003), set()),
    ("num generations", no_edit, section("evaluation", num_generations=2), SHOWN),
    ("dtype of teacher", no_edit, section("teacher", dtype="bfloat16"), ROLLED),
    ("fewer valid", no_edit, section("data", max_valid_prompts=4), {"valid", *TRAINED}),
    ("as many valid", no_edit, section("data", max_valid_prompts=6), set()),
    ("repeated prompt", no_edit, repeat_prompt("train"), {"train", *TRAINED}),
    ("overlap counted", no_edit, section("data", overlap="count"), set()),
    ("overlong refused", no_edit, section("data", overlong="refuse"), set()),
    ("shared counted", no_edit, share_prompt, {"test", *SHOWN}),
    ("shared dropped", share_prompt, section("data", overlap="drop"), {"test", *SHOWN}),
    ("longest prompt", no_edit, section("data", max_prompt_length=127), ROLLED),
]


@pytest.mark.parametrize(("before", "change", "anew"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_an_edit_of_a_rarer_input_makes_the_right_artefacts_anew(before: Edit, change: Edit, anew: set[str], place: Place) -> None:
    before(place)
    old = keys(place.recipe())
    change(place)
    new = keys(place.recipe())
    assert {name for name in new if new[name] != old.get(name)} == anew


UNREAD_SINCE_EVER = {"learning_rate": None, "warmup_steps": 0, "detach": False, "target_tau": 0.005}


@pytest.mark.parametrize("value", [{}, {"learning_rate": 0.5, "warmup_steps": 3, "detach": False}, {"detach": True, "target_tau": 0.5}])
@pytest.mark.parametrize(
    ("objective", "reads"),
    [
        ({"name": "jsd"}, set()),
        ({"name": "actor_critic"}, {"learning_rate", "warmup_steps", "detach"}),
        ({"name": "csil", "gauge": "none", "target_network": True}, {"target_tau"}),
        ({"name": "csil", "target_network": True}, set(UNREAD_SINCE_EVER)),
    ],
    ids=["no head", "value head", "target network", "value head and target network"],
)
def test_a_students_identity_holds_the_settings_that_its_objective_reads_and_constants_for_the_rest(
    objective: dict[str, Any], reads: set[str], value: dict[str, Any], place: Place
) -> None:
    """The constants are the defaults of the first version: a student that reads none of them is the same one after a default changed."""
    given = ValueConfig(**value)
    experiment = Experiment(open_recipe(place.recipe()))
    method = experiment.recipe.train.methods()["distilled"].model_copy(update={"objective": [objective], "value": given})
    assert UNREAD_SINCE_EVER.keys() == ValueConfig.model_fields.keys()
    assert shaping(experiment, method)["value"] == UNREAD_SINCE_EVER | {name: getattr(given, name) for name in reads}
