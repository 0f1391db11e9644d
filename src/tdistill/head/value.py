"""The value head: what a state is worth, and where asked what each token in it is."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ValueHead(nn.Module):
    """v(s) = ⟨w, h⟩ + b;  w(s,a) = v(s) + ⟨W h, e_a⟩/d, with h the last hidden state and e_a the token's row of the output embedding.

    Starts at 0, which is the value of a soft-optimal policy. Tokens that the model writes alike are worth alike until something
    else is learnt.
    """

    def __init__(self, width: int, actions: bool = False):
        super().__init__()
        self.state = nn.Linear(width, 1)
        self.action = nn.Linear(width, width, bias=False) if actions else None
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        """v(s), float32."""
        return self.state(hidden.float()).squeeze(-1)

    def of_actions(self, hidden: Float[Tensor, "B T D"], embeddings: Float[Tensor, "V D"]) -> Float[Tensor, "B T V"]:
        """w(s,a) of every token, float32; the embeddings get no gradient."""
        assert self.action is not None
        width = embeddings.shape[-1]
        return self(hidden).unsqueeze(-1) + F.linear(self.action(hidden.float()), embeddings.detach().float()) / width
