"""What numbers of ranks split, held to brute force over elements, to plans, and to real ranks."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from breaking import Case, config, drop
from edits import edit_config, edit_tensors
from jobs.transformers_models import compute
from samples import DATA, DEMO, flaws, is_sound, is_swept, samples
from torch import Tensor
from worlds import World

import qload
from qload import Registry
from qload.errors import ParallelError
from qload.examination import examine
from qload.findings import Finding
from qload.geometry import Geometry, Kind, column, row
from qload.hookspecs import Tile
from qload.layout import Axis, Dim
from qload.preview.modules import Modules
from qload.preview.natural import NaturalDivider
from qload.preview.survey import Survey, survey
from qload.roles import read_heads

SIZES = (1, 2, 3, 4, 6, 8)
SPLITS = ("QL401", "QL402", "QL403")
SOUND = [pytest.param(path, id=path.name) for path in samples() if is_sound(path) and is_swept(path)]
DOWN, GATE, HEADS = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.self_attn.q_proj"


def narrow(module: str, **lengths: tuple[int, int]) -> Callable[[Path], None]:
    """Cut each of a module's tensors along an axis to a length: a smaller module, as sound as before."""

    def change(stored: dict[str, Tensor]) -> None:
        for leaf, (axis, length) in lengths.items():
            stored[f"{module}.{leaf}"] = stored[f"{module}.{leaf}"].narrow(axis, 0, length).clone()

    return lambda folder: edit_tensors(folder, change)


def store_blocks(module: str, rows: int, columns: int) -> Callable[[Path], None]:
    """Turn a plain checkpoint into one of which a module is in fp8, by blocks of 128 x 128."""

    def change(stored: dict[str, Tensor]) -> None:
        stored[f"{module}.weight"] = torch.zeros(rows, columns).to(torch.float8_e4m3fn)
        stored[f"{module}.weight_scale_inv"] = torch.ones(-(-rows // 128), -(-columns // 128))

    def write(folder: Path) -> None:
        edit_tensors(folder, change)
        edit_config(folder, lambda whole: whole.update(quantization_config=FP8))

    return write


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
FUSED = "model.layers.0.mlp.gate_up_proj"
AT_2 = {"tp": (1, 2)}


def order_activations(folder: Path) -> None:
    """In the config, and in the file beside it that says the same."""
    config(lambda whole: whole["quantization_config"].update(desc_act=True))(folder)
    beside = folder / "quantize_config.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "desc_act": True}))


CASES: tuple[Case, ...] = (
    Case(
        "QL401",
        "autoawq-gemm-g128",
        narrow(DOWN, qweight=(0, 384), qzeros=(0, 3), scales=(0, 3)),
        f"{DOWN}.scales",
        AT_2,
    ),
    Case(
        "QL401",
        "gptq-4bit-g128-asym",
        narrow(DOWN, qweight=(0, 48), qzeros=(0, 3), scales=(0, 3), g_idx=(0, 384)),
        f"{DOWN}.scales",
        AT_2,
    ),
    Case(
        "QL401",
        DEMO.name,
        narrow(DOWN, weight_packed=(1, 48), weight_scale=(1, 3), weight_zero_point=(1, 3)),
        f"{DOWN}.weight_scale",
        AT_2,
    ),
    Case("QL401", "base", narrow(DOWN, weight=(1, 511)), DOWN, AT_2),
    Case(
        "QL402",
        "autoawq-gemm-g128",
        narrow(GATE, qweight=(1, 63), qzeros=(1, 63), scales=(1, 504)),
        f"{GATE}.q",
        AT_2,
    ),
    Case("QL402", "gptq-4bit-g128-asym", narrow(GATE, qweight=(1, 504), qzeros=(1, 63), scales=(1, 504)), GATE, AT_2),
    Case("QL402", DEMO.name, config(lambda whole: whole.update(num_attention_heads=1)), HEADS, AT_2),
    Case("QL403", "base", store_blocks(DOWN, 256, 384), f"{DOWN}.weight_scale_inv", AT_2),
    Case("QL403", "base", store_blocks(GATE, 384, 256), f"{GATE}.weight_scale_inv", AT_2),
    Case("QL403", "base", store_blocks(FUSED, 2 * 384, 256), f"{FUSED}.weight_scale_inv", AT_2),
    Case(
        "QL404",
        "gptq-4bit-g128-asym",
        order_activations,
        f"{DOWN}.g_idx",
        AT_2,
    ),
    Case(
        "QL405",
        DEMO.name,
        narrow(GATE, weight_packed=(0, 192), weight_scale=(0, 192), weight_zero_point=(0, 24)),
        GATE,
        AT_2,
    ),
)


def codes_of(findings: Iterable[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def splits_of(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.code in SPLITS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.checkpoint}-{case.where}")
def test_what_two_ranks_would_split_is_found_with_its_tensor(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    assert codes_of(qload.validate(folder, **case.options).findings) <= flaws(DATA / case.checkpoint)
    case.breaks(folder)
    assert [each for each in qload.validate(folder).findings if each.code.startswith("QL4")] == []
    found = [each for each in qload.validate(folder, **case.options).findings if each.code == case.code]
    assert any(each.where.startswith(case.where) for each in found)
    assert all(each.message.startswith("at 2 ranks ") and each.file == "model.safetensors" for each in found)


EVERYWHERE = (
    ("autoawq-gemm-g128", "QL401", "self_attn.o_proj.scales", "at 4 and 8 ranks a row-parallel share splits a group"),
    ("gptqmodel-gguf-q4_k", "QL401", "mlp.down_proj.qweight", "at 4 and 8 ranks a row-parallel share splits"),
    ("autoround-gguf-q4_k_m", "QL401", "mlp.down_proj.weight.q4_k", "at 4 and 8 ranks a row-parallel share splits"),
    ("bnb-nf4-dq", "QL401", "self_attn.o_proj.weight.absmax", "at 8 ranks a row-parallel share splits a group of 64"),
    ("hqq-3bit-g64", "QL402", "mlp.gate_proj.", "at 2, 4 and 8 ranks a column-parallel share splits what is"),
    ("quanto-qint4", "QL402", "mlp.up_proj.weight._", "at 2, 4 and 8 ranks a column-parallel share splits what is"),
    ("hf-bitnet-packed", "QL402", "mlp.up_proj.weight", "at 2, 4 and 8 ranks a column-parallel share splits"),
    ("ct-fp8-block", "QL403", "self_attn.k_proj.weight_scale", "at 2, 4 and 8 ranks a column-parallel share splits"),
    ("ct-qwen3moe-w4a16", "QL401", "mlp.experts.0.down_proj.weight_scale", "at 2, 4 and 8 ranks a row-parallel share"),
    ("ct-qwen3moe-w4a16", "QL405", "mlp.experts.0.gate_proj", "at 4 and 8 ranks a share is no whole tiles of Marlin"),
    ("ct-w4a16-g128-sym-actorder-group", "QL404", "mlp.down_proj.weight_g_idx", "at 2, 4 and 8 ranks a row-parallel"),
    ("modelopt-nvfp4", "QL402", "self_attn.q_proj", "at 8 ranks a column-parallel share splits a head of 64"),
    ("torchao-int8dyn-int8w", "QL402", "self_attn.q_proj", "at 8 ranks a column-parallel share splits a head of 64"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "code", "tensor", "message"), EVERYWHERE, ids=lambda value: str(value)[:24])
def test_faults_of_several_sizes_are_one_finding(name: str, code: str, tensor: str, message: str) -> None:
    found = qload.validate(DATA / name, tp=(1, 2, 4, 8)).findings
    told = [each for each in found if each.code == code and each.where.startswith(f"model.layers.0.{tensor}")]
    assert len({each.where for each in told}) == len(told)
    assert any(each.message.startswith(message) for each in told), told


def test_a_finding_says_what_fits_and_what_a_load_does() -> None:
    found = {each.where: each for each in qload.validate(DATA / "ct-fp8-block", tp=(2, 4)).findings}
    keys = found["model.layers.1.self_attn.k_proj.weight_scale"]
    assert (keys.expected, keys.found) == ("multiples of 128", "64 at 2 and 4 ranks")
    assert keys.remedy == (
        "1 rank fits; at 2 ranks qload divides it by rows; engines that divide it by columns refuse; "
        "qload divides it over 1 or 2 ranks"
    )
    (whole,) = {
        each.remedy for each in qload.validate(DATA / "hqq-3bit-g64", tp=(2,)).findings if "o_proj" in each.where
    }
    assert whole == "1 rank fits; at 2 ranks qload keeps it whole on each rank; engines that divide it by rows refuse"


def read_survey(path: Path, registry: Registry) -> tuple[Survey, NaturalDivider]:
    surveyed = survey(examine(path, registry))
    assert surveyed is not None
    return surveyed, NaturalDivider(surveyed.quantization, read_heads(surveyed.checkpoint.config))


@pytest.mark.parametrize("path", SOUND)
def test_a_module_is_reported_where_an_element_of_a_unit_would_be_another_ranks(path: Path, registry: Registry) -> None:
    surveyed, divider = read_survey(path, registry)
    for size in SIZES:
        found = splits_of(qload.validate(path, registry=registry, tp=(size,)).findings)
        named = {each.where for each in found}
        for modules in surveyed.modules:
            wrong = size > 1 and is_split(modules, divider, size)
            for name in modules.names:
                places = {name, *(f"{name}.{spec.stored_as}" for spec in divider.declare(modules))}
                assert places.isdisjoint(named) != wrong, (name, size)


def is_split(modules: Modules, divider: NaturalDivider, size: int) -> bool:
    """Which rank has each element, one by one, and whether all of a stored unit have the same."""
    way, geometry = divider.find_way(modules), modules.target.geometry
    if way not in (column, row):
        return False
    dim, length = (Dim.IN, geometry.in_features) if way is row else (Dim.OUT, geometry.out_features)
    owners = share_out(geometry, length, size) if way is column else deal(length, size)
    axes = [
        axis for spec in divider.declare(modules) for axis in spec.layout.axes if axis.dim is dim and not axis.whole
    ]
    return owners is None or any(straddles(axis, owners) for axis in axes)


def share_out(geometry: Geometry, length: int, size: int) -> Any:
    """Of heads that some ranks have in common, the first rank of those."""
    heads = geometry.parts[0].heads
    if heads is None or heads % size == 0:
        return deal(length, size)
    return deal(length, heads) if geometry.parts[0].replicable and size % heads == 0 else None


def deal(length: int, size: int) -> Any:
    return None if length % size else np.arange(length) // (length // size)


def straddles(axis: Axis, owners: Any) -> bool:
    units = np.zeros(len(owners), int) if axis.solid else np.arange(len(owners)) // axis.logical
    firsts = owners[np.searchsorted(units, units)]
    return bool((firsts != owners).any())


@pytest.mark.parametrize("path", SOUND)
def test_what_planning_says_does_not_fit_is_an_error(path: Path, registry: Registry) -> None:
    for plan in qload.plan_ranks(path, SIZES, registry=registry).sizes:
        found = splits_of(qload.validate(path, registry=registry, tp=(plan.size,)).findings)
        assert plan.fits or found, plan.size
        assert plan.size > 1 or not found


@pytest.mark.parametrize(
    ("name", "size"), [("autoawq-gemm-g128", 2), ("ct-w4a16-g128-sym-actorder-group", 4), ("bnb-nf4-dq", 2)]
)
def test_what_validating_passes_real_ranks_load(name: str, size: int, worlds: Callable[[int], World]) -> None:
    path = DATA / name
    assert splits_of(qload.validate(path, tp=(size,)).findings) == []
    ranks = worlds(size).run(compute, path, torch.arange(5, 21)[None])
    assert len(ranks) == size


@pytest.mark.parametrize("path", SOUND)
def test_one_rank_splits_nothing(path: Path, registry: Registry) -> None:
    assert codes_of(qload.validate(path, registry=registry, tp=(1,)).findings) <= flaws(path)


@pytest.mark.parametrize("sizes", [(0,), (2, -1), (1025,), (True,), ("2",), (2.0,)])
def test_what_is_no_number_of_ranks_is_refused(sizes: Any) -> None:
    with pytest.raises(ParallelError, match="a whole number from 1 to 1024"):
        qload.validate(DEMO, tp=sizes)


def test_a_size_that_is_asked_for_twice_is_told_of_once() -> None:
    assert qload.validate(DEMO, tp=(8, 8, 8)) == qload.validate(DEMO, tp=(8,))


def test_nothing_is_divided_of_a_broken_checkpoint(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop(f"{DOWN}.weight_scale")(folder)
    assert {each.code for each in qload.validate(folder, tp=(8,)).findings} == {"QL201"}


@pytest.mark.parametrize("path", SOUND)
def test_every_method_says_tiles_or_nothing(path: Path, registry: Registry) -> None:
    surveyed, _ = read_survey(path, registry)
    for modules in surveyed.modules:
        treatment = modules.target.treatment
        hook = treatment.method.declaration.get("qload_tile")
        if hook is None or treatment.scheme is None:
            continue
        for kind in (Kind.LINEAR, Kind.EXPERTS):
            tile = hook(treatment.scheme, kind)
            assert tile is None or (isinstance(tile, Tile) and tile.kernel)
            assert tile is None or 0 < tile.rows <= 128 >= tile.columns > 0
