"""Run other libraries' losses on the inputs of benchmarks/head.py, in an environment of their own: nothing of tdistill is imported here.

`python benchmarks/head_peers.py` reads one JSON object a line from its standard input and answers each by one line: {"inputs": FILE} loads
the tensors that `head.py` saved, {"run": [LIBRARY, OBJECTIVE], "memory": true or false} runs a loss, forward and backward. The first line of
its output says which there are. The losses take hidden states [N, H] and weights [V, H]; labels are those of the tokens themselves, not of
the next ones.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate datasets
    peers/bin/pip install --no-deps trl==1.16.0 liger-kernel==0.8.5 cut-cross-entropy==25.1.1 triton DISTILLKIT

DISTILLKIT is a checkout of arcee-ai/DistillKit: it is on no registry. cut-cross-entropy imports triton, though on a CPU it runs none of it.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from head_meter import largest_memory, timed
from torch import Tensor

Inputs = dict[str, Tensor]
Loss = Callable[[Inputs], Tensor]
Losses = dict[tuple[str, str], Loss]  # (library, objective of ours that is like it)
PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "cut-cross-entropy", "distillkit")
SMALL_CHUNK = 128  # tokens of a chunk of Liger
ABSENT = -40.0  # log-prob of a padded slot, where a library has no mask for slots


def cross_entropy(x: Inputs) -> Tensor:
    """Return what a causal language model of transformers returns: the logits in float32, and their cross-entropy."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = F.linear(x["hidden"], x["weight"])
    return ForCausalLMLoss(logits, None, len(x["weight"]), shift_labels=x["labels"])


def torch_losses() -> Losses:
    """Return the fused cross-entropy of PyTorch, in chunks that it chooses itself."""
    options = torch.nn.LinearCrossEntropyOptions()
    return {("PyTorch linear_cross_entropy", "nll"): lambda x: F.linear_cross_entropy(x["hidden"], x["weight"], x["labels"], options=options)}


def trl_losses() -> Losses:
    """Return the chunked losses of TRL. Both heads have the same vocabulary, and every token counts."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.distillation_trainer import _chunked_divergence_loss
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def divergence(beta: float) -> Loss:
        def loss(x: Inputs) -> Tensor:
            pairs = (x["hidden"].unsqueeze(0), x["teacher_hidden"].unsqueeze(0), x["weight"], x["teacher_weight"])
            return _chunked_divergence_loss(*pairs, torch.ones(1, len(x["hidden"]), device=x["hidden"].device), beta)[0]

        return loss

    def nll(x: Inputs) -> Tensor:
        own = (x["hidden"], x["weight"], None, x["labels"], 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())
        return -ChunkedLogProbFunction.apply(*own)[0].mean()

    name = "TRL chunked"
    return {(name, "nll"): nll, (name, "reverse_kl, dense"): divergence(1.0), (name, "jsd, dense"): divergence(0.5)}


def liger_losses() -> Losses:
    """Return Liger's fused linear JSD and reverse KL, without its compiler.

    Its default chunk of 1,024 tokens holds 17 copies of the chunk's logits for the JSD, here 11 GB, so that it has smaller ones.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def jsd(**settings: Any) -> Loss:
        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, **{"compiled": False} | settings)
        return lambda x: loss(x["hidden"], x["weight"], x["teacher_hidden"], x["teacher_weight"], x["labels"])

    chunked = f"Liger, chunks of {SMALL_CHUNK}"
    return {
        (chunked, "jsd, dense"): jsd(beta=0.5, chunk_size=SMALL_CHUNK),
        (chunked, "reverse_kl, dense"): jsd(beta=1.0, chunk_size=SMALL_CHUNK),
    }


def distillkit_losses() -> Losses:
    """Return DistillKit's sparse losses: of the whole logits, and of the teacher's candidates with what they leave as one more token."""
    from distillkit.lossfuncs import MissingProbabilityHandling, sparse_js_div, sparse_kl_div

    def sparse(loss: Callable[..., Tensor]) -> Loss:
        def run(x: Inputs) -> Tensor:
            logits = F.linear(x["hidden"], x["weight"]).unsqueeze(0)
            values = x["logp"].clamp(min=ABSENT).unsqueeze(0)
            given = (logits, x["candidates"].unsqueeze(0), values)
            return loss(*given, missing=MissingProbabilityHandling.SYMMETRIC_UNIFORM) / len(x["hidden"])

        return run

    return {("DistillKit sparse", "forward_kl, tail"): sparse(sparse_kl_div), ("DistillKit sparse", "jsd, tail"): sparse(sparse_js_div)}


def cce_losses() -> Losses:
    """Return the cross-entropy of cut-cross-entropy that runs on a CPU, which is compiled and holds the logits."""
    from cut_cross_entropy import linear_cross_entropy

    return {
        ("cut-cross-entropy torch_compile", "nll"): lambda x: linear_cross_entropy(x["hidden"], x["weight"], x["labels"], impl="torch_compile")
    }


LIBRARIES = (torch_losses, trl_losses, liger_losses, distillkit_losses, cce_losses)


def losses() -> tuple[Losses, dict[str, str]]:
    """Return the losses that can be imported, and why the others can't."""
    found: Losses = {("transformers", "nll"): cross_entropy}
    missing = {}
    for library in LIBRARIES:
        try:
            found |= library()
        except ImportError as error:
            missing[library.__name__] = str(error)
    return found, missing


def run(loss: Loss, inputs: Inputs, memory: bool, device: str = "cpu") -> dict[str, float]:
    """Run a loss, forward and backward, and return its time or its memory. Gradients are made anew, and counted as memory."""
    values: list[float] = []
    for name in ("hidden", "weight"):
        inputs[name].requires_grad_().grad = None

    def once() -> None:
        value = loss(inputs)
        value.backward()
        values.append(float(value.detach()))

    measured = largest_memory if memory else timed
    return measured(once, device) | {"loss": values[-1]}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    torch.set_num_threads(1)
    known, missing = losses()
    inputs: Inputs = {}
    print(json.dumps({"runs": list(known), "missing": missing, "versions": _versions()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "inputs" in asked:
            inputs = torch.load(asked["inputs"], mmap=False)
            answer: dict[str, Any] = {"loaded": asked["inputs"]}
        else:
            try:
                answer = run(known[tuple(asked["run"])], inputs, asked["memory"])
            except Exception as error:  # whatever another library raises is a result of the bench
                answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
