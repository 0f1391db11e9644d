"""Tabulate what the head ``sampled`` estimates: the rows of sampled_head.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from doc_tables import number, table

Rows = Sequence[Mapping[str, Any]]


def estimate_table(rows: Rows, objective: str) -> str:
    """Return error and bias of the log-partition, of an objective's loss and of its gradient, by the number of samples."""
    head = ["samples", "log-partition, rms error", "its bias", "loss, bias", "gradient, error of one draw", "gradient, bias"]
    keys = {"log_z_rms": 3, "log_z_bias": 4, "loss_bias": 4, "gradient_noise": 3, "gradient_bias": 3}
    signed = {"log_z_bias", "loss_bias"}
    own = sorted((row for row in rows if row["objective"] == objective), key=lambda row: row["samples"])
    lines = [[f"{row['samples']:,}", *(number(row[key], digits, key in signed) for key, digits in keys.items())] for row in own]
    return table(head, lines)


def noise_by_objective_table(rows: Rows) -> str:
    """Return the error of one draw's gradient, as a share of the gradient, by objective and number of samples."""
    samples = sorted({row["samples"] for row in rows})
    found = {(row["objective"], row["samples"]): row["gradient_noise"] for row in rows}
    names = list(dict.fromkeys(row["objective"] for row in rows))
    return table(["objective", *(f"{n:,}" for n in samples)], [[f"`{name}`", *(number(found[name, n], 3) for n in samples)] for name in names])
