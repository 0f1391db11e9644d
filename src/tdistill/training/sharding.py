"""Check and set up the ways in which several processes train one student: FSDP2, DeepSpeed, DDP."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import TrainingArguments

from tdistill.models.student import StudentModel
from tdistill.models.value_head import ValueHead
from tdistill.runtime.errors import ConfigError
from tdistill.runtime.processes import is_main_process, process_count

Answer = TypeVar("Answer")

LAUNCH = "accelerate launch --config_file recipes/accelerate/ddp.yaml -m tdistill train RECIPE"


def check_devices(args: TrainingArguments) -> None:
    """Refuse to train in one process on several GPUs, and in processes that do not know of each other.

    On several GPUs the Trainer would wrap the student in ``nn.DataParallel``. It would multiply the batch by the number of GPUs, while
    steps, schedule and log would count one GPU.

    Raises:
        ConfigError: with the command to use instead.
    """
    if args.n_gpu > 1:
        raise ConfigError(
            f"This is one process on {args.n_gpu} GPUs, where the Trainer would multiply every batch by {args.n_gpu}. Choose one GPU "
            f"(CUDA_VISIBLE_DEVICES=0 tdistill ...), or make the roll-outs with `tdistill rollout RECIPE` and train with one process per "
            f"GPU: {LAUNCH}"
        )
    if args.world_size != process_count():
        raise ConfigError(
            f"WORLD_SIZE and RANK say that this is one of {process_count()} processes, but accelerate has joined {args.world_size}. "
            f"Start them with torchrun or accelerate, which set LOCAL_RANK too: {LAUNCH}"
        )


def check_sharding(accelerator: Accelerator, student: StudentModel) -> None:
    """Refuse the ways of sharing a student over processes that would fail later, or would train something else.

    Raises:
        ConfigError: with the setting to change.
    """
    state = accelerator.state
    plugin: FullyShardedDataParallelPlugin | None = getattr(state, "fsdp_plugin", None)
    if process_count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and plugin is None:
        raise ConfigError(
            f"FSDP was asked for, but accelerate shards on GPUs only, and this run is on {accelerator.device.type}: every process would "
            "hold a whole student (DDP). Use recipes/accelerate/ddp.yaml, or a machine with a GPU per process."
        )
    if plugin is not None:
        _check_fsdp(plugin)
        # Nothing writes into what the student returns.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None and student.value_head is not None and state.mixed_precision != "no":
        raise ConfigError(
            f"DeepSpeed keeps every weight in {state.mixed_precision}, and a value head needs float32. Use recipes/accelerate/fsdp2.yaml "
            "or ddp.yaml, or an objective without a value head."
        )
    parallel = accelerator.parallelism_config
    if parallel is not None and (parallel.tp_enabled or parallel.cp_enabled or parallel.sp_enabled):
        raise ConfigError(
            "Tensor, context and sequence parallelism let several processes work on the same example, but the loss counts an example for "
            "every process. Use DDP or FSDP2 (recipes/accelerate)."
        )


def sharing(accelerator: Accelerator) -> str:
    """Return how the processes share the student. Only a run that shares it in the same way can go on from a checkpoint: its files differ."""
    plugin: FullyShardedDataParallelPlugin | None = getattr(accelerator.state, "fsdp_plugin", None)
    return accelerator.distributed_type.name if plugin is None else f"FSDP{plugin.fsdp_version}, {plugin.state_dict_type.name}"


def _check_fsdp(plugin: FullyShardedDataParallelPlugin) -> None:
    if plugin.fsdp_version != 2:
        raise ConfigError(f"Only FSDP2 is supported, got fsdp_version: {plugin.fsdp_version}. Set fsdp_version: 2.")
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading: true gives weights to the first process only while models are loaded. Set it to false, as "
            "recipes/accelerate/fsdp2.yaml does."
        )


def check_whole_weights(accelerator: Accelerator, what: str, instead: str) -> None:
    """Refuse a setting that needs whole weights where each process holds a part of the student.

    Raises:
        ConfigError: FSDP or DeepSpeed shards the student. The message names ``what`` was set, and what to set ``instead``.
    """
    state = accelerator.state
    if getattr(state, "fsdp_plugin", None) is not None or getattr(state, "deepspeed_plugin", None) is not None:
        raise ConfigError(f"{what} needs the whole student in one process, which FSDP and DeepSpeed shard: {instead}.")


def keep_float32(plugin: FullyShardedDataParallelPlugin) -> None:
    """Let FSDP2 compute in bfloat16 or float16, but return what the modules return, and add gradients up in float32.

    accelerate's own policy would cast log-partition, values and logits to the compute type on their way out of the student.
    """
    if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32)


def shard_value_head(head: ValueHead, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Make the value head an FSDP unit of its own, in float32, and take it out of the optimizer until accelerate has sharded the rest.

    accelerate finds a parameter in an optimizer by the address of its data, and the shards of a small head may be empty: those
    addresses are all 0. So the head's groups are added again when the other parameters are in place.

    Returns:
        The parameter groups to add.
    """
    names = {id(parameter): name for name, parameter in head.named_parameters()}
    groups = [
        {**group, "params": [names[id(p)] for p in group["params"] if id(p) in names]}
        for group in optimizer.param_groups
        if any(id(p) in names for p in group["params"])
    ]
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in names]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    plugin, mesh = accelerator.state.fsdp_plugin, accelerator.torch_device_mesh
    own_mesh = None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]
    # It is called twice in a forward (values of states and of tokens), so it stays whole until the backward pass.
    fully_shard(head, mesh=own_mesh, reshard_after_forward=False, offload_policy=plugin.cpu_offload)
    register_fsdp_forward_method(head, "of_actions")
    parameters = dict(head.named_parameters())
    return [{**group, "params": [parameters[name] for name in group["params"]]} for group in groups]


def check_can_answer() -> None:
    """Refuse to generate with a student that DeepSpeed ZeRO-3 shards.

    Raises:
        ConfigError: with the configurations under which the student can generate while it is trained.
    """
    deepspeed = getattr(AcceleratorState(), "deepspeed_plugin", None) if AcceleratorState._shared_state else None
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ConfigError(
            "train.monitor.log_completions generates with the student, which DeepSpeed ZeRO-3 shards. Set it to 0, or use ddp.yaml, "
            "fsdp2.yaml or zero2.yaml of recipes/accelerate."
        )


def is_sharded(student: nn.Module) -> bool:
    """Return whether FSDP2 shards the student, so that a forward needs every process."""
    return isinstance(student, FSDPModule)


def answer_together(student: StudentModel, answer: Callable[[Any], Answer]) -> Answer | None:
    """Let the first process generate with a student that FSDP2 shards; the others bring their shards to every forward.

    Args:
        student: sharded, in every process.
        answer: gets a callable in place of the language model; it runs in the first process only.

    Returns:
        What ``answer`` returned; None in the other processes.
    """
    register_fsdp_forward_method(student, "run_lm")
    lm = _SharedModel(student)
    if not is_main_process():
        lm.help()
        return None
    answered = answer(lm)  # after an error the launcher ends the others
    lm.announce(False)
    return answered


class _SharedModel:
    """Wrap a language model whose forward needs all processes. The first one calls it, the others ``help``."""

    def __init__(self, student: StudentModel):
        self._student, self.config = student, student.config
        self.device = next(p for p in student.parameters()).device

    def __call__(self, **inputs: Any) -> Any:
        self.announce(True)
        return self._forward(**inputs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the model's own embeddings: their shape is that of the whole."""
        return self._student.lm.get_input_embeddings()

    def help(self) -> None:
        """Run a forward on one token for every forward of the first process, which gathers the same shards in the same order."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        while self.announce(False):
            self._forward(input_ids=token, use_cache=False, logits_to_keep=1)

    def announce(self, more: bool) -> bool:
        """Send to the others, or receive from the first process, that a forward follows."""
        flag = torch.tensor([int(more)], device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def _forward(self, **inputs: Any) -> Any:
        # FSDP keeps what it gathers into: made in inference mode it could not be trained on afterwards.
        with torch.inference_mode(False), torch.no_grad():
            return self._student.run_lm(**inputs)
