"""Keep secrets out of what tdistill writes: the last guard behind the checks of a recipe."""

import re
from typing import Any

HIDDEN = "[hidden]"
# hub_token, api_key, wandb_password, …; not num_tokens or tokenizer.
SECRET = re.compile(r"(?:^|[_.-])(?:token|apikey|api_key|key|password|passwd|secret|credentials?)$", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Tell whether a setting of this name holds a secret."""
    return SECRET.search(name) is not None


def without_secrets(value: Any) -> Any:
    """Return a copy of a tree of mappings and lists in which the text of every setting with a secret's name is ``[hidden]``."""
    if isinstance(value, dict):
        return {k: HIDDEN if isinstance(v, str) and is_secret(str(k)) else without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return value
