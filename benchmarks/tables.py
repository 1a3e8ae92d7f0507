"""Write the tables of docs/benchmarks.md from the figures, show the plots, and say in README how fast it is.

    python benchmarks/tables.py [--check]

What stands between the markers of the pages is replaced; with `--check` nothing is written, and a page that says
something else than the figures is an error. Cells are medians, with the least and the greatest of the runs.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from computing import BARE_KERNEL, DENSIFYING, PLAIN, QLOAD, TORCHAO, rate
from load_memory import spread as spread_in
from loading import Case, describe_case, rate_each, speeds, spread, take
from readers import PINNED, WAYS
from reading import HEADINGS, list_rows
from summaries import describe_speed, summarize

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
NOT_YET = "Not measured yet: `python benchmarks/run.py --only {name}` does it."
KNOWN = ("processor", "cores", "memory_gb", "kernel", "device", "load_average", "python")
PLOTS = {
    "loading.svg": "Speed of loading a whole checkpoint, beside the limit",
    "loading_ranks.svg": "Speed of loading the shares of ranks, beside the limit",
    "loading_memory.svg": "Memory over time while a checkpoint is loaded",
    "load_parts.svg": "Time of each part of a load",
    "computing_layers.svg": "Time of a layer, by format and batch",
    "computing.svg": "Tokens a second of a whole model",
}

Kept = Mapping[str, Any]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def describe(kept: Kept) -> str:
    """Machine, device and versions."""
    machine = kept.get("machine")
    if machine is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.items() if name not in KNOWN)
    parts = [f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB"]
    if "kernel" in machine:
        parts.append(f"Linux {machine['kernel']}")
    if machine.get("device", "cpu") != "cpu":
        parts.append(machine["device"])
    if "load_average" in machine:
        parts.append(f"load average {' to '.join(f'{each:.1f}' for each in machine['load_average'])}")
    by = f"by `{kept['command']}` " if "command" in kept else ""
    return f"Measured {by}on {', '.join(parts)}; Python {machine['python']}, {versions}.\n\n"


def write_loading(kept: Kept) -> str:
    """A table for each case."""
    return "\n\n".join(filter(None, (write_case(kept, case) for case in kept["runs"])))


def write_case(kept: Kept, name: str) -> str:
    case, runs = Case(name), kept["runs"][name]
    if not runs:
        return ""
    limit = PINNED if PINNED in runs else case.limit
    rows = []
    for way in sorted(runs, key=lambda way: -statistics.median(speeds(dict(kept), name, way))):
        total = kept["bytes"][kept["checkpoints"][way]] / (1 if case.together else case.size)
        peaks = [[each[key] for each in runs[way]] for key in ("peak_anonymous", "peak_resident")]
        shares = rate_each(runs, way, limit, dict(kept))
        speed = spread(speeds(dict(kept), name, way), ".2f")
        label = f"{way} (mapped)" if way in WAYS and WAYS[way].mapped else way
        cells = [spread(map(take, runs[way]), ".2f"), speed, spread(shares, ".2f")]
        rows.append([label, *cells, *(f"{statistics.median(each) / total:.2f}" for each in peaks)])
    headings = ["way", "s", "GB/s", "of the limit", "peak, anonymous", "peak, resident"]
    left = "; ".join(f"{way}: {reason}" for way, reason in kept["failures"][name].items())
    return f"**{name}**: {describe_case(case)}\n\n{table(headings, rows)}" + (f"\n\nLeft out: {left}." if left else "")


def write_parts(kept: Kept) -> str:
    """A column for each model."""
    models = kept["seconds"]
    parts = list(dict.fromkeys(part for runs in models.values() for part in runs))
    headings = ["part", *(f"{model}, {kept['tensors'][model]:,} tensors, s" for model in models)]
    rows = [[part, *(spread(runs.get(part, []), ".3f") for runs in models.values())] for part in parts]
    return table(headings, rows)


def write_computing(kept: Kept) -> str:
    headings = ["format", "layer", "batch", "qload, ms", "times torch's kernel"]
    headings += [f"{way}, times qload" for way in (DENSIFYING, TORCHAO, PLAIN)]
    rows = [
        [form, shape, batch, spread([1e3 * each for each in seconds[QLOAD]], ".2f")]
        + [
            spread(rate(seconds, way), ".2f") if way in seconds else "none"
            for way in (BARE_KERNEL, DENSIFYING, TORCHAO, PLAIN)
        ]
        for form, shapes in kept["layers"].items()
        for shape, batches in shapes.items()
        for batch, seconds in batches.items()
    ]
    chosen = "; ".join(f"{form}: {', '.join(paths)}" for form, paths in kept.get("paths", {}).items() if paths)
    used = [f"What qload's layers computed with: {chosen}."] if chosen else []
    parts = [table(headings, rows), *used, *(write_decoding(form, states) for form, states in kept["models"].items())]
    left = "; ".join(
        f"{form}, {way}: {reason}" for form, ways in kept["failures"].items() for way, reason in ways.items()
    )
    return "\n\n".join([*parts, f"Left out: {left}."] if left else parts)


def write_decoding(form: str, states: Kept) -> str:
    ways = list(dict.fromkeys(way for speed in states.values() for way in speed))
    rows = [[way, *(spread(speed.get(way, []), ".1f") for speed in states.values())] for way in ways]
    return f"**{form}, a whole model, tokens/s**\n\n{table(['way', *states], rows)}"


def write_grouping(kept: Kept) -> str:
    """A column for each way, and what is at once in relation to one by one, compiled or not."""
    cases = kept["seconds"]
    ways = list(dict.fromkeys(way for runs in cases.values() for way in runs))
    rows = [
        [case.replace(",", ", "), *(spread([1e3 * each for each in runs.get(way, [])], ".2f") for way in ways)]
        for case, runs in cases.items()
    ]
    sizes = f"{kept['dtype']}, {kept['hidden']} and {kept['inner']} features, compiled by {kept['backend']}"
    return f"{sizes}; milliseconds.\n\n{table(['experts, choices, tokens', *ways], rows)}"


def write_load_memory(kept: Kept) -> str:
    times = {"load_seconds": "load, s", "answer_seconds": "first answer, s", "token_seconds": "one token, s"}
    sizes = {
        "load_peak": "peak loading",
        "load_stays": "stays loaded",
        "answer_peak": "peak answering",
        "answer_stays": "stays",
    }
    rows = [
        [
            way,
            *(spread([each[key] for each in runs], ".2f") for key in times),
            *(spread_in([each[key] for each in runs], kept["bytes"], 3) for key in sizes),
        ]
        for way, runs in kept["runs"].items()
    ]
    above = ", ".join(
        f"{way} {spread([(each['load_peak'] - each['load_stays']) / 1e6 for each in runs], '.1f')}"
        for way, runs in kept["runs"].items()
    )
    return (
        f"{table(['way', *times.values(), *sizes.values()], rows)}\n\nPeak while loading above what stays, MB: {above}."
    )


def write_quantize_load(kept: Kept) -> str:
    rows = [
        [
            way,
            spread([each["seconds"] for each in runs], ".2f"),
            spread_in([each["stays"] for each in runs], kept["bytes"], 3),
            f"{statistics.median(each['held'] for each in runs) / kept['bytes']:.3f}"
            if way.startswith("qload")
            else "not measured",
            spread_in([each["peak"] - each["stays"] for each in runs], 1e6, 1),
        ]
        for way, runs in kept["runs"].items()
    ]
    return table(["way", "s", "stays", "tensors hold", "peak above what stays, MB"], rows)


def write_parallel_load(kept: Kept) -> str:
    times = {"load_seconds": "load, s", "answer_seconds": "first answer, s", "token_seconds": "one token, s"}
    sizes = {
        "needed": "needed, MB",
        "read": "read, MB",
        "held": "held, MB",
        "resident_loading": "peak loading, MB",
        "resident_answering": "peak answering, MB",
    }
    rows = []
    for way, rounds in kept["runs"].items():
        worst = {key: [max(rank.get(key, 0) for rank in each["ranks"]) for each in rounds] for key in (*times, *sizes)}
        cells = [f"{min(worst[key]):.2f} ({max(worst[key]):.2f})" for key in times]
        cells += [f"{max(worst[key]) / 1e6:.0f}" if max(worst[key]) else "not said" for key in sizes]
        rows.append([way, *cells, f"{max(each['error'] for each in rounds):.1e}"])
    failed = "; ".join(f"{way}: `{reason}`" for way, reason in kept["failures"].items())
    return table(["way", *times.values(), *sizes.values(), "logits"], rows) + (
        f"\n\nFailed: {failed}." if failed else ""
    )


def write_plan_speed(kept: Kept) -> str:
    return f"{kept['tensors']:,} tensors.\n\n{compare_with(kept['seconds'], 'parse the headers', '.3f')}"


def compare_with(runs: Mapping[str, Sequence[float]], limit: str, form: str, unit: str = "s") -> str:
    """Medians, and as multiples of the median of one of them."""
    base = statistics.median(runs[limit])
    rows = [[way, spread(each, form), f"{statistics.median(each) / base:.2f}"] for way, each in runs.items()]
    return table(["what", unit, f"times {limit}"], rows)


def write_validate_speed(kept: Kept) -> str:
    rows = [[way, spread(runs, ".3f"), spread(kept["peak_mb"][way], ".0f")] for way, runs in kept["starts"].items()]
    alone = table(["a process of its own", "s", "peak memory, MB"], rows)
    return f"{kept['tensors']:,} tensors.\n\n{compare_with(kept['seconds'], 'parse the headers', '.3f')}\n\n{alone}"


def write_mutations(kept: Kept) -> str:
    meant = {
        "found": "found by validating",
        "found by loading": "found by loading alone",
        "found by computing": "found by the architecture's own code while computing",
        "harmless": "harmless: the same logits, bit for bit",
        "survived": "survived: other logits, and nothing found",
    }
    rows = [[text, f"{kept['verdicts'].get(verdict, 0):,}"] for verdict, text in meant.items()]
    crashed = sum(count for verdict, count in kept["verdicts"].items() if verdict not in meant)
    rows.append(["crashed, hung, or took more memory than was allowed", str(crashed)])
    said = f"{kept['changes']:,} changes of {len(kept['by kind'])} kinds to {kept['checkpoints']} checkpoints"
    return f"{said}.\n\n{table(['outcome', 'changes'], rows)}"


def write_deep_speed(kept: Kept) -> str:
    rows = [
        [way, spread(runs, ".2f"), f"{kept['nbytes'] / 1e9 / statistics.median(runs):.2f}"]
        for way, runs in kept["seconds"].items()
    ]
    return table(["what", "s", "GB/s"], rows)


def write_reading(kept: Kept) -> str:
    return table(HEADINGS, list_rows(kept["runs"]))


WRITERS: dict[str, Callable[[Kept], str]] = {
    "loading": write_loading,
    "reading": write_reading,
    "load_parts": write_parts,
    "computing": write_computing,
    "grouping": write_grouping,
    "load_memory": write_load_memory,
    "quantize_load": write_quantize_load,
    "parallel_load": write_parallel_load,
    "plan_speed": write_plan_speed,
    "validate_speed": write_validate_speed,
    "mutations": write_mutations,
    "deep_speed": write_deep_speed,
}


def make_blocks(folder: Path) -> dict[str, str]:
    """The text of each block of the page, by its marker's name."""
    blocks = {"summary": "\n".join(summarize(folder)), "plots": "\n\n".join(show_plots(folder))}
    for name, write in WRITERS.items():
        texts = []
        for path in (folder / f"{name}.json", folder / f"{name}_cuda.json"):
            if path.exists():
                kept = json.loads(path.read_text())
                texts.append(f"{describe(kept)}{write(kept)}\n\n([{path.name}]({folder.name}/{path.name}))")
        blocks[name] = "\n\n".join(texts) or NOT_YET.format(name=name)
    return blocks


def show_plots(folder: Path) -> Iterator[str]:
    for ending in ("", "_cuda"):
        for name, text in PLOTS.items():
            stem, _, rest = name.removesuffix(".svg").partition("_")
            file = f"{stem}{ending}{'_' * bool(rest)}{rest}.svg" if stem != "load" else name
            if (folder / file).exists() and not (ending and stem == "load"):
                yield f"![{text}{', on a GPU' if ending else ''}]({folder.name}/{file})"


def render(text: str, blocks: Mapping[str, str]) -> str:
    """The page with each block in its place. Raises LookupError for a block that has no place, or several."""
    for name, content in blocks.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, stop, after = rest.partition(f"<!-- /{name} -->")
        if not start or not stop or start in after:
            raise LookupError(f"the page needs one place for {name}: <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}{start}{content}{chr(10) * bool(content)}{stop}{after}"
    return text


def render_pages() -> dict[Path, str]:
    """What each page says, once it says what the figures do."""
    folder = PAGE.with_suffix("")
    blocks = {PAGE: make_blocks(folder), README: {"speed": describe_speed(folder)}}
    return {page: render(page.read_text(), those) for page, those in blocks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = {page: text for page, text in render_pages().items() if page.read_text() != text}
    if arguments.check and stale:
        pages = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"{pages}: something else than the figures: run python benchmarks/tables.py")
    for page, text in stale.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
