"""The floors: who may import whom, and that the core names no quantization method."""

import ast
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

import pytest

from qload.hooks import DECLARATION, PLUGIN, RUNTIME, hook_names
from qload.registry import METHODS_GROUP, UNQUANTIZED

ROOT = Path(__file__).parents[1]
CORE = ROOT / "qload"
FLOORS = (
    "errors",
    "amounts",
    "layout",
    "dtypes",
    "geometry",
    "declare",
    "sharding",
    "patterns",
    "positions",
    "fields",
    "catalogue",
    "findings",
    "values",
    "checkpoint",
    "hub",
    "hookspecs",
    "answers",
    "hooks",
    "calls",
    "rules",
    "entries",
    "registry",
    "configs",
    "numbers",
    "quantization",
    "resolution",
    "schemas",
    "presets",
    "probes",
    "config_file",
    "roles",
    "plan",
    "outline",
    "examination",
    "preview",
    "validation",
    "repair",
    "formats",
    "torch",
    "testing",
    "cli",
)
"""From the top: a module imports from those above it, and from its own package."""

ENTRANCES = ("__init__", "__main__")

METHOD_WORDS = (
    "gptq",
    "awq",
    "bitnet",
    "compressed",
    "bitsandbytes",
    "hqq",
    "quanto",
    "torchao",
    "modelopt",
    "quark",
    "gguf",
)
MAY_IMPORT_TORCH = ("torch", "testing")


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def floor_of(path: Path) -> str:
    return path.relative_to(CORE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports when it runs; what stands under TYPE_CHECKING does not run."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def core_floors_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("qload.")} & set(FLOORS)


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_above(path: Path) -> None:
    floor = floor_of(path)
    if floor in ENTRANCES:
        return
    above = FLOORS[: FLOORS.index(floor) + 1]
    assert core_floors_imported(path) <= set(above)


def test_every_module_has_a_floor() -> None:
    assert {floor_of(path) for path in sources(CORE)} == {*FLOORS, *ENTRANCES}


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_torch_floor_imports_torch(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert floor_of(path) in MAY_IMPORT_TORCH or not roots & {"torch", "transformers", "safetensors"}


@pytest.mark.parametrize("path", sources(CORE), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_method(path: Path) -> None:
    registered = {point.name for point in entry_points(group=METHODS_GROUP)} - {UNQUANTIZED}
    words = {*METHOD_WORDS, *registered}
    text = path.read_text().lower()
    assert [word for word in words if re.search(rf"(?<![a-z]){re.escape(word)}", text)] == []


@pytest.mark.parametrize("hook", hook_names(DECLARATION, RUNTIME, PLUGIN))
def test_every_hook_is_called_and_documented(hook: str) -> None:
    """What nobody calls is no hook: a plugin that has it would wait in vain."""
    about_plugins = ("hookspecs", "answers", "hooks", "testing")
    callers = [path for path in sources(CORE) if floor_of(path) not in about_plugins]
    assert any(re.search(rf"\b{hook}\b", path.read_text()) for path in callers)
    assert f"`{hook}(" in (ROOT / "docs" / "plugins.md").read_text()


@pytest.mark.parametrize("path", sources(ROOT / "plugins"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plugin_imports_no_other_plugin(path: Path) -> None:
    own = path.relative_to(ROOT / "plugins").parts[0]
    plugins = {folder.name for folder in (ROOT / "plugins").iterdir()} - {own}
    assert {name.split(".")[0] for name in imports(path)} & plugins == set()


def declarations() -> list[Path]:
    """The modules of each plugin that its package imports, those that these import, and so on."""
    found, waiting = list[Path](), sorted((ROOT / "plugins").glob("qload_*/__init__.py"))
    while waiting:
        path = waiting.pop(0)
        found.append(path)
        inner = {ROOT / "plugins" / f"{name.replace('.', '/')}.py" for name in imports(path)}
        waiting += sorted(each for each in inner if each.exists() and each not in found + waiting)
    return found


@pytest.mark.parametrize("path", declarations(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_declaration_does_not_import_torch(path: Path) -> None:
    assert not any(name.split(".")[0] == "torch" or name.startswith("qload.torch") for name in imports(path))


@pytest.mark.parametrize(
    "path", [*sources(CORE), *sources(ROOT / "plugins")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_is_imported_inside_a_function_or_asserted(path: Path) -> None:
    if "tests" in path.parts:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}"
        if isinstance(node, ast.FunctionDef):
            inner = [child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom)]
            assert inner == [], f"line {node.lineno}"


WORDS = (8, 16, 32, 64)
OTHER_NAMES = re.compile(
    r"(pack\w*|width)_?(factor|ratio|num|count)|\w+_per_(word|byte|int\d*|entry|pack)", re.IGNORECASE
)


@pytest.mark.parametrize(
    "path", [*sources(CORE), *sources(ROOT / "plugins")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_how_many_values_share_a_word_is_called_packing_and_worked_out_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [name for name in identifiers(tree) if OTHER_NAMES.fullmatch(name)] == []
    if path != CORE / "layout.py":
        assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.BinOp) and divides_a_word(node)] == []


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        found = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
        yield from (name for name in found if isinstance(name, str))


def divides_a_word(node: ast.BinOp) -> bool:
    """Whether a word's bits are divided by those of a value."""
    is_word = isinstance(node.left, ast.Constant) and node.left.value in WORDS
    return is_word and isinstance(node.op, ast.FloorDiv | ast.Div) and "bits" in ast.unparse(node.right).lower()


def test_the_drawing_of_the_floors_is_theirs() -> None:
    """CONTRIBUTING draws the floors in the order that these tests hold."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = [re.search(rf"qload/{floor}\b", text) for floor in FLOORS]
    places = [match.start() for match in found if match]
    assert len(places) == len(FLOORS)
    assert all(first < second for first, second in pairwise(places))
