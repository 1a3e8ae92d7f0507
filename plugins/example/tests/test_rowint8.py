"""What the author of a method runs: the laws that the core relies on."""

from pathlib import Path

import qload
from qload.checkpoint import Checkpoint
from qload.quantization import resolve
from qload.testing import check_method


def test_the_contract_holds() -> None:
    config = {"quantization_config": {"quant_method": "rowint8"}}
    quantization = resolve(Checkpoint(Path("none"), config, {}), qload.Registry.discover())
    check_method(quantization)
