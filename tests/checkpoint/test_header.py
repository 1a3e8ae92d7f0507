"""Headers: real ones read as safetensors itself reads them, and bad ones are findings, never exceptions."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from samples import samples

import qload
from qload.checkpoint import Folder, read_header
from qload.checkpoint.header import MAX_HEADER_BYTES, _read_any, _read_sound

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def codes(path: Path) -> list[str]:
    return [finding.code for finding in read_header(Folder(path.parent), path.name).findings]


@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_real_files_read_as_safetensors_reads_them(path: Path) -> None:
    files = sorted(path.glob("model*.safetensors"))
    for file in files:
        header = read_header(Folder(file.parent), file.name)
        assert header.findings == ()
        with safe_open(file, framework="np") as theirs:
            assert set(theirs.keys()) == set(header.tensors)
            for name in theirs.keys():  # noqa: SIM118
                entry, stored = header.tensors[name], theirs.get_slice(name)
                assert (entry.dtype, list(entry.shape)) == (stored.get_dtype(), stored.get_shape())


def test_a_good_header(tmp_path: Path) -> None:
    path = write(tmp_path / "f", {**GOOD, "__metadata__": {"format": "pt"}}, bytes(24))
    header = read_header(Folder(path.parent), path.name)
    assert (header.findings, header.metadata) == ((), {"format": "pt"})
    entry = header.tensors["a"]
    assert (entry.shape, entry.nbytes, entry.stop) == ((2, 3), 24, path.stat().st_size)


def test_a_tensor_of_no_entries_lies_where_the_next_one_begins(tmp_path: Path) -> None:
    """In whichever order the header names the two."""
    full, empty = GOOD["a"], {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}
    for header in ({"a": full, "b": empty}, {"b": empty, "a": full}):
        assert codes(write(tmp_path / "f", header, bytes(24))) == []


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**GOOD["a"], **changes}}


@pytest.mark.parametrize(
    ("header", "data", "code", "words"),
    [
        (b"{", b"", "QL003", "not JSON"),
        (b"[" * 100_000, b"", "QL003", "not JSON"),
        (b"\xff\xfe", b"", "QL003", "not JSON"),
        ([], b"", "QL003", "not a JSON object"),
        ({**GOOD, "__metadata__": 3}, bytes(24), "QL003", "metadata"),
        ({"a": 3}, b"", "QL003", "dtype, shape and range"),
        ({"a": {"dtype": "F32"}}, b"", "QL003", "dtype, shape and range"),
        (entry(dtype="F33"), bytes(24), "QL003", "dtype, shape and range"),
        (entry(shape="ab"), bytes(24), "QL003", "impossible shape"),
        (entry(shape=[2, None]), bytes(24), "QL003", "impossible shape"),
        (entry(shape=[2, 4]), bytes(24), "QL003", "32 bytes for F32"),
        (entry(shape=[-2, -3]), bytes(24), "QL003", "impossible shape"),
        (entry(shape=[2.0, 3]), bytes(24), "QL003", "impossible shape"),
        (entry(shape=[10**4000, 0]), bytes(24), "QL003", "impossible shape"),
        (entry(shape=[2**62] * 100_000), bytes(24), "QL003", "impossible shape"),
        (entry(data_offsets=[4, 28]), bytes(28), "QL003", "hole before"),
        (entry(data_offsets=[0, 2**63]), bytes(24), "QL003", "impossible shape"),
        (entry(data_offsets=[0, 2**62]), bytes(24), "QL003", "range does not hold"),
        (entry(), bytes(20), "QL004", "truncated"),
        (entry(), bytes(30), "QL003", "bytes after"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
         bytes(1), "QL003", "one tensor twice"),
        (b'{"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
         b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', bytes(1), "QL003", "one tensor twice"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
          "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}, bytes(6), "QL003", "overlaps a"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
          "b": {"dtype": "U8", "shape": [4], "data_offsets": [6, 10]}}, bytes(10), "QL003", "hole after a"),
    ],
)  # fmt: skip
def test_a_bad_header_is_a_finding(tmp_path: Path, header: object, data: bytes, code: str, words: str) -> None:
    found = read_header(Folder(write(tmp_path / "f", header, data).parent), "f").findings
    assert [finding.code for finding in found] == [code]
    assert words in str(found[0])


def test_a_pointer_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    (finding,) = read_header(Folder(tmp_path), "f").findings
    assert (finding.code, finding.remedy) == ("QL002", "run `git lfs pull`, or download it")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, MAX_HEADER_BYTES + 1])
def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path, length: int) -> None:
    (tmp_path / "f").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert codes(tmp_path / "f") == ["QL003"]


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\x64" + bytes(7) + b"{}", b"\x14" + bytes(7) + b"{}" + b" " * 15])
def test_a_file_that_ends_in_its_header_is_truncated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    assert codes(tmp_path / "f") == ["QL004"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert codes(tmp_path / "f") == ["QL005"]
    assert codes(tmp_path) == ["QL013"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_a_header_raises(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(
        write(
            tmp_path / "g", {**GOOD, "b": {"dtype": "U8", "shape": [3], "data_offsets": [24, 27]}}, bytes(27)
        ).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "h").write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    header = read_header(Folder(tmp_path), "h")
    assert header.findings or all(entry.stop <= (tmp_path / "h").stat().st_size for entry in header.tensors.values())


ODD = [b"3", b"-1", b"1.0", b"true", b"null", b'"3"', b"[3]", b"{}", b"9223372036854775808", b"1e3", b'"F32"', b'"F9"']


@settings(max_examples=500)
@given(st.data())
def test_what_is_read_quickly_is_what_is_read_with_reasons(data: st.DataObject) -> None:
    """A sound header has one meaning, and one that is not sound is never taken for it."""
    raw = bytearray(json.dumps({**GOOD, "__metadata__": {"format": "pt"}}).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(raw) - 1))
        stop = min(len(raw), start + data.draw(st.integers(0, 4)))
        raw[start:stop] = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from(ODD)))
    quick = _read_sound(bytes(raw), "f")
    if quick is not None:
        assert quick == _read_any(bytes(raw), "f")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_an_entry_of_another_type_is_not_read_quickly(key: str, odd: bytes) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    raw = json.dumps({"a": {**entry, key: "odd"}}).encode().replace(b'"odd"', odd)
    quick = _read_sound(raw, "f")
    assert quick is None or quick == _read_any(raw, "f")


@pytest.mark.parametrize("name", ["a." * 600 + "weight", f"layers.{'9' * 5000}.weight"])
def test_a_name_that_no_module_has_is_a_finding(name: str, tmp_path: Path) -> None:
    table = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(table).to_bytes(8, "little") + table)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (found,) = [each for each in qload.validate(tmp_path).errors if each.code == "QL003"]
    assert "too long" in found.message
    assert len(found.where) < 200
