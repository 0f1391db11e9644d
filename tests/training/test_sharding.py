from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, TrainingArguments

from tdistill.models.student import StudentModel
from tdistill.objectives import bind
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.processes import agreed, is_main_process, process_count, process_label
from tdistill.training.sharding import check_devices, check_sharding, check_whole_weights, keep_float32
from tdistill.training.trainer import DistillTrainer


def arguments(directory: Path) -> TrainingArguments:
    return TrainingArguments(str(directory), use_cpu=True, report_to="none")


@pytest.fixture
def student(tiny_teacher: Path) -> StudentModel:
    return StudentModel(AutoModelForCausalLM.from_pretrained(tiny_teacher), value_head=True)


@pytest.fixture
def trainer(student: StudentModel, tmp_path: Path) -> DistillTrainer:
    return DistillTrainer(student, arguments(tmp_path), bind("nll"))


def test_one_process_on_several_gpus_is_refused_by_the_trainer(student: StudentModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 8))
    with pytest.raises(ConfigError, match=r"one process on 8 GPUs.*CUDA_VISIBLE_DEVICES=0.*accelerate launch"):
        DistillTrainer(student, arguments(tmp_path), bind("nll"))


@pytest.mark.parametrize("verb", ["run", "sft", "train"])
def test_one_process_on_several_gpus_is_refused_before_the_roll_outs(
    verb: str, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 8))
    assert conftest.command(verb, tiny_recipe) == 2
    assert "This is one process on 8 GPUs" in " ".join(capsys.readouterr().err.split())
    assert not Path(yaml.safe_load(tiny_recipe.read_text())["output_dir"]).exists()


def test_roll_outs_on_several_gpus_are_not_refused(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 8))
    assert conftest.command("rollout", tiny_recipe) == 0


def test_processes_that_accelerate_has_not_joined_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path)
    assert args.world_size == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"one of 4 processes, but accelerate has joined 1.*LOCAL_RANK"):
        check_devices(args)


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("RANK", "-1"), ("RANK", "3"), ("WORLD_SIZE", "")])
def test_an_environment_that_no_launcher_sets_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        (is_main_process if name == "RANK" else process_count)()
    process_label()  # stands in the message of that error, so it raises none


def test_errors_of_other_processes_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_label() == ""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process_label() == " in process 1 of 2"
    assert not is_main_process()


def test_one_process_agrees_with_itself() -> None:
    assert agreed("the last checkpoint", Path("checkpoint-2")) == Path("checkpoint-2")


def test_deepspeed_does_not_round_the_teachers_log_probs(trainer: DistillTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    # DeepSpeed is not installed here. The Trainer asks its configuration for the type of the inputs, so that much stands for it.
    config = SimpleNamespace(dtype=lambda: torch.bfloat16)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(trainer.accelerator, "state", SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=config)))
    batch = {"logp": torch.tensor([-1.2345678, -30.03]), "input_ids": torch.tensor([3])}
    assert super(DistillTrainer, trainer)._prepare_input(batch["logp"]).dtype == torch.bfloat16
    prepared = trainer._prepare_input(batch)
    assert torch.equal(prepared["logp"], batch["logp"])
    assert {k: v.dtype for k, v in prepared.items()} == {"logp": torch.float32, "input_ids": torch.int64}


def state(**plugins: object) -> SimpleNamespace:
    """What the checks read of an Accelerator under the plugins of another machine."""
    found = SimpleNamespace(mixed_precision="bf16", **plugins)
    return SimpleNamespace(state=found, parallelism_config=None, device=torch.device("cpu"))


def test_a_value_head_under_deepspeed_is_refused(student: StudentModel) -> None:
    with pytest.raises(ConfigError, match=r"DeepSpeed keeps every weight in bf16, and a value head needs float32"):
        check_sharding(state(deepspeed_plugin=SimpleNamespace(zero_stage=2)), student)


def test_models_shared_between_processes_on_one_example_are_refused(student: StudentModel) -> None:
    accelerator = state()
    accelerator.parallelism_config = SimpleNamespace(tp_enabled=False, cp_enabled=True, sp_enabled=False)
    with pytest.raises(ConfigError, match=r"Tensor, context and sequence parallelism"):
        check_sharding(accelerator, student)


def test_what_needs_whole_weights_is_refused_under_deepspeed() -> None:
    with pytest.raises(ConfigError, match=r"target_network=True needs the whole student.*use DDP"):
        check_whole_weights(state(deepspeed_plugin=SimpleNamespace(zero_stage=2)), "target_network=True", "use DDP")


def test_gradients_are_added_up_in_float32_and_outputs_are_not_cast_under_fsdp2() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy="bf16")
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    keep_float32(plugin)
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.float32, None)


def test_a_student_is_cut_into_shards_by_the_layers_of_its_language_model(student: StudentModel) -> None:
    assert student._no_split_modules == ["LlamaDecoderLayer"]
    assert student.base_model is student.lm.model
    assert student.get_input_embeddings() is student.lm.model.embed_tokens
    assert student.get_output_embeddings() is student.lm.lm_head
