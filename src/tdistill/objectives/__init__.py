"""Define the algorithms on one contract: one file each, and no algorithm imports another.

Cloning          ``nll`` ``forward_kl`` ``reverse_kl`` ``jsd`` ``skew_kl`` ``skew_rkl`` ``tvd`` ``alpha_beta``; ``tail`` is an anchor
Inverse Q        ``iq_learn`` (Bellman Distill), ``bd_released`` (its released code), ``sqil`` and ``ls_iq`` (two constant rewards)
Soft Q-learning  ``csil`` (one step), ``q_lambda`` (λ-return), ``path_consistency`` (windows of every length)
Policy gradient  ``actor_critic`` (token taken), ``mean_actor_critic`` (every candidate), ``minillm`` (no critic)

``contract``     what an objective is, and what it may need
``registry``     name → objective
``bind``         checks a name and its arguments, or a weighted sum
``parts/``       helpers: divergence, support, gauge, phi, value_term, transition, q_regression, windows, policy_gradient, …
"""

from tdistill.objectives.bind import bind
from tdistill.objectives.contract import BoundObjective, Objective, ObjectiveOutput
from tdistill.objectives.registry import OBJECTIVES

__all__ = ["OBJECTIVES", "BoundObjective", "Objective", "ObjectiveOutput", "bind"]
