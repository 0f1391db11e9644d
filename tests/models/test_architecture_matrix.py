"""Many architectures through roll-outs, training, saving and reading back; those that can't work are refused by the property they lack."""

from pathlib import Path

import places
import pytest
import torch
import yaml
from architectures import CONFIGS, LAYERS
from conftest import command, save_tiny_model, tiny_recipe_dict
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel, TrainingArguments

from tdistill.data.dataset import RolloutDataset
from tdistill.data.prompts import Prompt, tokenize_prompts
from tdistill.models.find import find_model
from tdistill.models.load import load_model
from tdistill.models.probe import probe
from tdistill.models.prune import prune_layers
from tdistill.models.student import StudentModel
from tdistill.models.tokenizer import eos_token_ids, load_tokenizer
from tdistill.models.vocabulary import Vocabulary, vocabulary_size
from tdistill.objectives import bind
from tdistill.recipe.schema import ActionSpace, RolloutConfig
from tdistill.runtime.errors import ModelError
from tdistill.teachers.rollouts import Teacher, roll_out
from tdistill.teachers.transformers import score_batch
from tdistill.training.trainer import DistillTrainer

# What each architecture lacks with transformers' own code. "pruned" ones work, but not with fewer layers.
REFUSED = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "granitemoehybrid", "lfm2", "qwen3_next"), "row selection"),
    **dict.fromkeys(("rwkv", "recurrent_gemma", "xlstm", "bart"), "padding"),
    **dict.fromkeys(("bert", "roberta", "electra"), "causal"),
    **dict.fromkeys(("openai-gpt", "minimax"), "cache"),
    "xlm": "forward",
    "gemma3n_text": "hidden state",
}
NOT_PRUNED = {"diffllama", "bert-decoder"}
NO_CAUSAL_LM = {"t5"}
WORKS = sorted(CONFIGS.keys() - REFUSED.keys() - NO_CAUSAL_LM)
FAST = ("llama", "qwen3_moe", "gemma2", "gemma3", "gpt_neox", "gpt2", "smollm3", "qwen2_5_vl", "deepseek_v3")
OBJECTIVES = {
    "nll": bind("nll"),
    "reverse_kl": bind("reverse_kl"),
    "iq_learn": bind("iq_learn", alpha=10.0, anchor="tail", gauge="learned"),
}


def save_tiny(architecture: str, directory: Path) -> Path:
    save_tiny_model(directory)
    config = CONFIGS[architecture]()
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if architecture.startswith("qwen2_") and "vl" in architecture else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1: then a wrong one would go unseen
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = [*range(0, 250, 12), 256]
    model.save_pretrained(directory)
    return directory


def rolled_out(teacher: PreTrainedModel, tokenizer, directory: Path) -> RolloutDataset:
    asked = [Prompt(f"p{i}", ({"role": "user", "content": "question" + "?" * (3 * i)},)) for i in range(6)]
    prompts, _ = tokenize_prompts(asked, tokenizer, 64, "refuse")
    eos = eos_token_ids(teacher, tokenizer)
    vocab = vocabulary_size(tokenizer, {"teacher": teacher}, eos)
    rollout = RolloutConfig(teacher_top_p=0.9, max_completion_length=10, seed=1, batch_size=6, shard_batches=1)
    roll_out(Teacher(lambda: teacher, tokenizer, eos, {"teacher": "tiny"}, vocab), prompts, directory, rollout)
    data = RolloutDataset(directory)
    for prompt in data.prompts():  # written token by token, in batches that rows leave, as read at once and alone
        row = next(data[j] for j in range(len(data)) if data.prompt_id(j) == prompt.prompt.prompt_id)
        (scored,) = score_batch(teacher, [(prompt, row["response_ids"].tolist())], Vocabulary(vocab, eos), ActionSpace(teacher_top_p=0.9))
        assert scored.token_logp == pytest.approx(row["teacher_taken_logp"].tolist(), abs=2e-4)
        cached = [set(state.ids.tolist()) for state in row["candidates"].split()]
        assert [set(state.ids.tolist()) for state in scored.candidates.split()] == cached
    assert len({len(data[j]["response_ids"]) for j in range(len(data))}) > 1, "some rows leave the batch early"
    return data


def trainer_of(student: StudentModel, objective, data: RolloutDataset, tokenizer, directory: Path) -> DistillTrainer:
    args = TrainingArguments(
        output_dir=str(directory),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    return DistillTrainer(student, args, objective, data, data, tokenizer)


def measured(trainer: DistillTrainer) -> dict[str, float]:
    return {k: v for k, v in trainer.evaluate().items() if k.startswith("eval_")}


def check_architecture(architecture: str, directory: Path) -> None:
    source = find_model(str(save_tiny(architecture, directory / "teacher")))
    teacher, tokenizer = load_model(source), load_tokenizer(source)
    probe(teacher, architecture, 257, hidden=True)
    data = rolled_out(teacher, tokenizer, directory / "rollouts")
    for name, objective in OBJECTIVES.items():
        lm = load_model(source) if architecture in NOT_PRUNED else prune_layers(teacher, [LAYERS - 1])
        student = StudentModel.for_needs(lm, objective.needs)
        trainer = trainer_of(student, objective, data, tokenizer, directory / "out")
        before = trainer.evaluate()["eval_nll"]
        trainer.train()
        metrics = measured(trainer)
        assert abs(metrics["eval_nll"] - before) > 1e-5, f"{name} moves the student"
        trainer.save_model(str(directory / name))
        loaded = load_model(find_model(str(directory / name)))
        again = StudentModel.for_needs(loaded, objective.needs)
        if again.value_head is not None:
            again.load_weights(directory / name)
        found = trainer_of(again, objective, data, tokenizer, directory / "out")
        assert measured(found) == pytest.approx(metrics, abs=1e-5), f"{name}: the student on disk is the one that was measured"
        with torch.no_grad():
            student.lm.get_input_embeddings().weight.zero_()
        student.load_weights(directory / name)
        assert measured(trainer) == pytest.approx(metrics, abs=1e-5), f"{name}: read back in place"


@pytest.mark.parametrize("architecture", FAST)
def test_an_architecture_is_rolled_out_pruned_trained_saved_and_read_back(architecture, tmp_path):
    check_architecture(architecture, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in WORKS if a not in FAST])
def test_every_other_architecture_is_rolled_out_pruned_trained_saved_and_read_back(architecture, tmp_path):
    check_architecture(architecture, tmp_path)


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_cannot_work_is_refused_by_the_property_it_lacks(architecture, tmp_path):
    model = load_model(find_model(str(save_tiny(architecture, tmp_path))))
    with pytest.raises(ModelError, match=f"{architecture} .*lacks the property '{REFUSED[architecture]}'"):
        probe(model, architecture, 257, hidden=True)


def test_at_least_25_architectures_work():
    assert len(WORKS) >= 25
    assert set(FAST) <= set(WORKS)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2_5_vl"])
def test_a_composite_configuration_goes_through_a_whole_run(architecture, tmp_path):
    recipe = tiny_recipe_dict(save_tiny(architecture, tmp_path / "teacher"), tmp_path)
    recipe["student"]["num_hidden_layers"] = 1
    recipe.pop("sft")
    recipe["train"] |= {"baselines": {}, "objective": {"name": "csil", "anchor": "tail"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert command("run", path) == 0
    student = load_model(find_model(str(places.student(path))))
    assert student.config.get_text_config().num_hidden_layers == 1
