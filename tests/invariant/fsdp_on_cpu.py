"""Run tdistill's command line with FSDP2 on CPU, over gloo: `torchrun tests/invariant/fsdp_on_cpu.py train RECIPE ...`.

accelerate selects FSDP for GPU types only, and makes DDP of it on a CPU. Here its state takes the branch of a GPU; everything else is as
in production. What came out of ``Accelerator.prepare`` is written to $SHARDING_FACTS, a JSON line for every model and process.
"""

import atexit
import functools
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor

from tdistill.models.head import blocks

FACTS, BLOCK_BYTES, GATHERS = "SHARDING_FACTS", "BLOCK_BYTES", "GATHERS"


def shard_on_cpu() -> None:
    """Make accelerate select FSDP for several CPU processes, as it does for several GPUs."""
    start = AcceleratorState.__init__

    @functools.wraps(start)
    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        fresh = not AcceleratorState._shared_state
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fresh and fsdp_plugin is not None:
            assert self.distributed_type is DistributedType.MULTI_CPU
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def sharding(model: torch.nn.Module) -> dict[str, Any]:
    """Return what FSDP2 made of a model: its units by their modules, and whether every parameter is sharded."""
    units: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            units.setdefault(id(fully_shard.state(module)), []).append(name)
    parameters = list(model.parameters())
    return {
        "fsdp2": isinstance(model, FSDPModule),
        "units": sorted(units.values()),
        "sharded": all(isinstance(p, DTensor) for p in parameters),
        "processes": {p.device_mesh.size() for p in parameters if isinstance(p, DTensor)}.pop(),
    }


def note_sharding(path: Path) -> None:
    """Write ``sharding`` of every model that accelerate prepares."""
    prepare = Accelerator.prepare

    @functools.wraps(prepare)
    def noted(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        result = prepare(self, *args, **kwargs)
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.nn.Module):
                with path.open("a") as handle:
                    handle.write(json.dumps({"process": self.process_index, **sharding(each)}) + "\n")
        return result

    Accelerator.prepare = noted  # type: ignore[method-assign]


def count_gathers(path: Path) -> None:
    """Write how often FSDP2 gathers the weights of a unit, when the process ends."""
    gather, counted = _fsdp_param_group.foreach_all_gather, [0]

    @functools.wraps(gather)
    def noted(*args: Any, **kwargs: Any) -> Any:
        counted[0] += 1
        return gather(*args, **kwargs)

    _fsdp_param_group.foreach_all_gather = noted  # type: ignore[assignment]
    if os.environ["RANK"] == "0":
        atexit.register(lambda: path.write_text(str(counted[0])))


if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    if BLOCK_BYTES in os.environ:
        blocks.BLOCK_BYTES["cpu"] = blocks.LARGEST_BLOCK_BYTES["cpu"] = int(os.environ[BLOCK_BYTES])
        count_gathers(Path(os.environ[GATHERS]))
    if FACTS in os.environ:
        note_sharding(Path(os.environ[FACTS]))
    from tdistill.cli import main

    main()
