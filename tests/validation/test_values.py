"""What only the data shows: found by reading a few bytes or all, by bits, as torch and gguf-py have the values."""

import hashlib
import json
import os
import shutil
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from breaking import Break, Case, config_alone, put
from edits import WEIGHTS, copy_checkpoint, edit_config, edit_tensors
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from qload_gguf.types import BLOCKS
from samples import DATA, DEMO, flaws, is_sound, samples
from torch import Tensor

import qload
from qload import Registry
from qload.checkpoint import Folder
from qload.declare import Blocks, Facts, OtherVersion, ParameterKind
from qload.errors import CheckpointError
from qload.examination import examine
from qload.torch.dtypes import torch_dtype
from qload.torch.values import watch_values
from qload.validation import pieces
from qload.validation.checksums import read_checksums
from qload.validation.pieces import cut_ranges, merge_ranges, read_bits
from qload.validation.stored import Stored, list_stored
from qload.values import FLOAT_BITS, make_watches

LAYER = "model.layers.0.mlp.down_proj"
QUERY = "model.layers.0.self_attn.q_proj"
PROBE: dict[str, Any] = {"probe": True}
DEEP: dict[str, Any] = {"deep": True}
SYMMETRIC = "gptq-4bit-g32-sym-descact"
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def add_idle_cache(folder: Path) -> None:
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
    edit_config(folder, lambda whole: whole["quantization_config"].update(kv_cache_scheme=scheme))
    edit_tensors(folder, lambda stored: stored.update(make_cache_scales(stored)))


def make_cache_scales(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {name.partition(".self_attn.")[0] for name in stored if ".self_attn." in name}
    return {f"{name}.self_attn.{kind}_scale": torch.ones(1) for name in layers for kind in "kv"}


def publish(folder: Path, value: str) -> None:
    (folder / "SHA256SUMS").write_text(f"{value}  {WEIGHTS}\n")


def fill(name: str, value: float) -> Break:
    return put(name, lambda tensor: torch.full_like(tensor, value))


def spoil_one(name: str, value: float) -> Break:
    """The last number of a tensor alone."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        wide = tensor.float()
        wide[-1, -1] = value
        return wide.to(tensor.dtype)

    return put(name, change)


def other_version(name: str) -> Break:
    return config_alone(lambda whole: whole["quantization_config"].update(checkpoint_format=name))


NORM = "model.layers.1.input_layernorm.weight"

CASES: tuple[Case, ...] = (
    Case("QL010", DEMO.name, lambda folder: publish(folder, "0" * 64), options=DEEP),
    Case("QL501", DEMO.name, fill(f"{LAYER}.weight_scale", float("nan")), f"{LAYER}.weight_scale", DEEP),
    Case("QL501", "ct-fp8-static", fill(f"{LAYER}.input_scale", -1), f"{LAYER}.input_scale", DEEP),
    Case("QL501", "ct-fp8-block", put(f"{LAYER}.weight_scale", lambda t: -t), f"{LAYER}.weight_scale", DEEP),
    Case("QL502", "modelopt-nvfp4", fill(f"{LAYER}.weight_scale_2", 17152), f"{LAYER}.weight_scale_2", PROBE),
    Case("QL502", "modelopt-nvfp4", fill(f"{LAYER}.weight_scale_2", 0), f"{LAYER}.weight_scale_2", PROBE),
    Case("QL502", "modelopt-nvfp4", fill(f"{LAYER}.weight_scale_2", float("inf")), f"{LAYER}.weight_scale_2", DEEP),
    Case("QL503", SYMMETRIC, other_version("gptq_v2"), f"{LAYER}.qzeros", PROBE),
    Case("QL503", "gptq-3bit-g128-sym", other_version("gptq_v2"), f"{LAYER}.qzeros", PROBE),
    Case("QL503", SYMMETRIC, other_version("gptq_v2"), f"{LAYER}.qzeros", DEEP),
    Case("QL504", DEMO.name, fill(f"{LAYER}.weight_packed", 0), f"{LAYER}.weight_packed", DEEP),
    Case("QL504", "ct-fp8-static", fill(f"{LAYER}.input_scale", 0), f"{LAYER}.input_scale", DEEP),
    Case("QL504", DEMO.name, fill(f"{LAYER}.weight_scale", 0), f"{LAYER}.weight_scale", DEEP),
    Case("QL504", "base", fill(f"{LAYER}.weight", 0), f"{LAYER}.weight", DEEP),
    Case("QL504", DEMO.name, fill(f"{LAYER}.weight_packed", -1), f"{LAYER}.weight_packed", DEEP),
    Case("QL509", DEMO.name, fill(NORM, float("nan")), NORM, DEEP),
    Case("QL509", DEMO.name, fill(NORM, 1e38), NORM, DEEP),
    Case("QL509", "ct-fp8-static", spoil_one(f"{LAYER}.weight", float("nan")), f"{LAYER}.weight", DEEP),
    Case("QL509", "base", spoil_one(f"{LAYER}.weight", float("inf")), f"{LAYER}.weight", DEEP),
    Case("QL505", SYMMETRIC, put(f"{LAYER}.g_idx", lambda t: t + 1), f"{LAYER}.g_idx", DEEP),
    Case("QL506", "modelopt-nvfp4", put(f"{QUERY}.input_scale", lambda t: 2 * t), f"{QUERY}.input_scale", PROBE),
    Case("QL506", "modelopt-nvfp4", put(f"{QUERY}.weight_scale_2", lambda t: t / 2), f"{QUERY}.weight_scale_2", DEEP),
    Case("QL507", "ct-fp8-static", add_idle_cache, "model.layers.0.self_attn.k_scale", PROBE),
    Case("QL508", "hqq-3bit-g64", put(f"{LAYER}.nbits", lambda t: t + 1), f"{LAYER}.nbits", PROBE),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.checkpoint}")
def test_what_is_broken_is_found_at_its_place(case: Case, broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(case.checkpoint)
    case.breaks(folder)
    found = qload.validate(folder, registry=registry, **case.options).findings
    assert any(finding.code == case.code and finding.where.startswith(case.where) for finding in found)
    assert {finding.code for finding in found} == {case.code}


@pytest.mark.parametrize("path", [path for path in samples() if is_sound(path)], ids=lambda path: path.name)
def test_real_checkpoints_have_no_bad_values(path: Path, registry: Registry) -> None:
    for deep in (True, False):
        found = qload.validate(path, registry=registry, probe=True, deep=deep).findings
        assert {finding.code for finding in found} <= flaws(path)


def list_declared(path: Path, registry: Registry) -> list[Stored]:
    found = examine(path, registry)
    assert found.quantization is not None
    assert found.outline is not None
    return list(list_stored(found.checkpoint, found.quantization, found.outline))


def find_bad(stored: Stored) -> tuple[str, bytes] | None:
    """A rule, and the bytes of a number that breaks it; None where every number can be right."""
    spec, entry = stored.spec, stored.entry
    size = stored.itemsize
    if spec.facts.blocks is not None:
        return "QL501", struct.pack("<e", float("nan"))
    if spec.kind in (ParameterKind.INDEX, ParameterKind.SETTING) and spec.bounds is not None:
        code = "QL505" if spec.kind is ParameterKind.INDEX else "QL508"
        value: float = spec.bounds[1]
        return code, numpy.array([value], "<f4" if entry.dtype == "F32" else f"<u{size}").tobytes()
    if spec.kind.is_scale and spec.bounds is not None:
        return "QL501", bytes([spec.bounds[1]])
    if entry.dtype in FLOAT_BITS and (spec.kind.is_scale or spec.kind is ParameterKind.TABLE):
        code = "QL502" if spec.kind is ParameterKind.GLOBAL_SCALE else "QL501"
        return code, FLOAT_BITS[entry.dtype].mark.to_bytes(size, "little", signed=True)
    return None


def poke(folder: Path, stored: Stored, number: bytes) -> None:
    """Put a number into the middle of a tensor, or into a scale of the block there."""
    entry, blocks = stored.entry, stored.spec.facts.blocks
    unit = len(number) if blocks is None else blocks.nbytes
    place = entry.start + entry.nbytes // unit // 2 * unit + (0 if blocks is None else blocks.places[-1])
    with (folder / entry.file).open("r+b") as file:
        file.seek(place)
        file.write(number)


def break_each_kind(folder: Path, registry: Registry) -> set[tuple[str, str]]:
    """Break a tensor of each kind that a checkpoint has; returns what is to be found."""
    broken: dict[tuple[str, str, str], tuple[Stored, str, bytes]] = {}
    for stored in list_declared(folder, registry):
        bad = find_bad(stored)
        if bad is not None:
            broken.setdefault((stored.spec.kind, stored.spec.stored_as, stored.entry.dtype), (stored, *bad))
    for stored, _, number in broken.values():
        poke(folder, stored, number)
    return {(code, stored.entry.name) for stored, code, _ in broken.values()}


def look_up(findings: Any) -> set[tuple[str, str]]:
    return {(finding.code, finding.where) for finding in findings}


QUANTIZED = [path for path in sorted(DATA.iterdir()) if not path.name.startswith("base") and "sparse" not in path.name]


@pytest.mark.parametrize("path", QUANTIZED, ids=lambda path: path.name)
def test_a_bad_number_of_every_kind_is_found(path: Path, tmp_path: Path, registry: Registry) -> None:
    folder = copy_checkpoint(path, tmp_path / "copy")
    expected = break_each_kind(folder, registry)
    assert expected
    found = look_up(qload.validate(folder, registry=registry, deep=True).findings)
    assert {each for each in found if each[0] not in ("QL504", "QL506", *flaws(path))} == expected


@pytest.mark.parametrize("name", ["gptq-4bit-g32-sym-descact", "modelopt-nvfp4", "autoround-gguf-q4_k_m", "bnb-nf4-dq"])
def test_loading_finds_what_reading_all_finds(name: str, broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(name)
    expected = break_each_kind(folder, registry)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert look_up(caught.value.findings) == expected


def test_what_is_found_does_not_depend_on_the_size_of_pieces(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[str], Path], registry: Registry
) -> None:
    for name in ("gptq-3bit-g128-sym", "autoround-gguf-q4_k_m"):
        folder = broken(name)
        expected = break_each_kind(folder, registry)
        monkeypatch.setattr(pieces, "CHUNK", 4999)
        assert look_up(qload.validate(folder, registry=registry, deep=True).findings) == expected
    folder = broken(SYMMETRIC)
    other_version("gptq_v2")(folder)
    found = qload.validate(folder, registry=registry, deep=True).findings
    assert len(found) == sum(each.spec.facts.other is not None for each in list_declared(folder, registry))


@pytest.mark.parametrize("code", FLOAT_BITS)
@given(data=st.data())
def test_bits_say_what_torch_says_of_values(code: str, data: st.DataObject) -> None:
    number = FLOAT_BITS[code]
    raw = data.draw(st.binary(min_size=number.nbytes, max_size=16 * number.nbytes))
    raw = raw[: len(raw) // number.nbytes * number.nbytes]
    tensor = torch.frombuffer(bytearray(raw), dtype=torch_dtype(code))
    value = tensor.double()
    # Beyond 2^100 no computation is of use; powers of two are stored as they are.
    usable = torch.isfinite(value) & ((value.abs() < 2.0**100) | (code == "F8_E8M0"))
    finite, negative = bool(usable.all()), bool((value < 0).any())
    facts, kind = Facts(signed=False), ParameterKind.BLOCK_SCALE
    (watch,) = make_watches(kind, None, facts, code)
    watch.see(read_bits(raw, 0, len(raw), code, number.nbytes))
    (other,) = watch_values(kind, None, facts, tensor)
    assert watch == other
    assert watch.is_suspect == (not finite or negative)
    bits = tensor.view(INTEGERS[number.nbytes]).tolist()
    decoded = torch.tensor([number.decode(each) for each in bits], dtype=torch.float64)
    assert torch.equal(decoded.nan_to_num(nan=-0.5), value.nan_to_num(nan=-0.5))
    assert number.decode(number.one) == 1


@pytest.mark.parametrize(("pieces_seen", "count"), [([7, 8], 0), ([8, 7], 0), ([8, 8], 1), ([7, 7], 0)])
def test_zero_points_are_of_another_version_only_throughout(pieces_seen: list[int], count: int) -> None:
    other = OtherVersion((8, 8, 8), "7", "8 throughout", "correct the version")
    (watch,) = make_watches(ParameterKind.ZERO_POINT, None, Facts(other=other), "I32")
    for value in pieces_seen:
        watch.see(torch.full((2, 6), value, dtype=torch.int32))
    assert len(list(watch.judge("m", "f"))) == count


def test_one_part_of_a_fused_layer_is_of_another_version(broken: Callable[[str], Path], registry: Registry) -> None:
    folder, name = broken(SYMMETRIC), "model.layers.0.self_attn.k_proj.qzeros"
    fill(name, -0x77777778)(folder)
    for options in (PROBE, DEEP):
        assert look_up(qload.validate(folder, registry=registry, **options).findings) == {("QL503", name)}
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert look_up(caught.value.findings) == {("QL503", name)}


@pytest.mark.parametrize(("numbers", "expected"), [([-8, 7], ""), ([-9, 0], "-9 to 0"), ([0, 8], "0 to 8")])
def test_zero_points_of_few_bits_lie_among_the_values(numbers: list[int], expected: str) -> None:
    (watch,) = make_watches(ParameterKind.ZERO_POINT, (-8, 8), Facts(), "I8")
    for number in numbers:
        watch.see(torch.tensor([number], dtype=torch.int8))
    assert [finding.found for finding in watch.judge("m", "f")] == [expected] * bool(expected)


TYPES = [
    number for number, block in BLOCKS.items() if block.scales and GGMLQuantizationType(number) in quants._type_traits
]


@pytest.mark.parametrize("number", TYPES, ids=lambda number: BLOCKS[number].name)
def test_the_scales_of_blocks_are_all_that_can_be_bad_in_them(number: int) -> None:
    """Random blocks, some with a scale that is NaN or infinite: gguf-py's values are odd exactly where we say so."""
    block, kind = BLOCKS[number], GGMLQuantizationType(number)
    generator = numpy.random.default_rng(0)
    rows = generator.integers(0, 256, (512, block.nbytes), dtype=numpy.uint8)
    for place in block.scales:
        rows[:, place + 1] &= 0x3F
    for row, place in enumerate(block.scales * 8):
        rows[row, place : place + 2] = (0, 0x7C + row % 4)
    with numpy.errstate(all="ignore"):
        odd = ~numpy.isfinite(quants.dequantize(rows, kind)).all(-1)
    from_us = []
    for row in rows:
        (watch,) = make_watches(ParameterKind.PACKED, None, blocks_of(number), "U8")
        watch.see(row.view("<i2"))
        from_us.append(watch.is_suspect)
    assert from_us == odd.tolist()
    assert sum(from_us) == 8 * len(block.scales)


def blocks_of(number: int) -> Facts:
    return Facts(blocks=Blocks(BLOCKS[number].nbytes, BLOCKS[number].scales))


ranges = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 18)), max_size=8)


@given(ranges)
def test_merged_ranges_have_every_byte_of_the_ranges(chosen: list[tuple[int, int]]) -> None:
    wanted = [(start, start + size) for start, size in chosen]
    merged = merge_ranges(wanted, 1 << 16)
    assert all(any(first <= start and stop <= last for first, last in merged) for start, stop in wanted)
    assert merged == sorted(merged)
    whole = list(cut_ranges(merged, []))
    assert sum(stop - start for start, stop in whole) == sum(stop - start for start, stop in merged)


def test_reading_all_takes_little_memory(tmp_path: Path, registry: Registry) -> None:
    rows, columns = 1 << 14, 1 << 14
    shapes = {"weight_packed": ("I32", [rows, columns // 8], 4), "weight_scale": ("BF16", [rows, columns // 128], 2)}
    header, at = {}, 0
    for leaf, (dtype, shape, size) in shapes.items():
        end = at + shape[0] * shape[1] * size
        header[f"{LAYER}.{leaf}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    shutil.copy(DATA / "ct-w4a16-g128-sym-actorder-group" / "config.json", tmp_path)
    edit_config(tmp_path, lambda whole: whole.pop("quantization_config"))
    section = json.loads((DATA / "ct-qwen3moe-w4a16" / "config.json").read_text())["quantization_config"]
    edit_config(tmp_path, lambda whole: whole.update(quantization_config=section))
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        found = qload.validate(tmp_path, registry=registry, deep=True, progress=lambda *each: seen.append(each))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ("QL504", f"{LAYER}.weight_packed") in look_up(found.findings)
    assert peak < 8 * pieces.CHUNK < at
    assert seen[-1] == (8 + len(text) + at,) * 2
    assert seen == sorted(seen)


def test_a_file_that_shrinks_is_found(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[str], Path], registry: Registry
) -> None:
    folder = broken(DEMO.name)
    real = Folder.read

    def read(self: Folder, name: str, start: int, count: int) -> bytes:
        return real(self, name, start, count)[:100_000]

    monkeypatch.setattr(Folder, "read", read)
    assert {finding.code for finding in qload.validate(folder, registry=registry, deep=True).findings} == {"QL004"}


def test_a_file_that_cannot_be_read_is_found(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[[str], Path], registry: Registry
) -> None:
    folder = broken("modelopt-nvfp4")
    real = Folder.read

    def read(self: Folder, name: str, start: int, count: int) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(5, "Input/output error")
        return real(self, name, start, count)

    monkeypatch.setattr(Folder, "read", read)
    for deep in (True, False):
        (finding,) = qload.validate(folder, registry=registry, probe=True, deep=deep).findings
        assert (finding.code, finding.file) == ("QL013", WEIGHTS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_digest(path: Path) -> str:
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes(), usedforsecurity=False).hexdigest()


def list_sums(folder: Path, value: str) -> None:
    (folder / "sha256sums.txt").write_text(f"{'0' * 64}  other\n{value.upper()} *./{WEIGHTS}\n")


def sum_alone(folder: Path, value: str) -> None:
    (folder / f"{WEIGHTS}.sha256").write_text(value)


def keep_metadata(folder: Path, value: str, later: float = 0.0) -> None:
    kept = folder / ".cache" / "huggingface" / "download" / f"{WEIGHTS}.metadata"
    kept.parent.mkdir(parents=True)
    kept.write_text(f"{'a' * 40}\n{value}\n{(folder / WEIGHTS).stat().st_mtime + later}\n")


def link_blob(folder: Path, value: str) -> None:
    blob = folder.parent.parent / "blobs" / value
    blob.parent.mkdir(exist_ok=True)
    (folder / WEIGHTS).rename(blob)
    (folder / WEIGHTS).symlink_to(os.path.relpath(blob, folder))


@pytest.mark.parametrize("tell", [list_sums, sum_alone, keep_metadata, link_blob, publish])
@pytest.mark.parametrize("hashes", [digest, git_digest])
def test_a_published_checksum_is_held(
    tell: Callable[[Path, str], None], hashes: Callable[[Path], str], tmp_path: Path, registry: Registry
) -> None:
    for name in ("sound", "damaged"):
        folder = copy_checkpoint(DEMO, tmp_path / name / "snapshots" / "abc")
        tell(folder, hashes(folder / WEIGHTS))
        if name == "sound":
            assert qload.validate(folder, registry=registry, deep=True).findings == ()
            continue
        kept = (folder / WEIGHTS).stat()
        stored = list_declared(folder, registry)[0]
        with (folder / WEIGHTS).open("r+b") as file:
            file.seek(stored.entry.start)
            file.write(bytes(byte ^ 1 for byte in (folder / WEIGHTS).read_bytes()[stored.entry.start :][:1]))
        os.utime(folder / WEIGHTS, (kept.st_atime, kept.st_mtime))
        codes = {finding.code for finding in qload.validate(folder, registry=registry, deep=True).findings}
        is_known = hashes is digest or tell in (keep_metadata, link_blob)
        assert codes == ({"QL010"} if is_known else set())


def test_the_metadata_of_a_file_that_was_changed_since_says_nothing(tmp_path: Path, registry: Registry) -> None:
    folder = copy_checkpoint(DEMO, tmp_path / "copy")
    keep_metadata(folder, "0" * 64, later=-10)
    assert qload.validate(folder, registry=registry, deep=True).findings == ()


class Elsewhere(Folder):
    """A folder whose files were published with checksums."""

    @property
    def checksums(self) -> dict[str, str]:
        return {WEIGHTS: "f" * 64}


def test_a_storage_may_know_checksums(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"")
    assert read_checksums(Elsewhere(tmp_path), [WEIGHTS])[WEIGHTS].value == "f" * 64


def every_reading(reads: list[tuple[int, int]]) -> Iterator[int]:
    yield from (count for _, count in reads)


def test_a_few_bytes_are_few(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
    reads: list[tuple[int, int]] = []
    real = Folder.read

    def read(self: Folder, name: str, start: int, count: int) -> bytes:
        reads.append((start, count))
        return real(self, name, start, count)

    path = DATA / "modelopt-nvfp4"
    examine(path, registry)
    monkeypatch.setattr(Folder, "read", read)
    examine(path, registry)
    headers = sum(every_reading(reads))
    reads.clear()
    qload.validate(path, registry=registry, probe=True)
    assert sum(every_reading(reads)) < headers + (path / WEIGHTS).stat().st_size / 4


@pytest.mark.parametrize("name", ["gptq-3bit-g128-sym", "autoround-gguf-q4_k_m", DEMO.name])
@pytest.mark.parametrize("lost", [1, 2, 3, 7, 9, 4001, 100_001])
def test_a_file_that_ends_anywhere_is_read_to_its_end(
    name: str, lost: int, broken: Callable[[str], Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also inside of a number, or of a block, and however small the pieces are."""
    (path,) = [path for path in broken(name).iterdir() if path.suffix in (".safetensors", ".gguf")]
    path.write_bytes(path.read_bytes()[:-lost])
    monkeypatch.setattr(pieces, "CHUNK", 70_001)
    found = qload.validate(path.parent, registry=registry, deep=True).findings
    assert {finding.code for finding in found} == {"QL004"}
