import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tdistill.data.collate import IGNORED_LABEL, DistillCollator
from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.prune import prune_layers
from tdistill.models.tokenizer import load_tokenizer
from tdistill.objectives import bind
from tdistill.recipe.schema import MethodConfig, RolloutConfig
from tdistill.runtime.errors import ConfigError, ModelError, NonFiniteLossError, TrainingError
from tdistill.teachers.rollouts import Teacher, roll_out
from tdistill.training.fit import fit, training_arguments
from tdistill.training.inputs import FitInputs
from tdistill.training.log import LOG_FILE
from tdistill.training.trainer import DistillTrainer


def make_teacher(directory):
    return load_model(find_model(str(directory)))


def make_student(directory):
    return prune_layers(make_teacher(directory), [0, 3]).train()


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher):
    return load_tokenizer(find_model(str(tiny_teacher)))


@pytest.fixture(scope="module")
def cache(tiny_teacher, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("rollouts")
    conversations = [Prompt(f"p{i}", ({"role": "user", "content": f"question {i}" + "?" * (i % 5)},)) for i in range(16)]
    prompts, _ = tokenize_prompts(conversations, tokenizer, 128, "refuse")
    rollout = RolloutConfig(teacher_top_p=0.9, max_completion_length=12, seed=1, batch_size=8, shard_batches=1)
    teacher = Teacher(lambda: make_teacher(tiny_teacher), tokenizer, [tokenizer.eos_token_id], {"teacher": "tiny"})
    roll_out(teacher, prompts, directory, rollout)
    return directory


@pytest.fixture
def train(tiny_teacher, tokenizer, cache, tmp_path):
    """Train a student on the cache; returns the trainer, after ``trainer.train()`` unless ``run`` is False."""

    def _train(objective, p=None, model=None, teacher=None, run=True, **arguments):
        given = {"max_steps": 1, "logging_steps": 1, "eval_strategy": "no", "save_strategy": "no", **arguments}
        args = training_arguments(given, tmp_path / "out", seed=4)
        data = RolloutDataset(cache, teacher_top_p=p)
        student = model if model is not None else make_student(tiny_teacher)
        trainer = DistillTrainer(student, args, objective, data, data, tokenizer, teacher_model=teacher)
        if run:
            trainer.train()
        return trainer

    return _train


def first_log(trainer):
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


OBJECTIVES = {
    "iq_learn": bind("iq_learn", alpha=10.0, anchor="tail"),
    "nll": bind("nll"),
    "sum": bind([{"name": "reverse_kl", "weight": 0.5}, {"name": "forward_kl"}]),
}


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), bind("mean_actor_critic")], ids=lambda o: o.name)
def test_batch_times_accumulation_is_what_counts(objective, train, cache):
    lengths = {len(RolloutDataset(cache)[i]["response_ids"]) for i in range(16)}
    assert len(lengths) > 1, "equal lengths would hide a mean of means"
    logs = {}
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = train(objective, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        logs[size] = first_log(trainer)
    for size in (4, 1):
        assert logs[size]["loss"] == pytest.approx(logs[8]["loss"], rel=1e-4)
        assert logs[size]["grad_norm"] == pytest.approx(logs[8]["grad_norm"], rel=1e-4)
    assert logs[8]["grad_norm"] > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_lowers_its_own_loss(name, train):
    trainer = train(OBJECTIVES[name], run=False, max_steps=25, per_device_train_batch_size=8, learning_rate=3e-3)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.05 * abs(before)


def test_a_nan_weight_stops_the_run_and_names_step_and_prompts(train, tiny_teacher):
    student = make_student(tiny_teacher)
    trainer = train(OBJECTIVES["iq_learn"], model=student, run=False, per_device_train_batch_size=2)
    with torch.no_grad():
        student.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    before = student.lm_head.weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"The loss became nan at step 1 on prompts p\d+, p\d+\."):
        trainer.train()
    assert torch.equal(student.lm_head.weight, before)


def test_the_end_of_text_token_is_learnt_though_it_is_the_padding_token_too(cache, tokenizer):
    assert tokenizer.pad_token_id in (None, tokenizer.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    data = RolloutDataset(cache)
    examples = [data[i] for i in range(len(data))]
    batch = DistillCollator()(examples)
    finished = [i for i, e in enumerate(examples) if e["finished"]]
    assert 0 < len(finished) < len(examples)
    for i, example in enumerate(examples):
        end = len(example["response_ids"]) - 1
        np.testing.assert_array_equal(batch["labels"][i, : end + 1].numpy(), example["response_ids"])
        assert (batch["labels"][i, end + 1 :] == IGNORED_LABEL).all()
        assert (batch["labels"][i, end] == tokenizer.eos_token_id) == example["finished"]
        assert batch["terminal"][i].nonzero().flatten().tolist() == ([end] if example["finished"] else [])
    assert (batch["labels"] != IGNORED_LABEL).sum() == sum(len(e["response_ids"]) for e in examples)


def test_a_saved_student_is_an_ordinary_model(tiny_teacher, tokenizer, cache, tmp_path):
    start, directory = tmp_path / "start", tmp_path / "student"
    make_student(tiny_teacher).save_pretrained(start)
    data = RolloutDataset(cache)
    arguments = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
    method = MethodConfig(objective={"name": "iq_learn", "alpha": 10.0, "anchor": "tail"}, arguments=arguments)
    metrics = fit(FitInputs(start, data, data, tokenizer, len(tokenizer)), method, 0, directory, "tiny")
    student, untrained = (AutoModelForCausalLM.from_pretrained(d) for d in (directory, start))
    assert student.config.num_hidden_layers == 2
    assert not torch.equal(student.lm_head.weight, untrained.lm_head.weight)
    assert load_tokenizer(find_model(str(directory))).get_vocab() == tokenizer.get_vocab()
    # What was measured when it was saved is measured again of what was loaded.
    args = training_arguments({"eval_strategy": "no", "save_strategy": "no"}, tmp_path / "out", seed=0)
    again = DistillTrainer(student, args, OBJECTIVES["iq_learn"], data, data, tokenizer).evaluate()
    for key in ("eval_loss", "eval_nll", "eval_forward_kl", "eval_reverse_kl"):
        assert again[key] == pytest.approx(metrics[key], rel=1e-5)
    history = json.loads((directory / LOG_FILE).read_text())
    losses = {h["step"]: h["eval_loss"] for h in history["history"] if "eval_loss" in h}
    assert history["best_step"] == min(losses, key=losses.get)
    assert metrics["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-5)
    assert not (directory / "checkpoints").exists()


def test_the_saved_weights_give_the_trainers_logits(train, tokenizer, tmp_path):
    trainer = train(OBJECTIVES["nll"], max_steps=2, learning_rate=1e-2)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([tokenizer("a question").input_ids])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.lm.eval()(ids).logits)


def test_p_1_with_the_teacher_online_is_the_dense_divergence(train, tiny_teacher):
    teacher = make_teacher(tiny_teacher)
    online = first_log(train(bind("forward_kl"), p=1.0, teacher=teacher))
    dense = first_log(train(bind("forward_kl", support="dense"), teacher=teacher))
    tail = first_log(train(bind("forward_kl")))
    assert online["loss"] == pytest.approx(dense["loss"], rel=1e-4)
    assert online["grad_norm"] == pytest.approx(dense["grad_norm"], rel=1e-4)
    assert tail["loss"] < dense["loss"] * (1 - 1e-3), "the tail is a lower bound, and here not a tight one"


@pytest.mark.parametrize(("objective", "p"), [(bind("forward_kl", support="dense"), None), (bind("nll"), 1.0)])
def test_what_needs_the_teacher_online_says_so(train, objective, p):
    with pytest.raises(ConfigError, match="needs the teacher online"):
        train(objective, p=p, run=False)


def test_the_online_teacher_is_not_trained(train, tiny_teacher):
    teacher = make_teacher(tiny_teacher)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    train(bind("forward_kl"), p=1.0, teacher=teacher, max_steps=2, learning_rate=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "arguments", "error", "message"),
    [
        ([0, 3], {"max_steps": 4}, TrainingError, "max_steps=2, this one has 4"),
        ([0, 3], {"max_steps": -1, "num_train_epochs": 7}, TrainingError, "num_train_epochs=1, this one has 7"),
        ([0, 1, 3], {"max_steps": 2}, ModelError, "does not hold this student's weights"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(layers, arguments, error, message, train, tiny_teacher):
    train(OBJECTIVES["nll"], max_steps=2, save_strategy="steps", save_steps=1)
    other = train(OBJECTIVES["nll"], model=prune_layers(make_teacher(tiny_teacher), layers).train(), run=False, **arguments)
    before = [p.clone() for p in other.model.lm.parameters()]
    with pytest.raises(error, match=message):
        other.train(resume_from_checkpoint=f"{other.args.output_dir}/checkpoint-1")
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.lm.parameters(), strict=True))
