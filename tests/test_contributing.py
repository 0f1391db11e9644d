"""What CONTRIBUTING promises: one file, one dict line, a test and a page make an algorithm, and nothing else has to change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import places
import pytest

from tdistill.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
TOY = '''"""A toy: the squared log-ratio of the token taken."""

from tdistill.mdp.steps import Steps
from tdistill.objectives.contract import Objective, ObjectiveOutput, Positive


def toy(steps: Steps, *, scale: Positive = 1.0) -> ObjectiveOutput:
    """loss_t = scale·(log π(a_t) − log π*(a_t))²."""
    ratio_t = steps.taken_logit_t - steps.log_z_t - steps.teacher_taken_logp_t
    return ObjectiveOutput(scale * ratio_t.square(), {"toy/ratio": ratio_t.detach()})


OBJECTIVE = Objective(fn=toy, needs=lambda **_: frozenset({"taken", "log_z"}))
'''


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_file_a_page_and_a_test(name):
    module = OBJECTIVES[name].fn.__module__.rpartition(".")[2]
    assert (ROOT / "docs/algorithms" / f"{module}.md").is_file()
    tests = [p for p in (ROOT / "tests/objectives").glob("test_*.py") if f'"{module}"' in p.read_text()]
    assert tests, f"no test binds {module}"
    assert f"{module}.md" in (ROOT / "README.md").read_text()


def test_a_toy_algorithm_takes_one_file_and_one_line(tiny_recipe, tmp_path):
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (source / "tdistill/objectives/toy.py").write_text(TOY)
    registry = source / "tdistill/objectives/registry.py"
    text = registry.read_text().replace("    nll,\n", "    nll,\n    toy,\n", 1)
    registry.write_text(text.replace('    "nll": nll.OBJECTIVE,\n', '    "nll": nll.OBJECTIVE,\n    "toy": toy.OBJECTIVE,\n', 1))
    command = [sys.executable, "-m", "tdistill", "run", str(tiny_recipe), "train.objective={name: toy, scale: 0.5}"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output = tiny_recipe.parent / "run"
    log = json.loads((output / places.titles(output)["distilled"] / "log_history.json").read_text())
    assert log["objective"] == "toy(scale=0.5)"
    assert any("toy/ratio" in entry for entry in log["history"])


@pytest.mark.parametrize(
    "module", ["tdistill.experiment.report", "tdistill.experiment.graph", "tdistill.theory.checks", "tdistill.pages.document"]
)
def test_a_module_can_be_imported_first(module):
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
