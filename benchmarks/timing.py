"""Times calls in turns, and writes what was found as a table."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Runs = dict[str, list[float]]
"""What each way took, run by run."""


def time_calls(ways: Mapping[str, Callable[[], object]], rounds: int) -> Runs:
    """Seconds of each call of each way, in turns, each after a collection of garbage."""
    found: Runs = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, call in ways.items():
            gc.collect()
            started = time.perf_counter()
            call()
            if number:  # the first round warms the page cache
                found[way].append(time.perf_counter() - started)
    return found


def show(headings: Sequence[str], found: Mapping[str, list[float]], compare: Callable[[float], str], form: str) -> None:
    """Print a row for each way: the median with its range, and what `compare` makes of the median."""
    print(f"\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for way, runs in found.items():
        middle = statistics.median(runs)
        print(f"| {way} | {middle:{form}} ({min(runs):{form}} to {max(runs):{form}}) | {compare(middle)} |")
