"""Writes the parts of the docs that are made from something else: `make docs`.

The tables of formats are measured on the checkpoints in tests/data and in the folder that QLOAD_CHECKPOINTS names; the
list of findings is the catalogue. What stands between the markers is replaced.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from comparison import Comparison, RuntimeComparison, compare, compare_runtime  # noqa: E402
from samples import supported  # noqa: E402

from qload.catalogue import RULES, Rule  # noqa: E402

TIERS = {"C": "config", "H": "headers", "P": "a few bytes", "D": "data"}


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


def make_findings(rules: Iterable[Rule]) -> str:
    rows = ["| code | severity | read from | what | found by | can be waived |", "|---|---|---|---|---|---|"]
    for rule in rules:
        waivable = "yes" if rule.waivable else ""
        finders = "validate, load" if rule.is_validated else "load"
        cells = (rule.code, rule.severity.value, TIERS[rule.tier], rule.title, finders, waivable)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def replace_between(text: str, name: str, content: str) -> str:
    """The text with what lies between the markers of that name replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)


def main() -> None:
    for file, name, content in (
        ("formats.md", "formats", make_formats(map(compare, supported()))),
        ("formats.md", "activations", make_activations(map(compare_runtime, supported()))),
        ("findings.md", "findings", make_findings(RULES.values())),
    ):
        path = DOCS / file
        path.write_text(replace_between(path.read_text(), name, content))


if __name__ == "__main__":
    main()
