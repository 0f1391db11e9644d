"""Probe a model on a few tokens, before anything long starts: it needs every property that roll-outs and training rely on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tdistill.models.forward import next_logits, step_outputs
from tdistill.models.layout import left_pad, pad_pairs
from tdistill.models.weights import foreign
from tdistill.runtime.errors import ModelError

# Lengths of two prompts and their responses: the first is padded on both sides.
PROMPTS, RESPONSES = (3, 9), (4, 6)
# The largest difference that rounding makes, as a share of the spread of the logits. Weights in 16 bits or fewer round more, and a
# mixture of experts may then take another expert: there the mean difference counts, in float32 the largest.
LARGEST, MEAN = 2e-3, 0.15
# Later tokens change nothing in the same computation, so there 16 bits are no excuse. As many of them are changed.
LATER_MEAN, LATER = 0.01, 3


def rounding(found: Tensor, wanted: Tensor, dtype: torch.dtype, mean: float = MEAN) -> tuple[float, float]:
    """Return how far logits differ, as a share of their spread, and how far rounding in ``dtype`` lets them.

    Args:
        found: [..., V] logits.
        wanted: [..., V] those that they should be.
        dtype: of the weights.
        mean: the allowed mean difference where ``dtype`` has 16 bits or fewer.
    """
    difference = (found - wanted).abs()
    if dtype in (torch.float32, torch.float64):
        spread = (wanted - wanted.mean(-1, keepdim=True)).abs().max().clamp(min=1e-6)
        return float(difference.max() / spread), LARGEST
    return float(difference.mean() / wanted.std().clamp(min=1e-6)), mean


@torch.inference_mode()
def probe(model: PreTrainedModel, name: str, vocab_size: int, avoid: Sequence[int] = (), hidden: bool = False) -> None:
    """Check a causal LM on a few tokens, in eval mode, on its own device and in its own dtype. It takes about 20 short forward passes.

    The properties have the names that messages use. *forward*: the model takes the arguments that tdistill passes. *finite logits*.
    *causal*: a later token changes no earlier logits. *positions*: explicit positions from 0 are the model's own. *padding*: a padded text
    has the logits of the text alone. *cache*: logits written token by token are those of the text read at once. *row selection*: rows can
    leave the cache. *hidden state*: its shape is [B, T, D], as wide as the head reads (only if asked for). *router loss*: it is off, since
    it fails with a cache and tdistill's losses have no term for it.

    Args:
        model: the model to probe.
        name: for messages.
        vocab_size: V.
        avoid: token ids with a meaning of their own, such as padding and end of text.
        hidden: a value head reads the last hidden state.

    Raises:
        ModelError: a property fails; it and the model are named.
    """
    _Probe(model, name, vocab_size, avoid).run(hidden)


class _Probe:
    def __init__(self, model: PreTrainedModel, name: str, vocab_size: int, avoid: Sequence[int]):
        self.model, self.vocab_size = model, vocab_size
        self.what = f"{name} ({type(model).__name__})"
        generator, kept = torch.Generator().manual_seed(0), sorted(set(range(vocab_size)) - set(avoid)) or [0]
        draw = [torch.randint(len(kept), (n,), generator=generator).tolist() for n in (*PROMPTS, *RESPONSES)]
        ids = [[kept[i] for i in row] for row in draw]
        self.prompts, self.responses = ids[:2], ids[2:]

    def run(self, hidden: bool) -> None:
        self._router()
        whole = [self._alone(p + r[:-1], len(r)) for p, r in zip(self.prompts, self.responses, strict=True)]
        for logits in whole:
            if not torch.isfinite(logits).all():
                raise self._fails("finite logits", "a logit is NaN or infinite: the weights are damaged, or the dtype is too narrow")
        self._causal(whole[1])
        self._positions(whole[1])
        self._padding(whole)
        self._cache(whole)
        if hidden:
            self._hidden()

    def _fails(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self.what} lacks the property {name!r}: {why}. tdistill can't use it; choose another model.")

    def _compare(self, name: str, why: str, found: Tensor, wanted: Tensor, mean: float = MEAN) -> None:
        size, limit = rounding(found, wanted, self.model.dtype, mean)
        if not size <= limit:  # NaN fails too
            raise self._fails(name, f"{why} (by {size:.2g} of their spread, allowed {limit:g})")

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _scored(self, ids: Tensor, mask: Tensor, steps: int, name: str = "forward") -> Tensor:
        with foreign(f"{self.what} lacks the property {name!r}"):
            logits = step_outputs(self.model, ids, mask, steps)[0]
        if logits.dim() != 3 or logits.shape[:2] != (len(ids), steps):
            raise self._fails("forward", f"logits of shape {list(logits.shape)}, expected [{len(ids)}, {steps}, rows of the head]")
        return logits[..., : self.vocab_size].float()

    def _alone(self, ids: Sequence[int], steps: int) -> Tensor:
        given = self._tensor(ids)
        return self._scored(given, torch.ones_like(given), steps)[0]

    def _router(self) -> None:
        config = self.model.config.get_text_config()
        if getattr(config, "output_router_logits", False):
            raise self._fails(
                "router loss", "output_router_logits is on, but tdistill's losses have no router term; set it to False in the configuration"
            )

    def _causal(self, whole: Tensor) -> None:
        prompt, response = self.prompts[1], self.responses[1][:-1]
        others = [(token + self.vocab_size // 2) % self.vocab_size for token in response[-LATER:]]
        changed = self._alone([*prompt, *response[:-LATER], *others], len(whole))
        why = "other tokens at the end change the logits before them"
        self._compare("causal", why, changed[:-LATER], whole[:-LATER], mean=LATER_MEAN)

    def _positions(self, whole: Tensor) -> None:
        ids = self._tensor([*self.prompts[1], *self.responses[1][:-1]])
        with foreign(f"{self.what} lacks the property 'positions'"):
            plain = self.model(input_ids=ids, use_cache=False).logits[0, -len(whole) :, : self.vocab_size].float()
        self._compare("positions", "with a mask and positions from 0 its logits are not those of a plain call", whole, plain)

    def _padding(self, whole: Sequence[Tensor]) -> None:
        ids, mask, _, real = (x.to(self.model.device) for x in pad_pairs(self.prompts, self.responses))
        both = self._scored(ids, mask, real.shape[1], "padding")
        for row, alone in zip(both, whole, strict=True):
            self._compare("padding", "logits of a padded text are not those of the text alone", row[: len(alone)], alone)

    def _cache(self, whole: Sequence[Tensor]) -> None:
        """Write two rows as ``generate_batch`` does. The first row leaves the batch after two tokens."""
        ids, mask = (x.to(self.model.device) for x in left_pad(self.prompts))
        live = [0, 1]
        rows: list[list[Tensor]] = [[], []]
        with foreign(f"{self.what} lacks the property 'cache'"):
            cache = DynamicCache(config=self.model.config)
        for t in range(len(self.responses[1])):
            with foreign(f"{self.what} lacks the property 'cache'"):
                logits = next_logits(self.model, ids, mask, cache)[:, : self.vocab_size].float()
            for slot, row in enumerate(live):
                rows[row].append(logits[slot])
            if t == 1:
                with foreign(f"{self.what} lacks the property 'row selection'"):
                    cache.batch_select_indices(torch.tensor([1], device=mask.device))
                live, mask = [1], mask[1:]
            ids = torch.tensor([[self.responses[row][t]] for row in live], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
        for written, alone in zip(rows, whole, strict=True):
            self._compare(
                "cache", "logits written token by token are not those of the text read at once", torch.stack(written), alone[: len(written)]
            )

    def _hidden(self) -> None:
        ids = self._tensor(self.prompts[1])
        with foreign(f"{self.what} lacks the property 'hidden state'"):
            hidden = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
        width = self.model.get_output_embeddings().weight.shape[-1]
        if tuple(hidden.shape) != (1, ids.shape[1], width):
            raise self._fails(
                "hidden state", f"the last one has the shape {list(hidden.shape)}, but a value head reads [1, {ids.shape[1]}, {width}]"
            )
