"""AutoRound's checkpoints: packed as GPTQ or AWQ, under a method name and a config of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_config
from samples import DATA

import qload
from qload import Registry
from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError
from qload.hookspecs import ModuleInfo
from qload.quantization import Quantization, resolve

GPTQ, AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
SECTION: dict[str, Any] = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}


def quantization_of(registry: Registry, **section: Any) -> Quantization:
    return resolve(Checkpoint(Path("none"), {"quantization_config": {**SECTION, **section}}, {}), registry)


@pytest.mark.parametrize(("packing", "method"), [(GPTQ, "gptq"), (AWQ, "awq")])
def test_the_packing_decides(packing: str, method: str, registry: Registry) -> None:
    quantization = quantization_of(registry, packing_format=packing, group_size=32)
    assert quantization.treat(ModuleInfo(("model.layers.0.mlp.up_proj",))).label == f"{method} int4 group 32"


@pytest.mark.parametrize("packing", ["auto_round:auto_marlin", "auto_round", None, 3])
def test_a_packing_that_nobody_knows(packing: object, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL104"):
        quantization_of(registry, packing_format=packing)


def test_modules_with_settings_of_their_own(registry: Registry) -> None:
    extra = {"a.q_proj": {"bits": 8, "group_size": 32, "sym": True}, "a.k_proj": {"bits": 16, "data_type": "fp"}}
    quantization = quantization_of(registry, packing_format=GPTQ, extra_config=extra)
    names = ("a.q_proj", "a.k_proj", "a.v_proj", "aXq_proj", "a.q_proj_too")
    found = [quantization.treat(ModuleInfo((name,))).label for name in names]
    assert found == ["gptq int8 group 32", "unquantized", *["gptq int4 group 128"] * 3]


def test_awqs_packing_has_but_one_setting(registry: Registry) -> None:
    plain = quantization_of(registry, packing_format=AWQ, extra_config={"lm_head": {"bits": 16}})
    assert plain.treat(ModuleInfo(("lm_head",))).scheme is None
    with pytest.raises(CheckpointError, match=r"QL105 .*extra_config.* settings of its own for a"):
        quantization_of(registry, packing_format=AWQ, extra_config={"a": {"bits": 8}})


def test_what_auto_gptq_packs_reads_the_same_under_autorounds_name(broken: Callable[[str], Path]) -> None:
    """The demo of one tool, renamed: the tensors are those of the first version of GPTQ, without an order."""
    name = "gptq-4bit-g128-asym"
    folder = broken(name)
    section = {**SECTION, "sym": False, "packing_format": GPTQ}
    edit_config(folder, lambda config: config.update(quantization_config=section))
    (folder / "quantize_config.json").unlink(missing_ok=True)
    model, expected = qload.load(folder), qload.load(DATA / name)
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        found, other = (each.model.layers[1].get_submodule(layer) for each in (model, expected))
        assert torch.equal(qload.dequantize(found), qload.dequantize(other))
