"""Random changes to a copy of a checkpoint, each of which may break it: in headers, the index, the config and data."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from edits import INDEX, WEIGHTS

CONFIG = "config.json"
SIDE_FILES = ("quantize_config.json", "hf_quant_config.json", "quanto_qmap.json")
WIDTHS = (
    ("F16", "BF16", "I16", "U16"),
    ("F32", "I32", "U32"),
    ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL"),
    ("F64", "I64", "U64"),
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        3,
        7,
        2**31,
        2**63,
        2**80,
        0.5,
        float("nan"),
        1e308,
        "",
        " ",
        "x",
        "../x",
        "a\x00b",
    ),
    *([], {}, [[]], [None], {"": {}}, "re:[", "re:.*", "\x1b[2J", "Linear", "int", "float", "group", "é" * 50),
)

Mutator = Callable[[Random, Path], str | None]
"""Changes the folder; says how, or None where it has nothing to change."""
Table = dict[str, Any]


def read_header(path: Path) -> tuple[Table, bytes]:
    """The header's object and all that follows it."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_header(path: Path, table: Table, data: bytes) -> None:
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def weight_files(folder: Path) -> list[Path]:
    return sorted((*folder.glob("model*.safetensors"), *folder.glob("*.gguf")))


def change_header(change: Callable[[Random, Table, list[str]], str | None]) -> Mutator:
    """A change of the header of one safetensors file."""

    def mutate(random: Random, folder: Path) -> str | None:
        files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
        if not files:
            return None
        path = random.choice(files)
        table, data = read_header(path)
        said = change(random, table, [name for name in table if name != "__metadata__"])
        if said is not None:
            write_header(path, table, data)
        return said

    return mutate


def rename_tensor(random: Random, table: Table, names: list[str]) -> str:
    name = random.choice(names)
    new = random.choice(
        (misspell(random, name), f"model.{name}", name.removeprefix("model."), f"{name}.{random.randint(0, 9)}")
    )
    table[new] = table.pop(name)
    return f"{name} renamed {new!r}"


def move_number(random: Random, table: Table, names: list[str]) -> str | None:
    name = random.choice(names)
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    if not numbers:
        return None
    place = random.choice(numbers)
    parts[place] = str(int(parts[place]) + random.choice((1, 2, 7, 1000)))
    new = ".".join(parts)
    table[new] = table.pop(name)
    return f"{name} renamed {new}"


def change_dtype(random: Random, table: Table, names: list[str]) -> str | None:
    name = random.choice(names)
    dtype = table[name]["dtype"]
    others = [each for group in WIDTHS if dtype in group for each in group if each != dtype]
    if not others:
        return None
    table[name]["dtype"] = random.choice(others)
    return f"{name}: {dtype} to {table[name]['dtype']}"


def change_shape(random: Random, table: Table, names: list[str]) -> str | None:
    name = random.choice(names)
    shape = table[name]["shape"]
    choices = [shape[::-1], [*shape, 1], [1, *shape], [-1 * each for each in shape]]
    if len(shape) == 2:
        choices += [[shape[0] * shape[1]], [shape[0] // 2, shape[1] * 2], [shape[0] * 2, shape[1] // 2]]
    new = random.choice(choices)
    if new == shape:
        return None
    table[name]["shape"] = new
    return f"{name}: {shape} to {new}"


def change_offsets(random: Random, table: Table, names: list[str]) -> str:
    name = random.choice(names)
    start, stop = table[name]["data_offsets"]
    step = random.choice((1, -1, 8, stop - start, 2**40, 2**63))
    table[name]["data_offsets"] = random.choice(
        ([start + step, stop + step], [start, stop + step], [stop, start], [0, 0])
    )
    return f"{name}: offsets {[start, stop]} to {table[name]['data_offsets']}"


def put_odd_entry(random: Random, table: Table, names: list[str]) -> str:
    name, key, odd = random.choice(names), random.choice(("dtype", "shape", "data_offsets")), random.choice(ODD)
    if random.random() < 0.2:
        table[name] = odd
    else:
        table[name][key] = odd
    return f"{name}.{key} is {odd!r}"


def drop_entry(random: Random, table: Table, names: list[str]) -> str:
    """The bytes stay, as a hole."""
    name = random.choice(names)
    del table[name]
    return f"{name} dropped"


def drop_tensor(random: Random, folder: Path) -> str | None:
    """The tensor and its bytes are gone: the file is sound."""
    return _rebuild(random, folder, lambda random, kept: f"{kept.pop(random.choice(list(kept)))[0]} dropped")


def drop_module(random: Random, folder: Path) -> str | None:
    def change(random: Random, kept: dict[str, Any]) -> str:
        module = random.choice(list(kept)).rpartition(".")[0]
        for name in [name for name in kept if name.startswith(f"{module}.")]:
            del kept[name]
        return f"{module} dropped"

    return _rebuild(random, folder, change)


def crop_tensor(random: Random, folder: Path) -> str | None:
    """Half of its rows are gone."""

    def change(random: Random, kept: dict[str, Any]) -> str:
        name = random.choice([name for name, each in kept.items() if each[1]["shape"] and each[1]["shape"][0] % 2 == 0])
        _, entry, data = kept[name]
        entry["shape"] = [entry["shape"][0] // 2, *entry["shape"][1:]]
        kept[name] = (name, entry, data[: len(data) // 2])
        return f"{name} cropped"

    return _rebuild(random, folder, change)


def _rebuild(random: Random, folder: Path, change: Callable[[Random, dict[str, Any]], str]) -> str | None:
    """Write the one weight file anew with what is left of its tensors."""
    path = folder / WEIGHTS
    if not path.exists():
        return None
    table, data = read_header(path)
    kept = {
        name: (name, entry, data[slice(*entry["data_offsets"])])
        for name, entry in table.items()
        if name != "__metadata__"
    }
    said = change(random, kept)
    new: Table = {name: each for name, each in table.items() if name == "__metadata__"}
    end = 0
    for name, entry, content in kept.values():
        new[name] = {**entry, "data_offsets": [end, end + len(content)]}
        end += len(content)
    write_header(path, new, b"".join(content for _, _, content in kept.values()))
    return said


def spoil_values(random: Random, folder: Path) -> str | None:
    """One tensor that is no weight, or the whole of a packed one, gets bytes that it cannot have."""

    def change(random: Random, kept: dict[str, Any]) -> str:
        name = random.choice(list(kept))
        _, entry, data = kept[name]
        byte = random.choice((0x00, 0xFF, 0x7F))
        kept[name] = (name, entry, bytes([byte]) * len(data))
        return f"{name}: all bytes {byte:#x}"

    return _rebuild(random, folder, change)


def flip_bytes(random: Random, folder: Path) -> str | None:
    """In the header, where each byte says something."""
    path = random.choice(weight_files(folder))
    raw = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(raw[:8], "little") if path.suffix == ".safetensors" else min(len(raw), 1 << 14)
    places = [random.randrange(end) for _ in range(random.choice((1, 1, 2, 8)))]
    for place in places:
        raw[place] = random.randrange(256)
    path.write_bytes(raw)
    return f"{path.name}: bytes at {places}"


def cut_file(random: Random, folder: Path) -> str | None:
    path = random.choice(weight_files(folder))
    raw = path.read_bytes()
    size = random.choice((0, 1, 7, 8, 9, 100, len(raw) // 2, len(raw) - 1, random.randrange(len(raw))))
    path.write_bytes(raw[:size] if random.random() < 0.8 else raw + b"\0" * 8)
    return f"{path.name}: {size} of {len(raw)} bytes, or 8 more"


def claim_length(random: Random, folder: Path) -> str | None:
    path = random.choice(weight_files(folder))
    raw = path.read_bytes()
    length = random.choice((0, 1, 2**31, 2**62, 2**63, 2**64 - 1, len(raw), len(raw) - 8))
    path.write_bytes(length.to_bytes(8, "little") + raw[8:])
    return f"{path.name}: begins with {length}"


def change_json(names: Callable[[Path], list[Path]], change: Callable[[Random, Any], str | None]) -> Mutator:
    def mutate(random: Random, folder: Path) -> str | None:
        files = names(folder)
        if not files:
            return None
        path = random.choice(files)
        value = json.loads(path.read_text())
        said = change(random, value)
        if said is not None:
            path.write_text(json.dumps(value))
        return None if said is None else f"{path.name}: {said}"

    return mutate


def configs(folder: Path) -> list[Path]:
    return [folder / name for name in (CONFIG, *SIDE_FILES) if (folder / name).exists()]


def index(folder: Path) -> list[Path]:
    return [folder / INDEX] if (folder / INDEX).exists() else []


def list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, Mapping) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from list_places(value[key])


def choose_place(random: Random, config: Any) -> tuple[Any, Any]:
    """Mostly in what is said of quantization."""
    section = config.get("quantization_config", config) if isinstance(config, dict) else config
    places = list(list_places(section if section and random.random() < 0.75 else config))
    return random.choice(places)


def put_odd_value(random: Random, config: Any) -> str:
    holder, key = choose_place(random, config)
    old, holder[key] = holder[key], random.choice(ODD)
    return f"{key} was {old!r:.60} and is {holder[key]!r:.60}"


def nudge_value(random: Random, config: Any) -> str | None:
    """Another value of the same type."""
    holder, key = choose_place(random, config)
    old = holder[key]
    if isinstance(old, bool):
        holder[key] = not old
    elif isinstance(old, int):
        holder[key] = random.choice((old * 2, old // 2, old + 1, old - 1, -old, 4, 8, 32, 128))
    elif isinstance(old, str):
        holder[key] = random.choice((misspell(random, old), old.upper(), old + "_x", f"model.{old}"))
    elif isinstance(old, list) and old:
        old = list(old)
        holder[key].pop(random.randrange(len(old)))
    else:
        return None
    return None if holder[key] == old else f"{key} was {old!r:.60} and is {holder[key]!r:.60}"


def drop_key(random: Random, config: Any) -> str | None:
    holder, key = choose_place(random, config)
    if not isinstance(holder, dict):
        return None
    return f"{key} dropped, which was {holder.pop(key)!r:.60}"


def rename_key(random: Random, config: Any) -> str | None:
    holder, key = choose_place(random, config)
    if not isinstance(holder, dict) or not key:
        return None
    new = misspell(random, key)
    holder[new] = holder.pop(key)
    return f"{key} renamed {new!r}"


def ignore_more(random: Random, config: Any) -> str | None:
    section = config.get("quantization_config") or config
    lists = [
        each
        for each in ("ignore", "modules_to_not_convert", "exclude", "exclude_modules", "targets")
        if isinstance(section.get(each), list)
    ]
    if not lists:
        return None
    entry = random.choice(
        ("model.layers.1.mlp.down_proj", "model.layers.1", "q_proj", "re:.*down_proj", "lm_head", "nothing.at.all")
    )
    name = random.choice(lists)
    section[name].append(entry)
    return f"{name} gets {entry}"


def move_in_index(random: Random, table: Any) -> str | None:
    placed = table["weight_map"]
    name = random.choice(list(placed))
    old = placed[name]
    odd = (
        *sorted(set(placed.values())),
        "../model.safetensors",
        "/etc/passwd",
        "gone.safetensors",
        "a\x00b",
        3,
        None,
        "",
    )
    placed[name] = random.choice(odd)
    return None if placed[name] == old else f"{name} from {old} to {placed[name]!r}"


def rename_in_index(random: Random, table: Any) -> str:
    placed = table["weight_map"]
    name = random.choice(list(placed))
    new = misspell(random, name)
    placed[new] = placed.pop(name)
    return f"{name} renamed {new!r}"


def damage_text(names: Callable[[Path], list[Path]]) -> Mutator:
    def mutate(random: Random, folder: Path) -> str | None:
        files = names(folder)
        if not files:
            return None
        path = random.choice(files)
        raw = bytearray(path.read_bytes())
        place = random.randrange(len(raw))
        how = random.choice(("cut", "flip", "deep", "pointer"))
        if how == "cut":
            raw = raw[:place]
        elif how == "flip":
            raw[place] = random.randrange(256)
        elif how == "deep":
            raw = bytearray(b'{"a":' * 100_000 + b"0" + b"}" * 100_000)
        else:
            raw = bytearray(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
        path.write_bytes(raw)
        return f"{path.name}: {how} at {place}"

    return mutate


def misspell(random: Random, word: str) -> str:
    place = random.randrange(len(word)) if word else 0
    return random.choice(
        (word[:place] + word[place + 1 :], word[:place] + "x" + word[place:], word[:place] + word[place:][::-1])
    )


MUTATORS: Mapping[str, Mutator] = {
    "rename a tensor": change_header(rename_tensor),
    "move a number": change_header(move_number),
    "change a dtype": change_header(change_dtype),
    "change a shape": change_header(change_shape),
    "change offsets": change_header(change_offsets),
    "odd entry": change_header(put_odd_entry),
    "drop an entry": change_header(drop_entry),
    "drop a tensor": drop_tensor,
    "drop a module": drop_module,
    "crop a tensor": crop_tensor,
    "spoil values": spoil_values,
    "flip bytes": flip_bytes,
    "cut a file": cut_file,
    "claim a length": claim_length,
    "odd config value": change_json(configs, put_odd_value),
    "nudge a config value": change_json(configs, nudge_value),
    "drop a config key": change_json(configs, drop_key),
    "rename a config key": change_json(configs, rename_key),
    "ignore more": change_json(configs, ignore_more),
    "damage the config": damage_text(configs),
    "move in the index": change_json(index, move_in_index),
    "rename in the index": change_json(index, rename_in_index),
    "odd index": change_json(index, put_odd_value),
    "damage the index": damage_text(index),
}
