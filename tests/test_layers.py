"""An import never goes up the layers, and no modules import each other in a circle."""

from graphlib import CycleError, TopologicalSorter

import pytest
from house import SRC, imports, sources

# From the bottom to the top: a room may import what stands before it.
LAYERS = (
    *("runtime", "recipe", "mdp", "objectives", "models", "cache", "data", "teachers", "training", "statistics", "evaluation"),
    *("pages", "judge", "report", "theory", "experiment", "planning", "compare", "cli", "__main__"),
)
NOT_ALGORITHMS = {"bind", "contract", "registry", "parts"}

MODULES = sources()
GRAPH = {name: set(imports(tree, set(MODULES))) - {name} for name, tree in MODULES.items()}


def room(module: str) -> str | None:
    """Return the room of a module; the package itself, which holds the version and lazy names, has none."""
    return module.split(".")[1] if "." in module else None


def test_every_module_stands_in_a_room_of_the_list():
    assert {room(m) for m in MODULES} - {None} == set(LAYERS)


def test_no_import_goes_up():
    ups = {
        (m, imported)
        for m, found in GRAPH.items()
        for imported in found
        if room(m) and room(imported) and LAYERS.index(room(imported)) > LAYERS.index(room(m))
    }
    assert sorted(ups) == []


def test_no_circle_of_imports():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other in a circle: {' ← '.join(error.args[1])}")


def test_no_algorithm_imports_another():
    algorithms = {m for m in MODULES if m.startswith("tdistill.objectives.") and m.split(".")[2] not in NOT_ALGORITHMS}
    assert len(algorithms) > 15
    found = {m: sorted(GRAPH[m] & algorithms) for m in algorithms if GRAPH[m] & algorithms}
    assert found == {}


def test_the_tests_mirror_the_rooms():
    """Tests of one room stand in its directory. Beside the rooms: fuzzing, several processes, and the scripts of the benchmarks."""
    rooms = {path.name for path in (SRC / "tdistill").iterdir() if (path / "__init__.py").is_file()}
    tested = {path.parent.name for path in (SRC.parent / "tests").glob("*/test_*.py")}
    assert tested - rooms == {"fuzz", "invariant", "benchmarks"}
    assert rooms - tested == set(), "every room has tests"


def test_the_package_itself_imports_nothing_of_its_own():
    assert GRAPH["tdistill"] == set(), "`tdistill --help` must not wait for torch"
