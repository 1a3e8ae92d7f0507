"""compressed-tensors: weights of which the zeros are left out, held against what version 0.13 of the package wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_config, edit_tensors
from qload_compressed_tensors.config import CompressedTensorsConfig
from safetensors.torch import load_file
from samples import make_quantization
from torch import Tensor

import qload
from qload import Quantization, Registry
from qload.errors import CheckpointError, ShardError
from qload.geometry import Part
from qload.hookspecs import ModuleInfo
from qload.torch import (
    ColumnParallelLinear,
    Layer,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
    make_experts,
)
from qload.torch.layers.linear import Linear
from qload.torch.parallel import Group

GOLDENS = load_file(Path(__file__).parents[1] / "goldens" / "compressed_tensors.safetensors")
CASES = sorted({name.rpartition(".")[0] for name in GOLDENS})
SPARSE = [case for case in CASES if not case.startswith("marlin")]
MARLIN = [case for case in CASES if case.startswith("marlin")]


def golden(case: str) -> tuple[dict[str, Tensor], Tensor]:
    stored = {name.rpartition(".")[2]: tensor for name, tensor in GOLDENS.items() if name.rpartition(".")[0] == case}
    return stored, stored.pop("dense")


def below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def sparse_quantization(case: str, registry: Registry, **more: Any) -> Quantization:
    form, _, dtype = case.partition(".")
    section: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "sparsity_config": {"format": form, "targets": ["Linear", "Embedding"], "ignore": ["lm_head"]},
    }
    if dtype in ("fp8", "int8"):
        weights = {"num_bits": 8, "type": "float" if dtype == "fp8" else "int", "strategy": "channel"}
        section["config_groups"] = {"g": {"targets": ["Linear", "Embedding"], "weights": weights}}
        section["format"] = "float-quantized" if dtype == "fp8" else "int-quantized"
    return make_quantization({**section, **more}, registry)


def scaled(stored: dict[str, Tensor], dense: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Quantized values with scales for each row, and what they mean; others as they are."""
    if dense.element_size() > 1:
        return stored, dense
    scale = (torch.arange(len(dense))[:, None] + 1).to(torch.bfloat16) / 64
    return {**stored, "weight_scale": scale}, dense.to(torch.bfloat16) * scale


def load(layer: Layer, tensors: dict[str, Tensor], quantization: Quantization) -> Layer:
    qload.load_tensors(layer, tensors, quantization, kernels=())
    return layer


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_weights_are_what_the_package_makes_of_them(case: str, registry: Registry) -> None:
    stored, dense = scaled(*golden(case))
    rows, columns = dense.shape
    site = Site(sparse_quantization(case, registry), "m", dtype=dense.dtype)
    layer = load(ReplicatedLinear(columns, rows, site), below("m", stored), site.quantization)
    assert torch.equal(layer.dequantize(), dense)
    x = torch.eye(columns, dtype=dense.dtype)
    assert torch.equal(layer(x), dense.T)
    for multiple in (1, 64):
        table = VocabParallelEmbedding(rows, columns, site, multiple=multiple)
        load(table, below("m", stored), site.quantization)
        ids = torch.tensor([[rows - 1, 0], [3, 3]])
        assert torch.equal(table(ids), dense[ids])
        assert torch.equal(table.dequantize()[:rows], dense)
        assert not table.dequantize()[rows:].any()


@pytest.mark.parametrize("case", SPARSE)
def test_they_stay_compressed(case: str, registry: Registry) -> None:
    stored, dense = scaled(*golden(case))
    rows, columns = dense.shape
    site = Site(sparse_quantization(case, registry), "m", dtype=dense.dtype)
    layer = load(ReplicatedLinear(columns, rows, site), below("m", stored), site.quantization)
    layer(torch.zeros(1, columns, dtype=dense.dtype))
    held = sum(tensor.nbytes for tensor in layer.parameters())
    kept = {name: tensor for name, tensor in stored.items() if name not in ("shape", "row_offsets")}
    assert held == sum(tensor.nbytes for tensor in kept.values())


def test_two_of_four_are_cut_by_whole_bytes_of_the_mask(registry: Registry) -> None:
    torch.manual_seed(0)
    halves = torch.tensor([0b0011, 0b1010, 0b1001], dtype=torch.uint8)
    low, high = (halves[torch.randint(3, (8, 4))] for _ in range(2))
    bits = low | high << 4
    stored = {"compressed": torch.randn(8, 16), "bitmask": bits, "shape": torch.tensor([[8], [32]])}
    quantization = sparse_quantization("sparse-24-bitmask.f32", registry)
    tensors = below("m", stored)
    whole = load(ReplicatedLinear(32, 8, Site(quantization, "m")), tensors, quantization).dequantize()
    assert int((whole != 0).sum()) == 128
    for kind, dim in ((ColumnParallelLinear, 0), (RowParallelLinear, 1)):
        parts = [load(kind(32, 8, Site(quantization, "m", Group(rank, 4))), tensors, quantization) for rank in range(4)]
        assert torch.equal(torch.cat([part.dequantize() for part in parts], dim), whole)
    with pytest.raises(ShardError, match="multiples of 8"):
        RowParallelLinear(32, 8, Site(quantization, "m", Group(0, 8)))


@pytest.mark.parametrize("kind", [ColumnParallelLinear, RowParallelLinear])
def test_values_without_a_place_of_their_own_are_not_cut(kind: Any, registry: Registry) -> None:
    quantization = sparse_quantization("sparse-bitmask.f32", registry)
    with pytest.raises(ShardError, match="split a unit of the axis") as caught:
        kind(32, 8, Site(quantization, "m", Group(0, 2)))
    assert caught.value.sizes == (1,)


def random_sparse(rows: int, columns: int, kept: float) -> tuple[dict[str, Tensor], Tensor]:
    """As the package stores it, bit by bit."""
    dense = torch.randn(rows, columns) * (torch.rand(rows, columns) < kept)
    bits = torch.zeros(rows, -(-columns // 8), dtype=torch.uint8)
    for row, column in (dense != 0).nonzero().tolist():
        bits[row, column // 8] |= 1 << column % 8
    counts = (dense != 0).sum(-1)
    stored = {
        "compressed": dense[dense != 0],
        "bitmask": bits,
        "row_offsets": counts.cumsum(0) - counts,
        "shape": torch.tensor([rows, columns]),
    }
    return stored, dense


def test_parts_and_experts_have_as_many_values_as_they_have(registry: Registry) -> None:
    """Of different lengths, in one tensor that is as long as the longest."""
    torch.manual_seed(0)
    quantization = sparse_quantization("sparse-bitmask.f32", registry)
    made = {name: random_sparse(8, 20, kept) for name, kept in (("q", 0.3), ("k", 0.6), ("v", 0.0))}
    tensors = {key: value for name, (stored, _) in made.items() for key, value in below(name, stored).items()}
    layer = Linear(20, [Part(name, 8) for name in made], Site(quantization, "qkv"))
    load(layer, tensors, quantization)
    longest = max(len(stored["compressed"]) for stored, _ in made.values())
    assert list(layer.get_parameter("compressed").shape) == [3, longest]
    assert torch.equal(layer.dequantize(), torch.cat([dense for _, dense in made.values()]))

    names = [f"e.{expert}.{name}" for expert in range(2) for name in ("gate_proj", "up_proj", "down_proj")]
    sizes = {name: (20, 12) if name.endswith("down_proj") else (12, 20) for name in names}
    experts = {name: random_sparse(*sizes[name], 0.1 + 0.1 * number) for number, name in enumerate(names)}
    stack = make_experts(2, 20, 12, Site(quantization, "e"), gate=lambda x: x[..., :12] * x[..., 12:])
    tensors = {key: value for name, (stored, _) in experts.items() for key, value in below(name, stored).items()}
    qload.load_tensors(stack, tensors, quantization, kernels=())
    up = stack.gate_up_proj.dequantize()
    for expert in range(2):
        wanted = [experts[f"e.{expert}.{name}"][1] for name in ("gate_proj", "up_proj")]
        assert torch.equal(up[expert], torch.cat(wanted))
        assert torch.equal(stack.down_proj.dequantize()[expert], experts[f"e.{expert}.down_proj"][1])


@pytest.mark.parametrize(
    ("case", "name", "change"),
    [
        ("sparse-24-bitmask.f32", "bitmask", lambda each: each ^ 1),
        ("sparse-bitmask.f32", "bitmask", lambda each: each | 1),
        ("sparse-bitmask.f32", "bitmask", lambda each: each & 254),
        ("sparse-bitmask.f32", "compressed", lambda each: each[:-1].clone()),
        ("marlin-24.4-None-64x96", "meta", lambda each: each | 15),
    ],
)
def test_a_mask_that_does_not_keep_what_is_stored_is_a_fault(
    case: str, name: str, change: Callable[[Tensor], Tensor], registry: Registry
) -> None:
    stored, dense = golden(case)
    quantization = (sparse_quantization if case in SPARSE else marlin_quantization)(case, registry)
    layer = ReplicatedLinear(dense.shape[1], dense.shape[0], Site(quantization, "m"))
    with pytest.raises(CheckpointError, match="CT501 m: the mask does not keep the values that are stored"):
        qload.load_tensors(layer, below("m", {**stored, name: change(stored[name])}), quantization, kernels=())


def test_columns_that_are_not_whole_fours_are_a_fault(registry: Registry) -> None:
    """The fours of one row would go on in the next."""
    stored = {"compressed": torch.ones(2, 3), "bitmask": torch.full((2, 1), 0b10101, dtype=torch.uint8)}
    quantization = sparse_quantization("sparse-24-bitmask.f32", registry)
    layer = ReplicatedLinear(6, 2, Site(quantization, "m"))
    with pytest.raises(CheckpointError, match="expected two of every four columns"):
        qload.load_tensors(layer, below("m", stored), quantization, kernels=())


def treat(sparsity: dict[str, Any], module: ModuleInfo, registry: Registry, **more: Any) -> Any:
    section = {"quant_method": "compressed-tensors", "sparsity_config": sparsity, **more}
    return make_quantization(section, registry).treat(module).scheme


def test_targets_and_ignored_modules_are_as_in_the_package(registry: Registry) -> None:
    written = {"format": "sparse-bitmask", "targets": ["re:.*proj$", "Embedding"], "ignore": ["lm_head", "re:.*k_proj"]}
    assert str(treat(written, ModuleInfo(("a.q_proj",)), registry)) == "sparse-bitmask"
    assert treat(written, ModuleInfo(("a.k_proj",)), registry) is None
    assert treat(written, ModuleInfo(("a.gate",)), registry) is None
    assert treat(written, ModuleInfo(("table",), classes=("Embedding",)), registry) is not None
    assert treat({**written, "format": "dense"}, ModuleInfo(("a.q_proj",)), registry) is None


def test_without_targets_the_stored_tensors_tell(registry: Registry) -> None:
    stored = frozenset({"compressed", "bitmask", "shape"})
    assert treat({"format": "sparse-24-bitmask"}, ModuleInfo(("a",), stored=stored), registry) is not None
    plain = frozenset({"weight"})
    assert treat({"format": "sparse-24-bitmask"}, ModuleInfo(("a",), stored=plain), registry) is None


def test_only_what_is_stored_as_a_weight_is_sparse(registry: Registry) -> None:
    """The package leaves zeros out of `weight`, which packed formats do not have."""
    sparsity = {"format": "sparse-24-bitmask", "targets": ["Linear"]}
    for form, bits, expected in (("pack-quantized", 4, None), ("int-quantized", 8, "sparse-24-bitmask")):
        groups = {"g": {"targets": ["Linear"], "weights": {"num_bits": bits, "strategy": "channel"}}}
        scheme = treat(sparsity, ModuleInfo(("a",)), registry, config_groups=groups, format=form)
        assert scheme.sparsity == expected
    ignored = treat(sparsity, ModuleInfo(("a",)), registry, config_groups=groups, format=form, ignore=["a"])
    assert str(ignored) == "sparse-24-bitmask"


def test_unknown_ways_of_leaving_zeros_out_are_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match="sparsity format 'galaxy' is not one of sparse-24-bitmask, sparse-bitmask"):
        treat({"format": "galaxy", "targets": ["Linear"]}, ModuleInfo(("a",)), registry)
    with pytest.raises(ValueError, match="is not a regular expression"):
        CompressedTensorsConfig.model_validate({"sparsity_config": {"format": "sparse-bitmask", "ignore": ["re:("]}})


def marlin_quantization(case: str, registry: Registry) -> Quantization:
    bits, group, _ = case.partition(".")[2].split("-")
    extent: dict[str, Any] = (
        {"strategy": "channel"} if group == "None" else {"strategy": "group", "group_size": int(group)}
    )
    groups = {"g": {"targets": ["Linear", "Embedding"], "weights": {"num_bits": int(bits), **extent}}}
    section = {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": groups}
    return make_quantization(section, registry)


@pytest.mark.parametrize("case", MARLIN)
def test_marlin_is_put_back_into_the_order_of_rows(case: str, registry: Registry) -> None:
    """Bit for bit the values that the compressor was given, rounded."""
    stored, dense = golden(case)
    rows, columns = dense.shape
    quantization = marlin_quantization(case, registry)
    site = Site(quantization, "m", dtype=torch.float16)
    layer = load(ReplicatedLinear(columns, rows, site), below("m", stored), quantization)
    assert layer.dequantize().dtype == dense.dtype
    assert torch.equal(layer.dequantize(), dense)
    assert torch.equal(layer(torch.eye(columns, dtype=torch.float16)), dense.T)
    assert sum(tensor.nbytes for tensor in layer.parameters()) == sum(tensor.nbytes for tensor in stored.values())
    layer.hooks.process(layer)
    assert torch.equal(load(layer, below("m", stored), quantization).dequantize(), dense)
    table = VocabParallelEmbedding(rows, columns, site, multiple=1)
    load(table, below("m", stored), quantization)
    assert torch.equal(table(torch.tensor([rows - 1, 0, 17])), dense[[rows - 1, 0, 17]])


@pytest.mark.parametrize("case", ["marlin-24.4-128-64x384", "marlin-24.8-None-128x32"])
def test_marlin_is_cut_by_whole_tiles(case: str, registry: Registry) -> None:
    """Also where a rank has so few columns that their scales alone would tell of another order."""
    stored, dense = golden(case)
    rows, columns = dense.shape
    quantization = marlin_quantization(case, registry)
    for kind, size, dim in (
        (ColumnParallelLinear, rows // 64, 0),
        (RowParallelLinear, columns // (128 if rows < columns else 32), 1),
    ):
        layers = [kind(columns, rows, Site(quantization, "m", Group(rank, size))) for rank in range(size)]
        parts = [load(layer, below("m", stored), quantization).dequantize() for layer in layers]
        assert torch.equal(torch.cat(parts, dim), dense)
    with pytest.raises(ShardError, match="multiples of 64"):
        ColumnParallelLinear(columns, rows, Site(quantization, "m", Group(0, rows // 32)))


def test_marlin_is_fused_by_parts(registry: Registry) -> None:
    case = "marlin-24.4-128-64x256"
    stored, dense = golden(case)
    quantization = marlin_quantization(case, registry)
    layer = Linear(256, [Part("q", 64), Part("k", 64)], Site(quantization, "qk"))
    load(layer, {**below("q", stored), **below("k", stored)}, quantization)
    assert torch.equal(layer.dequantize(), torch.cat([dense, dense]))


@pytest.mark.parametrize(
    "weights",
    [
        {"num_bits": 4, "strategy": "group", "group_size": 64},
        {"num_bits": 4, "strategy": "tensor"},
        {"num_bits": 3, "strategy": "channel"},
        {"num_bits": 4, "strategy": "channel", "symmetric": False},
        {"num_bits": 8, "strategy": "channel", "type": "float"},
        {"num_bits": 4, "strategy": "group", "group_size": 128, "actorder": "group"},
    ],
)
def test_marlin_holds_what_its_compressor_takes(weights: dict[str, Any], registry: Registry) -> None:
    groups = {"g": {"targets": ["Linear"], "weights": weights}}
    section = {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": groups}
    with pytest.raises(ValueError, match="cannot be stored as marlin-24"):
        make_quantization(section, registry).treat(ModuleInfo(("a",)))


def test_a_sparse_checkpoint_is_validated_by_its_headers(broken: Callable[[str], Path]) -> None:
    folder = broken("ct-sparse-bitmask-bf16")
    assert qload.validate(folder).ok

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.compressed"] = torch.zeros(4, 4, dtype=torch.bfloat16)
        tensors["model.layers.1.mlp.up_proj.bitmask"] = torch.zeros(512, 31, dtype=torch.uint8)
        del tensors["model.layers.0.self_attn.k_proj.bitmask"]
        del tensors["model.layers.0.self_attn.q_proj.shape"]

    edit_tensors(folder, change)
    assert not qload.validate(folder).ok
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    found = {finding.where: finding.code for finding in caught.value.findings}
    assert found == {
        "model.layers.0.mlp.up_proj.compressed": "QL307",
        "model.layers.1.mlp.up_proj.bitmask": "QL307",
        "model.layers.0.self_attn.k_proj.bitmask": "QL201",
    }
    edit_config(folder, lambda config: config["quantization_config"]["sparsity_config"].update(ignore=["re:.*k_proj"]))
    assert "QL202" in {finding.code for finding in qload.validate(folder).findings}
