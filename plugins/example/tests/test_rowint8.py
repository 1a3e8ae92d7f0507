"""What the author of a method runs: the laws that the core relies on, and the method's own rule."""

from pathlib import Path

from rowint8 import RowInt8Scheme

import qload
from qload.checkpoint import Checkpoint, TensorEntry
from qload.quantization import Quantization
from qload.resolution import resolve
from qload.testing import check_method


def quantization() -> Quantization:
    config = {"quantization_config": {"quant_method": "rowint8"}}
    return resolve(Checkpoint(Path("none"), config, {}), qload.Registry.discover())


def test_the_contract_holds() -> None:
    check_method(quantization())


def test_a_module_that_is_scattered_over_files_is_found() -> None:
    values = TensorEntry("up.values", "I8", (4, 8), "one.safetensors", 0, 32)
    beside = TensorEntry("up.row_scale", "F32", (4,), "one.safetensors", 32, 48)
    elsewhere = TensorEntry("up.row_scale", "F32", (4,), "two.safetensors", 32, 48)
    method = quantization().method
    assert method.check(RowInt8Scheme(), {"values": values, "row_scale": beside}) == ()
    (finding,) = method.check(RowInt8Scheme(), {"values": values, "row_scale": elsewhere})
    assert (finding.code, finding.where, finding.found) == ("ROWINT001", "up.values", "two.safetensors")
