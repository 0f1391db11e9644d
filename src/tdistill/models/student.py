"""Define the student: one ``nn.Module`` around a causal LM and an optional value head, so that DDP, FSDP and PEFT wrap all of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tdistill.models.forward import step_outputs
from tdistill.models.head import full, run
from tdistill.models.head.blocks import Block
from tdistill.models.head.contract import Head
from tdistill.models.head.full import WIDE
from tdistill.models.head.readout import find_after, first_column, replaced_head
from tdistill.models.head.run import Given, HeadCall
from tdistill.models.head.sampling import SAMPLES
from tdistill.models.lora import bare_model, is_adapted, load_adapter_weights
from tdistill.models.precision import at_least_float32
from tdistill.models.value_head import VALUES, ValueHead
from tdistill.models.weights import load_whole
from tdistill.objectives.contract import FIELDS
from tdistill.recipe.schema import HeadConfig, ValueConfig
from tdistill.runtime.errors import ModelError

VALUE_HEAD_FILE = "value_head.safetensors"
FIELDS_ALONE = HeadCall()
RESULTS = ("loss", "metrics")
DETACH = ValueConfig().detach  # where nobody says otherwise


class StudentModel(nn.Module):
    """Read a causal LM as a soft Q-function at the teacher's candidates.

    ``forward`` returns the student's fields of ``Steps``. Prompts are left-padded and responses right-padded (see
    ``layout``), so that step t of every row sits in the same column and ``logits_to_keep`` gives the [B, T, V] block:
    every architecture's own head, with its scaling and soft caps, is used as it is.
    """

    def __init__(self, lm: PreTrainedModel, value_head: bool = False, detach_value: bool = DETACH, action_values: bool = False):
        super().__init__()
        self.detach_value = detach_value  # the value head reads the hidden states without moving them
        self.lm = lm
        self.head = Head()
        self.value_head = ValueHead(_hidden_width(lm), action_values) if value_head or action_values else None

    @classmethod
    def for_needs(cls, lm: PreTrainedModel, needs: frozenset[str], detach_value: bool = DETACH) -> "StudentModel":
        """Build the student with the heads that an objective's ``needs`` ask for."""
        return cls(lm, "value" in needs, detach_value, "action_value" in needs)

    def offers(self, needs: frozenset[str]) -> bool:
        """Tell whether the value head is there, if ``needs`` ask for it."""
        if self.value_head is None:
            return not VALUES & needs
        return "action_value" not in needs or self.value_head.action is not None

    @property
    def config(self) -> Any:
        """Return the language model's configuration."""
        return self.lm.config

    # accelerate and DeepSpeed ask a model how to cut it into shards, by the names that transformers gave these members.
    base_model_prefix = "base_model"

    @property
    def base_model(self) -> nn.Module:
        """Return the body below the language model's head. accelerate looks for the last norm among its children."""
        return bare_model(self.lm).base_model

    @property
    def _no_split_modules(self) -> list[str]:
        """Return the class names of the layers, each of which is a unit of FSDP. A class that this model has no layer of is left out."""
        present = {type(module).__name__ for module in self.lm.modules()}
        return sorted(present & set(bare_model(self.lm)._no_split_modules or ()))

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's input embeddings."""
        return self.lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.lm.get_output_embeddings()

    def tie_weights(self) -> None:
        """Tie the weights that the language model ties."""
        bare_model(self.lm).tie_weights()

    @property
    def is_activation_checkpointing(self) -> bool:
        """Return True where the language model recomputes its activations."""
        return self.lm.is_activation_checkpointing

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Make the language model recompute its activations. The Trainer calls it."""
        self.lm.activation_checkpointing_enable(**kwargs)

    def use_head(self, config: HeadConfig) -> None:
        """Choose how logits are computed. What the language model does to the output of its head is measured, on a few tokens.

        Args:
            config: which head. ``auto`` is ``full`` for a model whose head can't be read.

        Raises:
            ModelError: another head than ``full`` was asked for, and this model's head can't be read.
        """
        if config.name == "full":
            self.head = Head()
            return
        try:
            after = find_after(self.lm)
        except ModelError:
            if config.name != "auto":
                raise
            self.head = Head()
            return
        self.head = Head(config.name, after, config.samples or SAMPLES)

    def forward(
        self,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Int[Tensor, "B L"],
        taken_ids: Int[Tensor, "B T"],
        candidate_ids: Int[Tensor, "B T K"] | None = None,
        *,
        legal: Bool[Tensor, "B T K"] | None = None,
        valid: Bool[Tensor, "B T"] | None = None,
        needs: frozenset[str] = frozenset(),
        vocab_size: int | None = None,
        call: HeadCall = FIELDS_ALONE,
    ) -> dict[str, Any]:
        """Return the student's fields of ``Steps``: the logits at the candidates, and what ``needs`` asks for beside them.

        They are float32, whatever the model computes in. A model in float64 gives float64. With ``call.loss`` the result is that loss,
        under ``loss``, and its metrics [B, T], under ``metrics``.

        Args:
            input_ids: [B, L] the prompt and all response tokens but the last; the last T columns score the T steps.
            attention_mask: [B, L] 1 at real tokens.
            taken_ids: [B, T] token ids of the response, 0 past its end.
            candidate_ids: [B, T, K] token ids of A_p(s_t), 0 where not legal; None: every token is one, K = V.
            legal: [B, T, K] False at padding along K; None: every slot is a candidate.
            valid: [B, T] steps that exist; None: all. Heads other than ``full`` compute these alone.
            needs: a subset of ``objectives.contract.NEEDS``. Those that the head does not answer are left out.
            vocab_size: rows of the head that are real tokens; padding rows beyond it are sliced off.
            call: the loss to compute, and what is watched.

        Raises:
            ModelError: a value is needed, and there is no value head.
        """
        if not self.offers(needs):
            raise ModelError("The objective needs a value head: build the student with StudentModel.for_needs(lm, objective.needs).")
        texts = (input_ids, attention_mask, taken_ids.shape[1], bool(VALUES & needs))
        if self.head.after is None or (call.loss is None and (candidate_ids is None or needs & WIDE)):
            out = self._all_at_once(texts, candidate_ids, taken_ids, needs | call.watched, vocab_size)
            return out if call.loss is None else dict(zip(RESULTS, call.loss(Block(), out, out), strict=True))
        with replaced_head(self.lm, first_column) as seen:
            _, hidden = step_outputs(self.lm, *texts)
        head, read = self.lm.get_output_embeddings(), seen[0][:, -taken_ids.shape[1] :]
        legal, valid = (_all_true(like) if x is None else x for x, like in ((legal, candidate_ids), (valid, taken_ids)))
        given = Given(read, head.weight, head.bias, taken_ids, candidate_ids, legal, valid, needs, vocab_size)
        product = partial(self._at_candidates, None, vocab_size) if candidate_ids is None else partial(run.at_candidates, given)
        given.values.update(self._values(hidden, needs, product))
        if call.loss is None:
            return run.fields(self.head, given, call)
        return dict(zip(RESULTS, run.loss(self.head, given, call), strict=True))

    def _all_at_once(
        self, texts: tuple[Tensor, Tensor, int, bool], candidates: Tensor | None, taken: Tensor, needs: frozenset[str], vocab_size: int | None
    ) -> dict[str, Tensor]:
        """Return the fields by the language model's own logits of all tokens."""
        logits, hidden = step_outputs(self.lm, *texts)
        out = full.fields(at_least_float32(logits[..., :vocab_size]), candidates, taken, needs)
        return out | self._values(hidden, needs, partial(self._at_candidates, candidates, vocab_size))

    def _values(self, hidden: Tensor | None, needs: frozenset[str], product: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the fields that the value head answers."""
        if self.value_head is None or hidden is None:
            return {}
        hidden = hidden.detach() if self.detach_value else hidden
        out = {FIELDS["value"]: self.value_head(hidden)} if "value" in needs else {}
        return out | ({FIELDS["action_value"]: self.value_head.of_actions(hidden, product)} if "action_value" in needs else {})

    def _at_candidates(self, candidate_ids: Tensor | None, vocab_size: int | None, read: Tensor) -> Tensor:
        """Return ⟨read, e_a⟩ of every candidate a, by way of all tokens. The embeddings get no gradient."""
        embeddings = self.lm.get_output_embeddings().weight[:vocab_size].detach().to(read.dtype)
        return full.at_candidates(F.linear(read, embeddings), candidate_ids)

    def run_lm(self, **inputs: Any) -> Any:
        """Run the language model alone. FSDP2 gathers the weights around it as around ``forward``."""
        return self.lm(**inputs)

    def save_pretrained(self, directory: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save an ordinary safetensors model that ``AutoModelForCausalLM`` loads, and the value head beside it.

        ``state_dict`` is this module's own, gathered from shards, where the caller has it.
        """
        own = None if state_dict is None else self._of_lm(state_dict)
        self.lm.save_pretrained(directory, state_dict=own, safe_serialization=True)  # of adapters: these alone
        if self.value_head is not None:
            weights = self.value_head.state_dict()
            if state_dict is not None:
                weights = {k: state_dict[f"value_head.{k}"] for k in weights}
            save_file({k: v.contiguous() for k, v in weights.items()}, Path(directory) / VALUE_HEAD_FILE)

    def _of_lm(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the language model's part. Tied weights are one tensor again, which is saved once."""
        own = {k.removeprefix("lm."): v for k, v in state_dict.items() if k.startswith("lm.")}
        first: dict[int, str] = {}
        for name, parameter in self.lm.named_parameters(remove_duplicate=False):
            own[name] = own[first.setdefault(id(parameter), name)]
        return own

    def load_weights(self, directory: str | Path) -> None:
        """Read back what ``save_pretrained`` wrote, in place.

        Raises:
            ModelError: the files are missing, or are those of another architecture.
        """
        if is_adapted(self.lm):
            load_adapter_weights(self.lm, Path(directory))
        else:
            self._load_model_weights(Path(directory))
        if self.value_head is not None:
            self._load_value_head(Path(directory) / VALUE_HEAD_FILE)

    def _load_value_head(self, path: Path) -> None:
        assert self.value_head is not None
        try:
            self.value_head.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{path} does not hold this student's value head: {error}") from error

    def _load_model_weights(self, directory: Path) -> None:
        # Names and shapes on disk are not those in memory (mixtures of experts, GPT-NeoX): only from_pretrained knows the way back.
        try:
            saved = load_whole(type(self.lm), directory, str(directory), config=self.lm.config, dtype=self.lm.dtype)
        except ModelError as error:
            raise ModelError(f"{directory} does not hold this student's weights. {error}") from error
        self.lm.load_state_dict(saved.state_dict())


def _all_true(like: Tensor | None) -> Any:
    return None if like is None else torch.ones_like(like, dtype=torch.bool)


def _hidden_width(lm: PreTrainedModel) -> int:
    # The last hidden state is as wide as the head reads, which in OPT-350M is half of hidden_size.
    head = lm.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(lm).__name__} has no language-model head, which a value head reads beside: use a causal language model.")
    return head.weight.shape[-1]
