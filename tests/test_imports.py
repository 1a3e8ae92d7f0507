"""What starts without torch: the package, every declaration, and the commands that do not compute."""

import subprocess
import sys

import pytest
from samples import DEMO

HEAVY = "{'torch', 'transformers', 'safetensors', 'numpy', 'compressed_tensors', 'huggingface_hub', 'httpx2'}"


def imported_heavily(code: str) -> str:
    """The heavy packages that a fresh process has imported after running `code`."""
    script = f"import sys\n{code}\nprint(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["methods"],
        ["rules"],
        ["explain", "QL201", "HQQ001"],
        ["validate", str(DEMO)],
        ["validate", "--help"],
        ["plan", str(DEMO), "--tp", "1,2,3"],
        ["plan", "--help"],
    ],
)
def test_a_command_starts_without_torch(arguments: list[str]) -> None:
    code = f"from qload.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert imported_heavily(code) == "[]"


def test_the_package_imports_without_torch() -> None:
    assert imported_heavily("import qload; qload.validate, qload.Registry, qload.CheckpointError") == "[]"


def test_every_declaration_imports_without_torch() -> None:
    assert imported_heavily("import qload; qload.Registry.discover().methods()") == "[]"


def test_validating_every_method_imports_no_torch() -> None:
    code = f"import qload; print(qload.validate({str(DEMO)!r}).ok)"
    assert imported_heavily(code) == "[]"


def test_planning_every_rank_imports_no_torch() -> None:
    code = f"import qload; print(qload.plan_ranks({str(DEMO)!r}, [2, 4], expert_parallel=True).fits)"
    assert imported_heavily(code) == "[]"


def test_loading_is_there_when_asked_for() -> None:
    assert imported_heavily("import qload; qload.load") != "[]"


def test_what_is_exported_is_there() -> None:
    imported_heavily("import qload; [getattr(qload, name) for name in qload.__all__]")
    imported_heavily("import qload; assert set(qload.__all__) <= set(dir(qload))")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        imported_heavily("import qload; qload.nothing")
