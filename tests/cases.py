"""The cases of all test modules: for each rule a checkpoint, and what breaks it so that the rule finds it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from breaking import Case

TESTS = Path(__file__).parent
_HAS_CASES = re.compile(r"^CASES: tuple\[Case, \.\.\.\]", re.MULTILINE)


def gather_cases() -> dict[str, Case]:
    """The first case of each code, by the names of the modules that hold them; those without options come before."""
    found: dict[str, Case] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if _HAS_CASES.search(path.read_text()):
            for case in _load(path).CASES:
                known = found.get(case.code)
                if known is None or (known.options and not case.options):
                    found[case.code] = case
    return found


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cases_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
