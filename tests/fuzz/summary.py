"""Print what the fuzz suite counted. The tests' own conftest loads it: under xdist the process that prints reads no other."""

from collections import Counter
from typing import Any

OUTCOMES = ("inputs", "accepted", "refused")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table; under xdist the properties come from the workers."""
    totals: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "fuzz":
                totals.setdefault(value["kind"], Counter()).update({k: value.get(k, 0) for k in OUTCOMES})
    if totals:
        terminalreporter.section("fuzz: inputs of the tests that passed (a traceback, or a wrong one accepted, fails its test)")
        for kind, counts in sorted(totals.items()):
            terminalreporter.write_line(f"{kind:<36}" + "  ".join(f"{k} {counts[k]:>6}" for k in OUTCOMES))
