"""Draw the figures that are kept: bars of speed against the limit, memory over time, parts of a load, computing.

    python benchmarks/plots.py [FOLDER]

Of each JSON file that is in the folder one or more SVG files are written beside it. The same figures give the same
files, byte for byte. Bars are medians, and thin lines go from the least to the greatest of the runs.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from computing import BARE_KERNEL, DENSIFYING, PLAIN, TORCHAO
from computing import QLOAD as QLOAD_WAY
from loading import Case, describe_case, speeds, take
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from readers import PINNED, QLOAD, WAYS

KEPT = Path(__file__).parents[1] / "docs" / "benchmarks"
INK, FAINT = "#6e7781", "#8b949e40"
"""Of text and of grids: as readable on white as on black."""
OURS, OTHERS, MAPPED, LIMIT = "#2f81f7", "#8b949e", "#8b949e66", "#d1802e"
PALETTE = ("#2f81f7", "#d1802e", "#3fa45b", "#a371f7", "#c4587e", "#8b949e", "#2aa5a0", "#b59f3b", "#5f6dc9", "#77808a")
STYLE = {
    "svg.hashsalt": "qload",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
DOTS = {
    QLOAD_WAY: OURS,
    DENSIFYING: "#9a6cf0",
    BARE_KERNEL: LIMIT,
    TORCHAO: "#3fa45b",
    PLAIN: OTHERS,
}
COPYING = f"{QLOAD}, its copying"
SHORT_STATES = {"decode 1": "decoding, batch 1", "decode 16": "decoding, batch 16", "prompt 512": "a prompt of 512"}


def draw_loading(kept: Mapping[str, Any], folder: Path, stem: str) -> None:
    """Speeds of whole loads, and of ranks' shares, in two files; memory over time in a third."""
    names = [case for case, runs in kept["runs"].items() if runs]
    for ending, cases in (
        ("", [case for case in names if Case(case).size == 1]),
        ("_ranks", [case for case in names if Case(case).size > 1]),
    ):
        if cases:
            draw_speeds(kept, cases, folder / f"{stem}{ending}.svg")
    if kept["memory"]:
        draw_memory(kept, folder / f"{stem}_memory.svg")


def draw_speeds(kept: Mapping[str, Any], cases: Sequence[str], path: Path) -> None:
    """A panel of bars for each case, with the limit as a line across them."""
    rows = [list_speeds(kept, case) for case in cases]
    heights = [len(bars) for bars, _ in rows]
    size = (7.6, 0.75 * len(cases) + 0.25 * sum(heights))
    figure, panels = plt.subplots(len(cases), 1, figsize=size, squeeze=False, height_ratios=heights)
    for case, (bars, limit), axes in zip(cases, rows, panels[:, 0], strict=True):
        names = sorted(bars, key=lambda name: (is_mapped(name), statistics.median(bars[name])))
        copied = [value for name in names if not is_mapped(name) for value in bars[name]]
        draw_bars(axes, {name: bars[name] for name in names}, [choose_color(name) for name in names], [*copied, *limit])
        if limit:
            axes.axvspan(min(limit), max(limit), color=LIMIT, alpha=0.15, linewidth=0, zorder=0)
            axes.axvline(statistics.median(limit), color=LIMIT, linewidth=1.5, linestyle="--")
        known = f"; dashed: the limit, {statistics.median(limit):.2g} GB/s" if limit else ""
        axes.set_title(f"{describe_case(Case(case))}{known}", x=0, fontsize=9)
        axes.set_xlabel("GB/s")
        axes.set_yticks(range(len(names)), [f"{name} (mapped)" if is_mapped(name) else name for name in names])
    save(figure, path, kept)


def list_speeds(kept: Mapping[str, Any], case: str) -> tuple[dict[str, list[float]], list[float]]:
    """GB/s of each way, of qload's copying by itself, and of the limit."""
    runs = kept["runs"][case]
    limit = PINNED if PINNED in runs else Case(case).limit
    bars = {name: speeds(dict(kept), case, name) for name in runs if name != limit}
    copying = [each["phases"].get("copy") for each in runs.get(QLOAD, [])]
    if copying and all(copying):
        share = zip(bars[QLOAD], runs[QLOAD], copying, strict=True)
        bars[COPYING] = [speed * take(each) / seconds for speed, each, seconds in share]
    return bars, speeds(dict(kept), case, limit) if limit in runs else []


def draw_bars(
    axes: Axes, bars: Mapping[str, Sequence[float]], colors: Sequence[str], shown: Sequence[float] = ()
) -> None:
    """Horizontal bars, the last on top: medians, with whiskers from the least to the greatest.

    The axis ends a little beyond the greatest of `shown`: a bar that is longer is cut off there.
    """
    end = 1.12 * max(shown or [value for values in bars.values() for value in values])
    for row, (values, color) in enumerate(zip(bars.values(), colors, strict=True)):
        middle = statistics.median(values)
        axes.barh(row, min(middle, end), color=color, height=0.72)
        axes.plot([min(*values, end), min(max(values), end)], [row, row], color=INK, linewidth=1)
        text = write_number(middle) if middle else "none"
        beyond = max(values) > 0.93 * end
        place = end if beyond else max(values) + 0.012 * end
        axes.text(place, row, f" {text} \u2192" if middle > end else f" {text}", va="center", fontsize=8)
    axes.set_xlim(0, end)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def write_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def is_mapped(way: str) -> bool:
    return way in WAYS and WAYS[way].mapped


def choose_color(way: str) -> str:
    if way.startswith("qload"):
        return OURS
    if way.startswith("limit"):
        return LIMIT
    return MAPPED if is_mapped(way) else OTHERS


def count_bytes(kept: Mapping[str, Any], way: str) -> int:
    """The bytes of the checkpoint that the way loads."""
    return int(kept["bytes"][kept["checkpoints"][way]])


def draw_memory(kept: Mapping[str, Any], path: Path) -> None:
    """What each way holds while it loads: one small panel for each."""
    curves = {way: curve for way, curve in kept["memory"].items() if curve["seconds"]}
    columns = 3
    rows = -(-len(curves) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(7.6, 1.6 * rows), sharey=True, squeeze=False)
    for axes in panels.flat[len(curves) :]:
        axes.axis("off")
    for axes, (way, curve) in zip(panels.flat, sorted(curves.items(), key=lambda each: each[0] != QLOAD), strict=False):
        total = count_bytes(kept, way)
        color = OTHERS if is_mapped(way) else choose_color(way)
        axes.plot(curve["seconds"], [each / total for each in curve["resident"]], color=color, linewidth=1.2)
        axes.fill_between(
            curve["seconds"], [each / total for each in curve["anonymous"]], color=color, alpha=0.25, lw=0
        )
        axes.set_title(way, fontsize=8)
        axes.set_xlim(0, None)
        axes.axhline(1, color=FAINT, linewidth=1)
        axes.grid(axis="y")
        axes.tick_params(labelsize=7)
    panels[0, 0].set_ylim(
        0, 1.05 * max(max(curve["resident"]) / count_bytes(kept, way) for way, curve in curves.items())
    )
    for axes in panels[:, 0]:
        axes.set_ylabel("of the bytes", fontsize=8)
    figure.supxlabel("seconds; line: resident memory, filled: the anonymous part of it", fontsize=8, color=INK)
    save(figure, path, kept)


def draw_parts(kept: Mapping[str, Any], folder: Path, stem: str) -> None:
    """One stacked bar for each model: the time of each part."""
    models = kept["seconds"]
    parts = list(dict.fromkeys(part for runs in models.values() for part in runs))
    figure, axes = plt.subplots(figsize=(7.6, 1.4 + 0.55 * len(models)))
    names = [f"{model}\n({kept['tensors'][model]:,} tensors)" for model in models]
    ends = [0.0] * len(models)
    for number, part in enumerate(parts):
        middles = [statistics.median(runs.get(part, [0.0])) for runs in models.values()]
        axes.barh(names, middles, left=ends, color=PALETTE[number % len(PALETTE)], label=part, height=0.6)
        for row, (start, middle) in enumerate(zip(ends, middles, strict=True)):
            if middle > 0.05 * max(sum_medians(runs) for runs in models.values()):
                axes.text(start + middle / 2, row, f"{middle:.2f}", ha="center", va="center", color="white", fontsize=8)
        ends = [end + middle for end, middle in zip(ends, middles, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("s")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.legend(ncols=4, fontsize=7, loc="lower left", bbox_to_anchor=(-0.15, 1.0), columnspacing=1, handlelength=1)
    save(figure, folder / f"{stem}.svg", kept)


def sum_medians(runs: Mapping[str, Sequence[float]]) -> float:
    return sum(statistics.median(each) for each in runs.values())


def draw_computing(kept: Mapping[str, Any], folder: Path, stem: str) -> None:
    if kept["layers"]:
        draw_layers(kept, folder / f"{stem}_layers.svg")
    if kept["models"]:
        draw_decoding(kept, folder / f"{stem}.svg")


def draw_layers(kept: Mapping[str, Any], path: Path) -> None:
    """Milliseconds of the widest layer, by format, one panel for each batch, on a logarithmic axis."""
    forms = list(kept["layers"])[::-1]
    shape = max(kept["layers"][forms[0]], key=lambda each: int(each.rpartition(" ")[2]))
    batches = list(kept["layers"][forms[0]][shape])
    size = (7.6, 0.9 + 0.45 * len(forms))
    figure, panels = plt.subplots(1, len(batches), figsize=size, sharey=True, squeeze=False)
    for axes, batch in zip(panels[0], batches, strict=True):
        for row, form in enumerate(forms):
            draw_dots(axes, row, kept["layers"][form][shape][batch])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{shape}, batch {batch}", fontsize=8)
        axes.set_yticks(range(len(forms)), forms)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("ms")
    handles = [Line2D([], [], marker="o", linestyle="", markersize=4, color=color) for color in DOTS.values()]
    figure.legend(handles, list(DOTS), loc="lower center", ncols=5, fontsize=8, bbox_to_anchor=(0.5, 1.0))
    save(figure, path, kept)


def draw_dots(axes: Axes, row: int, seconds: Mapping[str, Sequence[float]]) -> None:
    """A dot for each way, one below the other, with a line from the least to the greatest."""
    for number, (way, color) in enumerate(DOTS.items()):
        runs = [1e3 * each for each in seconds.get(way, [])]
        if runs:
            place = row + 0.3 - 0.6 * number / (len(DOTS) - 1)
            axes.plot([min(runs), max(runs)], [place, place], color=color, linewidth=1)
            axes.plot(statistics.median(runs), place, "o", color=color, markersize=4)


def draw_decoding(kept: Mapping[str, Any], path: Path) -> None:
    """Tokens a second: a row of panels for each format, a panel for each state."""
    forms = list(kept["models"])
    states = list(kept["models"][forms[0]])
    ways = list(dict.fromkeys(way for form in forms for state in states for way in kept["models"][form][state]))
    ways.sort(key=lambda way: (way.startswith("qload"), way))
    size = (7.6, len(forms) * (0.7 + 0.25 * len(ways)))
    figure, panels = plt.subplots(len(forms), len(states), figsize=size, sharey=True, squeeze=False)
    for form, row in zip(forms, panels, strict=True):
        for state, axes in zip(states, row, strict=True):
            speed = {way: kept["models"][form][state].get(way, [0.0]) for way in ways}
            draw_bars(axes, speed, [choose_color(way) for way in ways])
            axes.set_title(SHORT_STATES.get(state, state), fontsize=8)
            axes.tick_params(labelsize=8)
        row[0].set_ylabel(form, fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("tokens/s")
    save(figure, path, kept)


def save(figure: Figure, path: Path, kept: Mapping[str, Any]) -> None:
    """Write the figure, with what it was measured on below it."""
    figure.tight_layout()
    figure.text(0.0, -0.01, describe(kept["machine"]), fontsize=6.5, color=INK, va="top")
    figure.savefig(path, bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    # A hundredth of a point is seen by nobody, and matplotlib ends lines of paths with blanks.
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", path.read_text())
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def describe(machine: Mapping[str, Any]) -> str:
    """Machine, device and versions, in a line."""
    known = ("processor", "cores", "memory_gb", "kernel", "device", "load_average", "python")
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in known)
    device = "" if machine.get("device", "cpu") == "cpu" else f", {machine['device']}"
    loads = machine.get("load_average")
    load = f"; load average {' to '.join(f'{each:.1f}' for each in loads)}" if loads else ""
    base = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB{device}{load}"
    return "\n".join(wrap(f"{base}; Python {machine['python']}, {versions}", 140))


def wrap(text: str, width: int) -> Iterable[str]:
    words = text.split(" ")
    starts = [0]
    for number in range(len(words)):
        if len(" ".join(words[starts[-1] : number + 1])) > width:
            starts.append(number)
    return [" ".join(words[start:stop]) for start, stop in pairwise([*starts, len(words)])]


DRAWINGS = {"loading": draw_loading, "load_parts": draw_parts, "computing": draw_computing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=KEPT)
    folder = parser.parse_args().folder
    mpl.use("svg")
    with mpl.rc_context(STYLE):
        for path in sorted(folder.glob("*.json")):
            draw = DRAWINGS.get(path.stem.removesuffix("_cuda"))
            if draw is not None:
                draw(json.loads(path.read_text()), folder, path.stem)


if __name__ == "__main__":
    main()
