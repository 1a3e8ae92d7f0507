"""GGUF files as files: headers of every fault, splits, folders, and the commands."""

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from ggml import GOLDENS, keep, matrices, rewrite
from qload_gguf.cursor import MAX_HEADER_BYTES
from qload_gguf.header import read_header
from samples import DATA

import qload
from qload import Registry
from qload.checkpoint import Folder
from qload.cli import cli
from qload.errors import QloadError

LLAMA = GOLDENS / "llama.gguf"
MODEL = DATA / "autoround-gguf-q4_k_m" / "model.gguf"

Edit = Callable[[bytearray], object]


def put(place: int, form: str, value: float) -> Edit:
    return lambda raw: struct.pack_into(form, raw, place, value)


def put_after(key: str, offset: int, form: str, value: float) -> Edit:
    """Write at so many bytes behind a key or a tensor's name."""
    return lambda raw: struct.pack_into(form, raw, raw.index(key.encode()) + len(key) + offset, value)


def rename(old: str, new: str) -> Edit:
    def edit(raw: bytearray) -> None:
        at = raw.index(old.encode())
        raw[at : at + len(old)] = new.encode()

    return edit


def cut(size: int) -> Edit:
    def edit(raw: bytearray) -> None:
        del raw[size:]

    return edit


FAULTS: dict[str, tuple[Edit, str, str]] = {
    "magic": (put(0, "<I", 0), "QL003", "begin"),
    "big-endian": (put(4, ">I", 3), "QL003", "big-endian"),
    "version 1": (put(4, "<I", 1), "QL003", "version"),
    "version 9": (put(4, "<I", 9), "QL003", "version"),
    "tensors": (put(8, "<Q", 2**60), "QL003", "impossible number of tensors"),
    "pairs": (put(16, "<Q", 2**63), "QL003", "impossible number of pairs"),
    "key": (put(24, "<Q", 2**40), "QL003", "impossible string"),
    "key not UTF-8": (put(32, "<B", 0xFF), "QL003", "UTF-8"),
    "kind": (put_after("llama.block_count", 0, "<I", 77), "QL003", "kind"),
    "string": (put_after("general.architecture", 4, "<Q", 2**50), "QL003", "impossible string"),
    "twice": (rename("llama.context_length", "llama.block_count\0\0\0"), "QL105", "lacks"),
    "dimensions": (put_after("blk.0.attn_q.weight", 0, "<I", 5), "QL003", "dimensions"),
    "shape": (put_after("blk.0.attn_q.weight", 4, "<Q", 2**62), "QL003", "shape"),
    "type": (put_after("blk.0.attn_q.weight", 20, "<I", 31), "QL308", "type 31"),
    "blocks": (put_after("blk.0.attn_q.weight", 20, "<I", 12), "QL003", "whole blocks of Q4_K"),
    "unaligned": (put_after("blk.0.attn_q.weight", 24, "<Q", 33), "QL003", "not aligned"),
    "beyond": (put_after("blk.0.attn_q.weight", 24, "<Q", 2**40), "QL004", "truncated"),
    "type of fewer bytes": (put_after("blk.0.attn_q.weight", 20, "<I", 19), "QL003", "hole"),
    "overlap": (put_after("blk.0.attn_q.weight", 24, "<Q", 0), "QL003", "overlaps"),
    "tensor twice": (rename("blk.0.attn_q.weight", "blk.0.attn_k.weight"), "QL003", "twice"),
    "truncated": (cut(20_000), "QL004", "truncated"),
    "in the header": (cut(600), "QL004", "ends inside"),
    "nothing": (cut(0), "QL004", "ends inside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_header_is_a_finding(fault: str, tmp_path: Path) -> None:
    edit, code, text = FAULTS[fault]
    raw = bytearray(LLAMA.read_bytes())
    edit(raw)
    (tmp_path / "m.gguf").write_bytes(raw)
    findings = qload.validate(tmp_path / "m.gguf").findings
    assert any(finding.code == code and text in str(finding) for finding in findings), list(map(str, findings))
    with pytest.raises(QloadError):
        qload.load(tmp_path / "m.gguf")


@pytest.mark.parametrize("value", [0, 24, 2**31])
def test_an_impossible_alignment(value: int, tmp_path: Path) -> None:
    rewrite(LLAMA, tmp_path / "m.gguf", keep, changes={"general.alignment": 64})
    raw = bytearray((tmp_path / "m.gguf").read_bytes())
    put_after("general.alignment", 4, "<I", value)(raw)
    (tmp_path / "m.gguf").write_bytes(raw)
    (finding,) = qload.validate(tmp_path / "m.gguf").findings
    assert (finding.code, finding.where) == ("QL003", "general.alignment")


def test_a_file_that_claims_a_header_without_end(tmp_path: Path) -> None:
    """A sparse file: the claim fits it, and is still more than is read."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**33)
    with (tmp_path / "m.gguf").open("wb") as file:
        file.write(head)
        file.truncate(2**34)
    (finding,) = read_header(Folder(tmp_path), "m.gguf").findings
    assert finding.code == "QL003"
    assert MAX_HEADER_BYTES < 2**33


def test_no_header_ends_in_a_traceback(tmp_path: Path, registry: Registry) -> None:
    """Numbers of every size in random places, and files cut short: refused, or read."""
    source, chance = LLAMA.read_bytes(), random.Random(0)
    end = read_header(Folder(LLAMA.parent), LLAMA.name).tensors[0].start
    for _ in range(300):
        raw = bytearray(source)
        for _ in range(chance.choice([1, 1, 2, 5])):
            value = chance.choice([0, 1, 2, 8, 9, 2**31, 2**40, 2**63, chance.randrange(2**64)])
            struct.pack_into("<Q", raw, chance.randrange(end), value)
        if chance.random() < 0.1:
            del raw[chance.randrange(len(raw)) :]
        (tmp_path / "m.gguf").write_bytes(raw)
        for finding in qload.validate(tmp_path / "m.gguf", registry=registry).findings:
            assert "\n" not in str(finding)


def test_a_large_header_is_read_through_windows(tmp_path: Path) -> None:
    """A vocabulary longer than a window, whose strings lie across its ends."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    tokens = [f"{number:x}" * (number % 13 + 1) for number in range(90_000)]
    writer.add_token_list([*tokens, "x" * (9 << 20)])
    writer.add_token_scores([0.5] * 90_000)
    writer.add_block_count(7)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(Folder(tmp_path), "m.gguf")
    assert header.findings == ()
    assert header.metadata["llama.block_count"] == 7
    assert [tensor.name for tensor in header.tensors] == ["token_embd.weight"]
    assert header.tensors[0].stop == (tmp_path / "m.gguf").stat().st_size


def test_version_2_is_read(tmp_path: Path) -> None:
    raw = bytearray(LLAMA.read_bytes())
    put(4, "<I", 2)(raw)
    (tmp_path / "m.gguf").write_bytes(raw)
    assert qload.validate(tmp_path / "m.gguf").findings == ()


def test_a_file_split_into_several(tmp_path: Path) -> None:
    rewrite(LLAMA, tmp_path / "m.gguf", matrices(gguf.GGMLQuantizationType.Q8_0), split=6)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert len(parts) > 2
    whole = qload.validate(tmp_path)
    assert whole.findings == ()
    assert whole.tensors == len(read_header(Folder(LLAMA.parent), LLAMA.name).tensors)
    model = qload.load(tmp_path / parts[1])
    assert qload.report(model).tensors == whole.tensors
    (tmp_path / parts[-1]).unlink()
    (finding,) = qload.validate(tmp_path).findings
    assert (finding.code, finding.file) == ("QL005", parts[-1])


def test_a_part_of_another_split(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-{number:05d}-of-00002.gguf").write_bytes(LLAMA.read_bytes())
    codes = {finding.code for finding in qload.validate(tmp_path).findings}
    assert codes == {"QL008"}


def test_a_folder_of_several_models_is_ambiguous(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-a.gguf"):
        (tmp_path / name).write_bytes(LLAMA.read_bytes())
    (finding,) = qload.validate(tmp_path).findings
    assert "a-Q4_0.gguf, a-Q8_0.gguf" in str(finding)
    (tmp_path / "a-Q8_0.gguf").unlink()
    assert qload.validate(tmp_path).ok


def test_a_folder_with_safetensors_is_left_alone(broken: Callable[[str], Path]) -> None:
    path = broken("gptq-4bit-g128-asym")
    (path / "model.gguf").write_bytes(b"")
    assert qload.validate(path).method == "gptq"


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "rwkv7")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (finding,) = qload.validate(tmp_path / "m.gguf").findings
    assert finding.code == "QL104"
    assert "rwkv7" in str(finding)


def test_validating_needs_no_torch() -> None:
    seen = "'torch' in sys.modules, 'gguf' in sys.modules"
    code = f"import sys, qload; assert qload.validate({str(MODEL)!r}).ok; print({seen})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_commands_take_a_file() -> None:
    runner = CliRunner()
    validated = runner.invoke(cli, ["validate", str(MODEL)])
    assert validated.exit_code == 0
    assert "nothing is wrong (gguf; 21 tensors" in validated.output
    run = runner.invoke(cli, ["run", str(MODEL), "--prompt", "The memory of", "--max-new-tokens", "4"])
    assert run.exit_code == 0, run.output
    assert "The memory of the" in run.output


def test_a_file_without_a_vocabulary_has_no_tokenizer() -> None:
    run = CliRunner().invoke(cli, ["run", str(LLAMA), "--prompt", "x"])
    assert run.exit_code == 2
    assert "tokenizer" in run.output
