"""Register the algorithms. To add one: a file here, a test, a page in docs/algorithms, one line in ``OBJECTIVES``."""

from tdistill.objectives import (
    actor_critic,
    alpha_beta,
    bd_released,
    csil,
    forward_kl,
    iq_learn,
    jsd,
    ls_iq,
    mean_actor_critic,
    minillm,
    nll,
    path_consistency,
    q_lambda,
    reverse_kl,
    skew_kl,
    skew_rkl,
    sqil,
    tvd,
)
from tdistill.objectives.bind import bind
from tdistill.objectives.contract import BoundObjective, Objective, ObjectiveOutput

OBJECTIVES: dict[str, Objective] = {
    "nll": nll.OBJECTIVE,
    "forward_kl": forward_kl.OBJECTIVE,
    "reverse_kl": reverse_kl.OBJECTIVE,
    "jsd": jsd.OBJECTIVE,
    "skew_kl": skew_kl.OBJECTIVE,
    "skew_rkl": skew_rkl.OBJECTIVE,
    "tvd": tvd.OBJECTIVE,
    "alpha_beta": alpha_beta.OBJECTIVE,
    "iq_learn": iq_learn.OBJECTIVE,
    "bellman_distill": iq_learn.OBJECTIVE,
    "sqil": sqil.OBJECTIVE,
    "ls_iq": ls_iq.OBJECTIVE,
    "bd_released": bd_released.OBJECTIVE,
    "csil": csil.OBJECTIVE,
    "q_lambda": q_lambda.OBJECTIVE,
    "path_consistency": path_consistency.OBJECTIVE,
    "actor_critic": actor_critic.OBJECTIVE,
    "mean_actor_critic": mean_actor_critic.OBJECTIVE,
    "minillm": minillm.OBJECTIVE,
}

__all__ = ["OBJECTIVES", "BoundObjective", "Objective", "ObjectiveOutput", "bind"]
