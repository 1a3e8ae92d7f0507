"""One line for each finding, `file:line:column: CODE message`, as editors and grep read it."""

from qload.formats.outcome import Outcome
from qload.validation.lines import write_lines


def write(outcome: Outcome) -> str:
    """One line for each finding of every report."""
    lines = (line for report in outcome.reports for line in write_lines(report, collapse=outcome.collapses))
    return "".join(f"{line}\n" for line in lines)
