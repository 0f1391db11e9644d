"""Sizes, signatures and docstrings have bounds, so that a reader holds one function and one file in mind at a time."""

import ast
import re

import pytest
from house import SRC, sources

MOST_LINES, MOST_INIT, MOST_FILE, MOST_ARGUMENTS = 50, 30, 400, 6
# A docstring begins with one of these verbs.
_VERBS = """
Add Advance Align Allow Answer Append Apply Ask Assert Assign Attach Average Bind Build Call Carry Cast Check Choose Claim Clean Clear Clip
Close Collate Collect Combine Compare Compile Compose Compute Concatenate Configure Connect Convert Coordinate Copy Count Create Cut Decide
Declare Decode Define Delete Derive Describe Detach Discard Distil Divide Download Draw Drive Drop Embed Encode End Enforce Ensure Escape
Estimate Evaluate Exchange Execute Expand Explain Express Extend Extract Fetch Fill Filter Find Fine-tune Fingerprint Finish Fit Flatten
Follow Forget Format Free Freeze Gather Generate Get Give Go Group Handle Hash Help Hide Hold Import Initialise Insert Inspect Invert
Iterate Join Judge Keep Learn Leave Let Limit Link List Load Lock Log Look Make Map Mark Mask Match Measure Merge Minimise Mix Move Multiply
Name Normalise Note Open Order Pack Pad Pair Parse Pass Pick Pin Place Plot Pool Predict Prepare Present Print Probe Process Produce Project
Prove Provide Prune Push Put Quote Raise Rank Read Rebuild Recompute Record Reduce Refuse Register Regress Release Remove Render Repeat
Replace Report Represent Require Rescale Reset Resolve Restore Resume Retry Return Reuse Roll Run Sample Save Say Scale Score Seed Select
Send Serve Set Shift Show Solve Sort Split Stack Start Stop Store Stream Subtract Suggest Sum Summarise Switch Synchronise Take Tell Test
Tie Time Tokenise Track Train Transform Translate Truncate Try Turn Unpack Update Use Validate Visit Wait Walk Warn Watch Weight Wrap Write
Yield
"""
VERBS = frozenset(_VERBS.split())
NOT_PLAIN = re.compile(r"\bso (?:many|much)\b(?! (?:that|as))|\bwhat is there\b|\bsuch\b(?! as)", re.IGNORECASE)
# Functions whose keyword-only arguments are a configuration that a user writes: objectives, the Trainer, and the options of commands.
CONFIGURED = re.compile(
    r"^tdistill\.objectives\.|^tdistill\.training\.trainer:DistillTrainer\.__init__$|^tdistill\.models\.student:StudentModel\.forward$|^tdistill\.cli:"
)


def functions() -> list[tuple[str, ast.FunctionDef]]:
    """Return every function and method with its name, ``module:Class.method``."""
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((prefix + child.name, child))
            inner = f"{child.name}." if isinstance(child, ast.FunctionDef | ast.ClassDef) else ""
            walk(child, prefix + inner)

    for module, tree in sources().items():
        walk(tree, f"{module}:")
    return found


def arguments(name: str, function: ast.FunctionDef) -> int:
    """Count the arguments that a caller must know; keyword arguments of a configuration, or of a batch, do not count."""
    given = function.args
    count = len([a for a in given.posonlyargs + given.args if a.arg not in ("self", "cls")])
    return count if CONFIGURED.search(name) else count + len(given.kwonlyargs)


def docstrings() -> dict[str, str]:
    """Return every docstring by the name of what it describes."""
    found = {}
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text is not None:
                    found[f"{module}:{getattr(node, 'name', '')}:{getattr(node, 'lineno', 0)}"] = text
    return found


def test_functions_are_short():
    sizes = {name: f.end_lineno - f.lineno + 1 for name, f in functions()}
    assert len(sizes) > 800
    most = {name: MOST_INIT if name.endswith("__init__") else MOST_LINES for name in sizes}
    assert {name: size for name, size in sizes.items() if size > most[name]} == {}


def test_functions_take_few_arguments():
    counts = {name: arguments(name, f) for name, f in functions()}
    assert {name: count for name, count in counts.items() if count > MOST_ARGUMENTS} == {}


def test_files_are_short():
    sizes = {str(p.relative_to(SRC)): len(p.read_text().splitlines()) for p in SRC.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > (MOST_INIT if name.endswith("__init__.py") else MOST_FILE)} == {}


def begins_plainly(text: str) -> bool:
    """Tell whether a docstring's first sentence has a verb and something after it."""
    first, second, *_ = [*text.split("\n\n")[0].split(), "", ""]
    listed = first.endswith(",") and second.rstrip(",").capitalize() in VERBS  # "Load, check, cut and wrap models."
    return (first in VERBS or (listed and first[:-1] in VERBS)) and second != ""


def test_docstrings_begin_with_a_verb_and_its_object():
    assert {name: text.split("\n")[0] for name, text in docstrings().items() if not begins_plainly(text)} == {}


def test_docstrings_are_in_plain_words():
    found = {name: NOT_PLAIN.search(text) for name, text in docstrings().items()}
    assert {name: match[0] for name, match in found.items() if match} == {}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Return the size.", True),
        ("Load, check and cut models.", True),
        ("loss_t = −log q(a)", False),
        ("Collate.", False),
        ("Of a file; a hub id stands for itself.", False),
        ("Count, per task, the prompts.", False),
        ("The size.", False),
    ],
)
def test_the_check_tells_plain_sentences_from_others(text, plain):
    assert begins_plainly(text) == plain
