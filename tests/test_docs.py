"""The parts of the docs that are made from something else are up to date."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from cases import gather_cases
from samples import DATA

from qload.catalogue import RULES
from qload.torch.kernels.table import BUILT_IN

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(maker: ModuleType) -> dict[str, str]:
    """The pages of all rules as they would be made now."""
    examples = maker.make_examples(gather_cases().values())
    made: dict[str, str] = maker.make_pages(maker.list_families(), examples)
    return made


def test_the_findings_are_the_catalogue(maker: ModuleType) -> None:
    text = (DOCS / "findings.md").read_text()
    assert maker.replace_between(text, "findings", maker.make_index(maker.list_families())) == text


def test_every_rule_has_a_page_and_every_page_a_rule(pages: dict[str, str]) -> None:
    assert {path.name for path in (DOCS / "findings").iterdir()} == pages.keys()
    assert {f"{code}.md" for code in RULES} <= pages.keys()


@pytest.mark.parametrize("code", [*RULES, "HQQ001"])
def test_the_page_of_a_rule_is_as_made_with_what_is_printed_now(code: str, pages: dict[str, str]) -> None:
    """Where it is not, `python docs/make.py findings` makes it anew."""
    assert (DOCS / "findings" / f"{code}.md").read_text() == pages[f"{code}.md"]


@pytest.mark.parametrize("code", gather_cases())
def test_a_rule_that_a_test_breaks_a_checkpoint_for_shows_what_it_finds(code: str, pages: dict[str, str]) -> None:
    example = pages[f"{code}.md"].partition("## What it looks like")[2]
    assert example.startswith("\n\n```\n$ qload validate ")
    assert code in example.splitlines()[4]


def test_the_kernels_are_the_table(maker: ModuleType) -> None:
    made = maker.make_kernels()
    assert made in (DOCS / "kernels.md").read_text()
    assert len(made.splitlines()) == len(BUILT_IN) + 2


@pytest.mark.parametrize("path", sorted(DATA.iterdir()), ids=lambda path: path.name)
def test_the_formats_are_as_measured(path: Path, maker: ModuleType) -> None:
    """All but the logits' error, of which the last digit depends on the machine."""
    text, _, _ = (DOCS / "formats.md").read_text().partition("<!-- activations -->")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {path.name} ")]
    made = maker.make_formats([maker.compare(path)]).splitlines()[-1]
    assert without_logits(row) == without_logits(made)


@pytest.mark.parametrize("path", sorted(DATA.iterdir()), ids=lambda path: path.name)
def test_the_activations_are_as_measured(path: Path, maker: ModuleType) -> None:
    """As near, for what rounds values turns the order of summation into steps; bit for bit but for few such steps.

    Processors with AMX sum bfloat16 in another order: of what others have bit for bit, they have all to 6e-5.
    """
    _, _, text = (DOCS / "formats.md").read_text().partition("<!-- activations -->")
    found = [line for line in text.splitlines() if line.startswith(f"| {path.name} ")]
    made = maker.make_activations([maker.compare_runtime(path)] if has_reference(path) else []).splitlines()[2:]
    assert len(found) == len(made)
    for old, new in zip(map(read_errors, found), map(read_errors, made), strict=True):
        assert new == pytest.approx(old, rel=0.5, abs=2e-4)


def has_reference(path: Path) -> bool:
    return (path / "reference.safetensors").exists()


def read_errors(row: str) -> list[float]:
    return [float(cell) for cell in row.strip("| ").split(" | ")[1:]]


def without_logits(row: str) -> list[str]:
    cells = row.split(" | ")
    return cells[:4] + cells[5:]
