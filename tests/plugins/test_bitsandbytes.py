"""bitsandbytes: its own numbers for every variant, the documents beside weights, and inputs of int8."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_tensors
from safetensors.torch import load_file
from samples import make_quantization, relative_error
from torch import Tensor

import qload
from qload import Quantization, Registry
from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind, Part, column
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.resolution import resolve
from qload.torch import (
    ColumnParallelLinear,
    ExpertLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
)
from qload.torch.loading.checkpoints import list_entries
from qload.torch.parallel import Group

STORED = load_file(Path(__file__).parent.parent / "goldens" / "bitsandbytes.safetensors")
CASES = sorted({name.split("/")[0] for name in STORED})
FOUR_BITS = [case for case in CASES if not case.startswith("int8")]
NF4: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def golden(case: str) -> tuple[dict[str, Tensor], Tensor]:
    """The stored tensors of a module `m`, and what bitsandbytes makes of them."""
    found = {name.removeprefix(f"{case}/"): tensor for name, tensor in STORED.items() if name.startswith(f"{case}/")}
    return {name: tensor for name, tensor in found.items() if name.startswith("m.")}, found["dense"]


def read(section: dict[str, Any], tensors: dict[str, Tensor], registry: Registry) -> Quantization:
    """The quantization of a checkpoint with those tensors."""
    return resolve(Checkpoint(Path("none"), {"quantization_config": section}, list_entries(tensors)), registry)


def section_of(case: str) -> dict[str, Any]:
    return {**INT8, "llm_int8_threshold": float(case[5:])} if case.startswith("int8") else NF4


def load_linear(case: str, registry: Registry, tensors: dict[str, Tensor] | None = None) -> ReplicatedLinear:
    stored, dense = golden(case)
    stored = {**stored, **(tensors or {})}
    quantization = read(section_of(case), stored, registry)
    layer = ReplicatedLinear(dense.shape[1], dense.shape[0], Site(quantization, "m"))
    qload.load_tensors(layer, stored, quantization, kernels=())
    return layer


@pytest.mark.parametrize("case", CASES)
def test_every_variant_is_bitsandbytes_own_to_the_bit(case: str, registry: Registry) -> None:
    """The config says NF4 and no more: the rest is in the headers, and in the documents."""
    _, dense = golden(case)
    weight = qload.dequantize(load_linear(case, registry))
    assert weight.dtype == dense.dtype
    assert torch.equal(weight, dense)
    assert torch.equal(qload.dequantize(load_linear(case, registry), dtype=torch.float32), dense.float())


@pytest.mark.parametrize("case", CASES)
def test_rows_are_looked_up(case: str, registry: Registry) -> None:
    """In a table of which the vocabulary is padded, and padding is zero, also where scales are codes.

    The last byte may have half a row's end, and half of nothing.
    """
    stored, dense = golden(case)
    if dense.numel() % 2:
        stored["m.weight"][-1] |= 0x0F
    quantization = read(section_of(case), stored, registry)
    rows, columns = dense.shape
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(
        rows, columns, Site(quantization, "m", dtype=dense.dtype), multiple=rows + 3, treatment=treatment
    )
    qload.load_tensors(table, stored, quantization, kernels=())
    ids = torch.tensor([[rows - 1, 0], [1, 1]])
    assert torch.equal(table(ids), dense[ids])
    table.zeros_out_of_range = True
    assert torch.equal(table(torch.tensor([rows, rows + 2])), torch.zeros(2, columns, dtype=dense.dtype))
    assert torch.equal(qload.dequantize(table)[:rows], dense)
    assert not qload.dequantize(table)[rows:].any()


@pytest.mark.parametrize("case", FOUR_BITS)
def test_documents_give_their_memory_back(case: str, registry: Registry) -> None:
    stored, _ = golden(case)
    layer = load_linear(case, registry)
    held = sum(each.nbytes for each in layer.parameters())
    document = next(tensor.nbytes for name, tensor in stored.items() if "quant_state" in name)
    packed = sum(tensor.nbytes for tensor in stored.values()) - document
    assert packed <= held <= packed + 32
    before = qload.dequantize(layer)
    qload.load_tensors(layer, stored, read(NF4, stored, registry), kernels=())
    assert torch.equal(qload.dequantize(layer), before)


@pytest.mark.parametrize("nested", [False, True])
def test_ranks_take_some_columns_of_blocks_that_go_on_from_row_to_row(nested: bool, registry: Registry) -> None:
    stored, dense = golden("nf4-nested" if nested else "nf4")
    quantization = read(NF4, stored, registry)
    rows, columns = dense.shape
    size = 5 if nested else 2
    shards = []
    for rank in range(size):
        layer = RowParallelLinear(columns, rows, Site(quantization, "m", Group(rank, size)))
        qload.load_tensors(layer, stored, quantization, kernels=())
        shards.append(qload.dequantize(layer))
    assert torch.equal(torch.cat(shards, 1), dense)


def test_ranks_take_whole_blocks_of_blocks(registry: Registry) -> None:
    """A row of 128 columns has a 128th of what 256 blocks of 64 hold."""
    quantization = make_quantization({**NF4, "bnb_4bit_use_double_quant": True}, registry)
    with pytest.raises(ShardError, match=r"split a unit.*fit: 1, 2, 4"):
        ColumnParallelLinear(128, 512, Site(quantization, "m", Group(0, 8)))
    assert ColumnParallelLinear(128, 512, Site(quantization, "m", Group(3, 4))).local.out_features == 128
    assert (
        ColumnParallelLinear(128, 512, Site(make_quantization(NF4, registry), "m", Group(7, 8))).local.out_features
        == 64
    )


def test_rows_that_begin_inside_a_block_are_cut_by_whole_blocks_alone(registry: Registry) -> None:
    quantization = make_quantization(NF4, registry)
    for kind in (ColumnParallelLinear, RowParallelLinear):
        with pytest.raises(ShardError, match="split a unit"):
            kind(96, 6, Site(quantization, "m", Group(0, 2)))
    stored, dense = golden("nf4-flat")
    parts = []
    for rank in range(5):
        layer = ColumnParallelLinear(96, 10, Site(quantization, "m", Group(rank, 5)))
        qload.load_tensors(layer, stored, quantization, kernels=())
        parts.append(qload.dequantize(layer))
    assert torch.equal(torch.cat(parts), dense)


def test_each_fused_part_has_a_document_of_its_own(registry: Registry) -> None:
    """Of other lengths, with other offsets; the first part ends inside a byte."""
    (first, dense), (second, _) = golden("nf4-odd-nested"), golden("nf4-odd-nested")
    second = {name.replace("m.", "n.", 1): tensor for name, tensor in second.items()}
    state = "n.weight.quant_state.bitsandbytes__nf4"
    said = json.loads(bytes(second[state].tolist()))
    second[state] = encode({**said, "nested_offset": said["nested_offset"] + 1.5})
    stored = {**first, **second}
    quantization = read(NF4, stored, registry)
    layer = MergedColumnParallelLinear(33, [("m", 7), ("n", 7)], Site(quantization, "mn"))
    qload.load_tensors(layer, stored, quantization, kernels=())
    weight = qload.dequantize(layer)
    assert torch.equal(weight[:7], dense)
    moved = ReplicatedLinear(33, 7, Site(quantization, "n"))
    qload.load_tensors(moved, second, quantization, kernels=())
    assert torch.equal(weight[7:], qload.dequantize(moved))
    assert not torch.equal(weight[7:], dense)
    x = torch.randn(2, 33)
    assert torch.allclose(layer(x), x @ weight.T, atol=1e-5)


def test_experts_have_documents_of_their_own(registry: Registry) -> None:
    stored, dense = golden("nf4-nested")
    state = "m.weight.quant_state.bitsandbytes__nf4"
    said = json.loads(bytes(stored[state].tolist()))
    experts: dict[str, Tensor] = {}
    for number in range(3):
        renamed = {name.replace("m.", f"e.{number}.", 1): tensor for name, tensor in stored.items()}
        changed = encode({**said, "nested_offset": said["nested_offset"] + number})
        experts |= {**renamed, state.replace("m.", f"e.{number}.", 1): changed}
    quantization = read(NF4, experts, registry)
    sources = [Source(f"e.{number}", expert=number) for number in range(3)]
    layer = ExpertLinear(3, 160, [Part("", 60)], Site(quantization, "e"), sources=sources, sharding=column)
    qload.load_tensors(layer, experts, quantization, kernels=())
    weight = qload.dequantize(layer)
    assert torch.equal(weight[0], dense)
    table, absmax = stored["m.weight.quant_map"], said["nested_offset"]
    codes = stored["m.weight"].flatten()[0] >> 4
    nested = stored["m.weight.nested_quant_map"][stored["m.weight.absmax"].int()[0]]
    scale = nested * stored["m.weight.nested_absmax"][0] + torch.tensor(absmax + 2)
    assert weight[2, 0, 0] == (table[codes.int()] * scale).to(torch.bfloat16)


def encode(said: object) -> Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def say(**changes: Any) -> Callable[[dict[str, Any]], Tensor]:
    return lambda said: encode({**said, **changes})


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (say(shape=[160, 60]), "BNB002", r"shape.*\(60, 160\).*\(160, 60\)"),
        (say(blocksize=64), "BNB002", "blocksize.*expected 32, found 64"),
        (say(quant_type="fp4"), "BNB002", "quant_type.*expected nf4, found fp4"),
        (say(nested_blocksize=128), "BNB002", "nested_blocksize.*expected 256, found 128"),
        (say(nested_dtype="float16"), "BNB002", "nested_dtype.*expected float32, found float16"),
        (say(nested_offset=None), "BNB002", "nested_offset.*a finite number, found None"),
        (say(nested_offset=float("nan")), "BNB00[12]", "nested_offset"),
        (say(dtype="int8"), "BNB001", "dtype"),
        (say(shape=None), "BNB001", "shape"),
        (lambda said: encode([said]), "BNB001", "cannot be read"),
        (lambda said: encode(said)[:-3], "BNB001", "cannot be read"),
        (lambda said: torch.tensor([255, 254], dtype=torch.uint8), "BNB001", "cannot be read"),
    ],
)
def test_documents_that_contradict_the_layer(
    change: Callable[[dict[str, Any]], Tensor], code: str, text: str, registry: Registry
) -> None:
    stored, _ = golden("nf4-nested")
    state = "m.weight.quant_state.bitsandbytes__nf4"
    said = json.loads(bytes(stored[state].tolist()))
    with pytest.raises(CheckpointError, match=text) as caught:
        load_linear("nf4-nested", registry, {state: change(said)})
    (finding,) = caught.value.findings
    assert finding.code in {code, *(["BNB001", "BNB002"] if "[" in code else [])}
    assert finding.where == state


def test_a_document_without_an_offset_where_none_is_needed(registry: Registry) -> None:
    """Blocks of which there is one are the same, whatever their size is said to be."""
    state = "m.weight.quant_state.bitsandbytes__nf4"
    stored, dense = golden("nf4-one-block")
    said = json.loads(bytes(stored[state].tolist()))
    assert said["blocksize"] == 4096
    assert torch.equal(qload.dequantize(load_linear("nf4-one-block", registry)), dense)
    with pytest.raises(CheckpointError, match="nested_offset"):
        load_linear("nf4-one-block", registry, {state: encode({**said, "nested_offset": 1.0})})
    with pytest.raises(CheckpointError, match="blocksize"):
        load_linear("nf4-one-block", registry, {state: encode({**said, "blocksize": 64})})


def test_documents_of_all_layers_are_read_before_one_is_complained_of(
    broken: Callable[[str], Path], registry: Registry
) -> None:
    folder = broken("bnb-nf4-dq")
    names = [f"model.layers.{n}.mlp.up_proj.weight.quant_state.bitsandbytes__nf4" for n in range(2)]

    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in names:
            said = json.loads(bytes(tensors[name].tolist()))
            tensors[name] = encode({**said, "shape": [1, 2]})

    edit_tensors(folder, spoil)
    assert qload.validate(folder).ok
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder, registry=registry)
    assert [(each.code, each.where) for each in caught.value.findings] == [("BNB002", name) for name in names]


@pytest.mark.parametrize(
    ("leaf", "change", "code"),
    [
        ("weight.absmax", lambda tensor: tensor[:-1], "QL301"),
        ("weight.absmax", lambda tensor: tensor.to(torch.int32), "QL304"),
        ("weight.nested_absmax", lambda tensor: tensor[:-1], "QL301"),
        ("weight.nested_absmax", lambda tensor: None, "QL201"),
        ("weight.nested_quant_map", lambda tensor: tensor[:-1], "QL307"),
        ("weight.quant_map", lambda tensor: None, "QL201"),
        ("weight.quant_state.bitsandbytes__nf4", lambda tensor: None, "QL201"),
        ("weight.quant_state.bitsandbytes__nf4", lambda tensor: tensor.repeat(4), "QL307"),
        ("weight", lambda tensor: tensor[:-64], "QL301"),
        ("weight", lambda tensor: tensor.to(torch.int16), "QL308"),
    ],
)
def test_what_headers_show_is_found_without_loading(
    broken: Callable[[str], Path], leaf: str, change: Callable[[Tensor], Tensor | None], code: str
) -> None:
    folder, name = broken("bnb-nf4-dq"), f"model.layers.0.mlp.down_proj.{leaf}"

    def spoil(tensors: dict[str, Tensor]) -> None:
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed

    edit_tensors(folder, spoil)
    assert code in {finding.code for finding in qload.validate(folder).errors}
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert code in {finding.code for finding in caught.value.findings} | ({"QL301"} if leaf == "weight" else set())


def test_a_table_that_is_no_numbers(registry: Registry) -> None:
    nan = torch.full((256,), float("nan"))
    with pytest.raises(CheckpointError, match=r"QL501.*the lookup table is not a finite number"):
        load_linear("nf4-nested", registry, {"m.weight.nested_quant_map": nan})


@pytest.mark.parametrize("number", [1, 2, 3])
def test_int8_weights_in_the_layouts_of_kernels_are_refused(number: int, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"BNB003.*expected row, found col(32|_turing|_ampere)"):
        load_linear("int8-6", registry, {"m.weight_format": torch.tensor(number, dtype=torch.uint8)})


def test_int8_weights_of_a_layout_that_nobody_knows(registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL505"):
        load_linear("int8-6", registry, {"m.weight_format": torch.tensor(4, dtype=torch.uint8)})


def test_int8_weights_that_name_no_layout(registry: Registry) -> None:
    stored, dense = golden("int8-6")
    quantization = make_quantization(INT8, registry)
    layer = ReplicatedLinear(dense.shape[1], dense.shape[0], Site(quantization, "m"))
    del stored["m.weight_format"]
    qload.load_tensors(layer, stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), dense)
    assert "weight_format" not in dict(load_linear("int8-6", registry).named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["int8-0", "int8-6"])
def test_inputs_are_quantized_but_for_outliers(case: str, dtype: torch.dtype, registry: Registry) -> None:
    """As bitsandbytes' own forward, whose constant for a product of two scales is off in its fifth place."""
    (stored, dense), name = golden(case), str(dtype).removeprefix("torch.")
    quantization = read(section_of(case), stored, registry)
    layer = ReplicatedLinear(80, 24, Site(quantization, "m", dtype=dtype), bias=True)
    qload.load_tensors(layer, stored, quantization, kernels=())
    x, y = STORED[f"{case}/x.{name}"], STORED[f"{case}/y.{name}"]
    found = layer(x)
    assert found.dtype == dtype
    assert relative_error(found, y) < max(3e-5, torch.finfo(dtype).eps / 2)
    layer.quantize_activations = False
    plain = x @ dense.to(dtype).T + layer.get_parameter("bias")
    assert relative_error(layer(x), plain) < max(1e-6, torch.finfo(dtype).eps)
    assert relative_error(y, plain) > 3e-3


def test_a_feature_that_is_an_outlier_is_kept_in_every_token(registry: Registry) -> None:
    """Also where it is small, and where the threshold is just reached; a token of zeros stays zero."""
    layer, (_, dense) = load_linear("int8-6", registry), golden("int8-6")
    x = torch.zeros(3, 80)
    x[0, 3], x[1, 3], x[1, 5] = 6.0, 0.001, 1.0
    y = layer(x)
    assert torch.allclose(y[0], 6 * dense[:, 3], rtol=1e-5)
    assert torch.allclose(y[1], 0.001 * dense[:, 3] + dense[:, 5], rtol=1e-4, atol=1e-6)
    assert not y[2].any()


@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_configs_of_the_first_versions_name_no_method(flag: str, registry: Registry) -> None:
    assert make_quantization({flag: True}, registry).method.name == "bitsandbytes"


@pytest.mark.parametrize(
    "more",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": False},
        {"bnb_4bit_quant_type": "af4"},
        {"bnb_4bit_quant_storage": "int4"},
        {"llm_int8_threshold": -1.0},
        {"llm_int8_skip_modules": ["mlp.("]},
    ],
)
def test_configs_that_make_no_sense(more: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({**NF4, **more}, registry)


@pytest.mark.parametrize(
    ("section", "stored", "text"),
    [
        (NF4, {"weight", "SCB"}, "the module is stored in int8"),
        (INT8, {"weight", "weight.absmax"}, "the module is stored in 4 bits"),
        (NF4, {"weight", "weight.absmax", "weight.quant_state.bitsandbytes__af4"}, "the quant type 'af4'"),
    ],
)
def test_modules_that_are_stored_otherwise_are_refused(
    section: dict[str, Any], stored: set[str], text: str, registry: Registry
) -> None:
    with pytest.raises(ValueError, match=text):
        make_quantization(section, registry).treat(ModuleInfo(("m",), stored=frozenset(stored)))


@pytest.mark.parametrize(
    ("entries", "name", "excluded"),
    [
        (["lm_head"], "lm_head", True),
        (["fc1"], "model.decoder.layers.3.fc1", True),
        (["fc1"], "model.decoder.layers.3.xfc1", True),
        (["model.layers.1"], "model.layers.1.mlp.up_proj", True),
        (["model.layers.1"], "model.layers.11.mlp.up_proj", False),
        (["layers.1"], "model.layers.1.mlp.up_proj", False),
        (["model.layers.1."], "model.layers.1.mlp.up_proj", True),
        ([r"model\.layers\.\d+\.mlp"], "model.layers.7.mlp.up_proj", True),
        (["model.layers.*.mlp"], "model.layers.7.mlp.up_proj", True),
        (["mlp.gate"], "model.layers.0.mlp.gate", True),
        (["model.layers.0.mlp.gate"], "model.layers.0.mlp.gate_proj", False),
        ([], "lm_head", False),
        (None, "model.layers.0.mlp.up_proj", False),
    ],
)
def test_what_is_left_alone(entries: list[str] | None, name: str, excluded: bool, registry: Registry) -> None:
    treatment = make_quantization({**NF4, "llm_int8_skip_modules": entries}, registry).treat(ModuleInfo((name,)))
    assert (treatment.scheme is None) == excluded


def test_a_head_is_quantized_where_the_config_lists_what_is_not(registry: Registry) -> None:
    head = ModuleInfo(("lm_head",), Kind.LM_HEAD)
    assert make_quantization(NF4, registry).treat(head).scheme is None
    assert make_quantization({**NF4, "llm_int8_skip_modules": ["gate"]}, registry).treat(head).scheme is not None


def test_weights_that_are_kept_in_16_bits_are_not_quantized(registry: Registry) -> None:
    quantization = make_quantization({**INT8, "llm_int8_has_fp16_weight": True}, registry)
    assert quantization.treat(ModuleInfo(("m",))).scheme is None


@pytest.mark.parametrize(
    ("case", "label"),
    [
        ("nf4", "nf4 block 64"),
        ("nf4-nested", "nf4 block 32 nested 256"),
        ("fp4-nested", "fp4 block 128 nested 256"),
        ("fp4-float32", "fp4 block 64 as F32"),
        ("nf4-one-block", "nf4 block 512"),
        ("int8-6", "int8 channel, inputs dynamic up to 6"),
        ("int8-0", "int8 channel, inputs dynamic"),
    ],
)
def test_the_scheme_says_how_it_is_stored(case: str, label: str, registry: Registry) -> None:
    stored, _ = golden(case)
    assert str(read(section_of(case), stored, registry).treat(ModuleInfo(("m",))).scheme) == label
