"""Define the value head: the value of a state and, if an objective needs it, the value of each token in that state."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from tdistill.models.precision import FullPrecisionLinear, no_autocast

VALUES = frozenset({"value", "action_value"})  # needs that the value head answers


class ValueHead(nn.Module):
    """Compute v(s) = ⟨w, h⟩ + b and w(s,a) = v(s) + ⟨W h, e_a⟩/d, with h the last hidden state and e_a the token's row of the output embedding.

    It starts at 0, which is the value of a soft-optimal policy. Tokens with similar output embeddings get similar values. It computes in
        float32 (float64 stays float64) also under autocast: a return of 100 in bfloat16 is off by .25.
    """

    def __init__(self, width: int, actions: bool = False):
        super().__init__()
        self.state = FullPrecisionLinear(width, 1)
        self.action = FullPrecisionLinear(width, width, bias=False) if actions else None
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        """Return v(s), in at least float32."""
        return self.state(hidden).squeeze(-1)

    def of_actions(self, hidden: Float[Tensor, "B T D"], product: Callable[[Tensor], Tensor]) -> Float[Tensor, "B T K"]:
        """Return w(s,a) of some tokens, in at least float32. ``product`` gives ⟨x, e_a⟩ of these tokens for x = W h [B, T, D]."""
        assert self.action is not None
        read = self.action(hidden)
        with no_autocast(read):
            advantage = product(read)
        return self(hidden).unsqueeze(-1) + advantage / read.shape[-1]
