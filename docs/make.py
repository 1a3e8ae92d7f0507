"""Writes the parts of the docs that are made from something else: `make docs`, or `python docs/make.py findings`.

The tables of formats are measured on the checkpoints in tests/data and in the folder that QLOAD_CHECKPOINTS names; the
findings and their pages are the catalogue, with examples made by breaking checkpoints; the kernels are their table.
What stands between the markers is replaced.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "tests")]

from cases import gather_cases  # noqa: E402
from comparison import Comparison, RuntimeComparison, compare, compare_runtime  # noqa: E402
from examples import make_examples  # noqa: E402
from pages import list_families, make_index, make_pages  # noqa: E402
from samples import supported  # noqa: E402

from qload.torch.kernels.table import BUILT_IN  # noqa: E402

PAGES = DOCS / "findings"


def make_formats(comparisons: Iterable[Comparison]) -> str:
    """A row for each checkpoint."""
    rows = [
        "| checkpoint | made by | what it is | greatest weight error | logits error | packed | dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in sorted(comparisons, key=lambda each: each.name):
        labels = "; ".join(label for label in each.report.layers if label != "unquantized") or "unquantized"
        error = "0" if each.weight_error == 0 else f"{each.weight_error:.1e}"
        weights = error if each.weights else "none stored"
        sizes = f"{each.report.bytes_in_memory / 1e6:.2f} MB | {each.report.bytes_dense / 1e6:.2f} MB"
        rows.append(f"| {each.name} | {each.producer} | {labels} | {weights} | {each.logits_error:.0e} | {sizes} |")
    return "\n".join(rows)


def make_activations(comparisons: Iterable[RuntimeComparison | None]) -> str:
    """A row for each checkpoint whose activations are quantized, and whose producer's runtime is known."""
    rows = ["| checkpoint | bfloat16, on | off | float32, on | off |", "|---|---|---|---|---|"]
    for each in sorted((each for each in comparisons if each is not None), key=lambda each: each.name):
        errors = (each.on, each.off, each.on_wide, each.off_wide)
        cells = ("0" if error == 0 else f"{error:.1e}" for error in errors)
        rows.append(f"| {each.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def replace_between(text: str, name: str, content: str) -> str:
    """The text with what lies between the markers of that name replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def write(file: str, parts: Mapping[str, str]) -> None:
    """Put the parts between their markers."""
    path = DOCS / file
    text = path.read_text()
    for name, content in parts.items():
        text = replace_between(text, name, content)
    path.write_text(text)


def write_formats() -> None:
    """Measure all checkpoints; takes minutes."""
    rows, activations = make_formats(map(compare, supported())), make_activations(map(compare_runtime, supported()))
    write("formats.md", {"formats": rows, "activations": activations})


def write_findings() -> None:
    """Write the page of each rule, and take those away that no rule has."""
    families = list_families()
    pages = make_pages(families, make_examples(gather_cases().values()))
    write("findings.md", {"findings": make_index(families)})
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.md"):
        path.unlink()
    for name, text in pages.items():
        (PAGES / name).write_text(text)


def make_kernels() -> str:
    """A row for each kernel of the table: its name, and what its class says of itself."""
    rows = ["| kernel | what it does | how its numbers differ |", "|---|---|---|"]
    for kernel in BUILT_IN:
        summary = (inspect.getdoc(kernel) or "").split("\n\n")[0].replace("\n", " ")
        precision = kernel.precision or "as the dequantized weight's"
        rows.append(f"| `{kernel.label}` | {kernel.devices}: {summary} | {precision} |")
    return "\n".join(rows)


def write_kernels() -> None:
    """Write the table of kernels."""
    write("kernels.md", {"kernels": make_kernels()})


PARTS = {"formats": write_formats, "findings": write_findings, "kernels": write_kernels}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
