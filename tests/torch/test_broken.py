"""A broken checkpoint does not load: one error with all findings, before memory is taken where that can be."""

import json
import os
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import WEIGHTS, edit_config, edit_tensors, split_files, write_index
from safetensors.torch import load_file
from samples import DATA, DEMO
from strangers import origin
from torch import Tensor

import qload
from qload.errors import CheckpointError, QloadError
from qload.registry import Runtime
from qload.torch.loading import filling

Break = Callable[[Path], None]
LAYER = "model.layers.0.mlp.down_proj"


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Break:
    return lambda folder: edit_tensors(folder, change)


def config(change: Callable[[dict[str, Any]], Any]) -> Break:
    return lambda folder: edit_config(folder, change)


def section(change: Callable[[dict[str, Any]], Any]) -> Break:
    return config(lambda whole: change(whole["quantization_config"]))


def drop(name: str) -> Break:
    return tensors(lambda stored: stored.pop(name))


def put(name: str, change: Callable[[Tensor], Tensor]) -> Break:
    return tensors(lambda stored: stored.update({name: change(stored[name])}))


def rename(old: str, new: str) -> Break:
    return tensors(lambda stored: stored.update({new: stored.pop(old)}))


def drop_layer(stored: dict[str, Tensor]) -> None:
    for name in [name for name in stored if name.startswith("model.layers.1.")]:
        del stored[name]


def truncate(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: len(raw) - 1000])


def point(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def lose_file(folder: Path) -> None:
    placed = split_files(folder)
    (folder / placed[f"{LAYER}.weight_scale"]).unlink()


def misplace(folder: Path) -> None:
    placed = split_files(folder)
    write_index(folder, {**placed, "model.extra.weight": placed[f"{LAYER}.weight_scale"]})


def ignore_one(whole: dict[str, Any]) -> None:
    whole["ignore"].append(LAYER)


def group(change: Callable[[dict[str, Any]], Any]) -> Break:
    return section(lambda whole: change(whole["config_groups"]["group_0"]))


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_three(stored: dict[str, Tensor]) -> None:
    del stored[f"{LAYER}.weight_scale"]
    stored["model.norm.weight"] = half(stored["model.norm.weight"])
    stored["surplus"] = torch.zeros(2)


def infinite(tensor: Tensor) -> Tensor:
    return tensor.index_fill(1, torch.tensor([1]), float("inf"))


def half(tensor: Tensor) -> Tensor:
    return tensor[: len(tensor) // 2].clone()


# what breaks it, the codes that say so, and words that the error must have
IN_HEADERS: dict[str, tuple[Break, set[str], str]] = {
    "a scale that is missing": (drop(f"{LAYER}.weight_scale"), {"QL201"}, f"{LAYER}.weight_scale"),
    "packed weights that are missing": (drop(f"{LAYER}.weight_packed"), {"QL201"}, f"{LAYER}.weight_packed"),
    "zero-points that are missing": (drop(f"{LAYER}.weight_zero_point"), {"QL201"}, "the zero-point is not stored"),
    "a layer that is missing": (tensors(drop_layer), {"QL201"}, "layers.1.self_attn.q_proj.weight_packed"),
    "a norm that is missing": (drop("model.norm.weight"), {"QL201"}, "model.norm.weight"),
    "an embedding that is missing": (drop("model.embed_tokens.weight"), {"QL201"}, "embed_tokens"),
    "a renamed scale": (
        rename(f"{LAYER}.weight_scale", f"{LAYER}.weight_scales"), {"QL201", "QL210"}, "weight_scales",
    ),
    "an unexpected tensor": (tensors(lambda s: s.update(surplus=torch.zeros(2))), {"QL210"}, "surplus"),
    "a scale of the wrong width": (
        put(f"{LAYER}.weight_scale", lambda t: t[:, :2].clone()), {"QL301"}, "[256, 4], found [256, 2]",
    ),
    "packed weights of the wrong shape": (put(f"{LAYER}.weight_packed", half), {"QL302"}, "[256, 64]"),
    "packed weights transposed": (
        put(f"{LAYER}.weight_packed", lambda t: t.T.contiguous()), {"QL302"}, "found [64, 256]",
    ),
    "zero-points of the wrong shape": (put(f"{LAYER}.weight_zero_point", half), {"QL305"}, "[32, 4]"),
    "a norm of the wrong shape": (put("model.norm.weight", half), {"QL307"}, "model.norm.weight"),
    "a scale of the wrong dtype": (
        put(f"{LAYER}.weight_scale", lambda t: t.to(torch.uint8)), {"QL304"}, "F32 or BF16 or F16, found U8",
    ),
    "packed weights of the wrong dtype": (
        put(f"{LAYER}.weight_packed", lambda t: t.to(torch.int64)), {"QL308"}, "expected I32, found I64",
    ),
    "a norm of the wrong dtype": (put("model.norm.weight", lambda t: t.to(torch.int32)), {"QL308"}, "I32"),
    "an index that names a file that is not there": (lose_file, {"QL005"}, "model-0000"),
    "an index that places a tensor wrongly": (misplace, {"QL006"}, "model.extra.weight"),
    "a truncated file": (truncate, {"QL004"}, "truncated"),
    "a git-LFS pointer": (point, {"QL002"}, "git lfs pull"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), {"QL011"}, "model.safetensors"),
    "an ignored module that is stored packed": (section(ignore_one), {"QL202"}, LAYER),
    "no quantization config": (config(lambda c: c.pop("quantization_config")), {"QL101"}, "no quantization"),
    "an unknown method": (section(lambda q: q.update(quant_method="wish")), {"QL104"}, "'wish'"),
    "an unknown format": (
        group(lambda g: g.update(format="wish")), {"QL104"}, "format 'wish'",
    ),
    "bits that are not stored": (
        group(lambda g: g["weights"].update(num_bits=8)), {"QL302", "QL305"}, "[256, 128]",
    ),
    "a group size that is not stored": (
        group(lambda g: g["weights"].update(group_size=64)), {"QL301", "QL305"}, "[256, 8]",
    ),
    "a config that breaks the schema": (
        group(lambda g: g["weights"].update(num_bits="four")), {"QL105"}, "num_bits",
    ),
    "a config that is not JSON": (spoil_config, {"QL105"}, "JSON"),
    "several at once": (
        tensors(break_three), {"QL201", "QL307", "QL210"}, "3 faults",
    ),
}  # fmt: skip

NEEDS_THE_MODEL = {
    "a layer that is missing",
    "a norm that is missing",
    "a norm of the wrong shape",
    "a norm of the wrong dtype",
    "an embedding that is missing",
    "an unexpected tensor",
}
"""Those that only the model's own shapes show: the validator has nothing but headers."""


@pytest.mark.parametrize("case", IN_HEADERS)
def test_what_headers_show_stops_the_load_before_it_takes_memory(
    case: str, broken: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_by, codes, words = IN_HEADERS[case]
    folder = broken(DEMO.name)
    broken_by(folder)
    monkeypatch.setattr(filling, "Arena", forbid)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert {finding.code for finding in caught.value.findings} == codes
    assert words in "; ".join([caught.value.count, *map(str, caught.value.findings)])
    assert "\n" not in str(caught.value)


def forbid(*arguments: object) -> None:
    raise AssertionError(f"memory was taken: {arguments}")


@pytest.mark.parametrize("case", sorted(IN_HEADERS.keys() - NEEDS_THE_MODEL))
def test_the_validator_finds_it_too(case: str, broken: Callable[[str], Path]) -> None:
    broken_by, codes, _ = IN_HEADERS[case]
    folder = broken(DEMO.name)
    broken_by(folder)
    report = qload.validate(folder)
    assert not report.ok
    # Without the model's sizes, wrong bits are as likely as wrong scales.
    seen = {"several at once": {"QL201"}, "bits that are not stored": {"QL301", "QL305"}}.get(case, codes)
    assert {finding.code for finding in report.errors} == seen


# In tensors' values, found when they are read.
IN_DATA: dict[str, tuple[str, Break, str, str]] = {
    "NaN in a scale": (
        DEMO.name, put(f"{LAYER}.weight_scale", lambda t: t * float("nan")), "QL501", f"{LAYER}.weight_scale",
    ),
    "one infinite scale": (
        DEMO.name, put(f"{LAYER}.weight_scale", infinite), "QL501", f"{LAYER}.weight_scale",
    ),
    "NaN in an input's scale": (
        "ct-fp8-static", put(f"{LAYER}.input_scale", lambda t: t * float("nan")), "QL501", "input_scale",
    ),
    "an index past the groups": (
        "gptq-4bit-g32-sym-descact", put(f"{LAYER}.g_idx", lambda t: t + 1), "QL505", "0 to 15, found 1 to 16",
    ),
    "an index below zero": (
        "gptq-4bit-g32-sym-descact", put(f"{LAYER}.g_idx", lambda t: t - 1), "QL505", "found -1 to 14",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_DATA)
def test_what_the_data_shows_is_found_when_it_is_read(case: str, broken: Callable[[str], Path]) -> None:
    name, broken_by, code, words = IN_DATA[case]
    folder = broken(name)
    broken_by(folder)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert [finding.code for finding in caught.value.findings] == [code]
    assert words in str(caught.value)


def test_every_bad_scale_is_in_the_one_error(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    names = [f"model.layers.{n}.mlp.{p}.weight_scale" for n in (0, 1) for p in ("up_proj", "down_proj")]
    edit_tensors(folder, lambda stored: stored.update({name: stored[name] * float("nan") for name in names}))
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert sorted(finding.where for finding in caught.value.findings) == sorted(names)


@pytest.mark.parametrize(
    ("name", "scale"),
    [("gptq-qwen3moe-4bit-g128", "scales"), ("ct-qwen3moe-w4a16", "weight_scale")],
)
def test_the_bad_scale_of_one_expert_is_named(name: str, scale: str, broken: Callable[[str], Path]) -> None:
    folder = broken(name)
    where = f"model.layers.1.mlp.experts.2.up_proj.{scale}"
    put(where, lambda tensor: tensor * float("nan"))(folder)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert [finding.where for finding in caught.value.findings] == [where]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 0),
        ("hidden_size", "wide"),
        ("rope_parameters", 3),
        ("num_hidden_layers", -1),
        ("hidden_act", "nope"),
        ("architectures", [3]),
        ("architectures", 3),
        ("dtype", 3),
        ("dtype", {"": "float16"}),
        ("rms_norm_eps", None),
        ("layer_types", ["nope"]),
    ],
)
def test_a_config_that_transformers_cannot_use(broken: Callable[[str], Path], key: str, value: object) -> None:
    """Whatever its code makes of that, it is one error of ours: of the model, or of what the checkpoint lacks."""
    folder = broken(DEMO.name)
    edit_config(folder, lambda whole: whole.update({key: value}))
    with pytest.raises(QloadError) as caught:
        qload.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.complex128, "int3"])
def test_a_dtype_that_nothing_computes_in(dtype: torch.dtype | str) -> None:
    with pytest.raises(QloadError, match="no checkpoint stores that dtype"):
        qload.load(DEMO, dtype=dtype)


def test_an_unexpected_tensor_can_be_waived_and_a_missing_one_cannot(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    edit_tensors(folder, lambda stored: stored.update(surplus=torch.zeros(2)))
    assert [f.where for f in qload.report(qload.load(folder, ignore=["QL210"])).findings] == ["surplus"]
    drop("model.norm.weight")(folder)
    with pytest.raises(CheckpointError, match="QL201"):
        qload.load(folder, ignore=["QL210", "QL201"])


def test_a_bias_that_the_model_has_not_is_a_warning(broken: Callable[[str], Path]) -> None:
    folder = broken("gptq-4bit-g128-asym")
    edit_tensors(folder, lambda stored: stored.update({f"{LAYER}.bias": torch.zeros(256, dtype=torch.float16)}))
    assert [f.code for f in qload.report(qload.load(folder)).findings] == ["QL208"]


def test_experts_that_are_missing(broken: Callable[[str], Path]) -> None:
    folder = broken("gptq-qwen3moe-4bit-g128")
    gone = "model.layers.0.mlp.experts.2.up_proj.scales"
    drop(gone)(folder)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    assert [(finding.code, finding.where) for finding in caught.value.findings] == [("QL201", gone)]


def test_a_whole_expert_that_is_missing(broken: Callable[[str], Path]) -> None:
    folder = broken("ct-qwen3moe-w4a16")

    def change(stored: dict[str, Tensor]) -> None:
        for name in [name for name in stored if ".layers.0.mlp.experts.3." in name]:
            del stored[name]

    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match="an expert is not stored") as caught:
        qload.load(folder)
    assert [(finding.code, finding.where) for finding in caught.value.findings] == [
        ("QL205", f"model.layers.0.mlp.experts.3.{name}") for name in ("gate_proj", "up_proj", "down_proj")
    ]


def test_an_expert_too_many(broken: Callable[[str], Path]) -> None:
    """The config says four experts, and the router has rows for as many: nothing would ever read the fifth."""
    folder = broken("ct-qwen3moe-w4a16")

    def change(stored: dict[str, Tensor]) -> None:
        for name in [name for name in stored if ".layers.0.mlp.experts.3." in name]:
            stored[name.replace("experts.3", "experts.4")] = stored[name].clone()

    edit_tensors(folder, change)
    with pytest.raises(CheckpointError, match="the model has no such expert") as caught:
        qload.load(folder, ignore=["QL210"])
    assert [(finding.code, finding.where) for finding in caught.value.findings] == [
        ("QL205", f"model.layers.0.mlp.experts.4.{name}") for name in ("gate_proj", "up_proj", "down_proj")
    ]


def test_experts_of_different_schemes_are_refused(broken: Callable[[str], Path]) -> None:
    folder = broken("gptq-qwen3moe-4bit-g128")
    override = {r"+:.*\.0\.mlp\.experts\.2\.": {"bits": 8}}
    edit_config(folder, lambda whole: whole["quantization_config"].update(dynamic=override))
    with pytest.raises(CheckpointError, match="quantized differently"):
        qload.load(folder)


def test_a_quantized_embedding_that_the_method_cannot_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = qload.Registry.discover()
    method = registry.method("compressed-tensors")
    hooks = {name: hook for name, hook in method.runtime.items() if name != "qload_embedding"}
    monkeypatch.setattr(method, "_runtime", Runtime(method, hooks))
    with pytest.raises(CheckpointError, match="has no qload_embedding hook"):
        qload.load(DATA / "ct-w4a16-lmhead-embed", registry=registry)


def test_pickled_weights_are_refused_unless_asked_for(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    pickle(folder)
    with pytest.raises(CheckpointError, match="unpickling can run code"):
        qload.load(folder)
    model = qload.load(folder, allow_pickle=True)
    assert [(each.code, each.severity) for each in qload.report(model).findings] == [("QL001", "warning")]
    expected = qload.load(DEMO).model.layers[0].mlp.down_proj
    assert torch.equal(model.model.layers[0].mlp.down_proj.dequantize(), expected.dequantize())


def pickle(folder: Path, **more: object) -> None:
    torch.save({**load_file(folder / WEIGHTS), **more}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def test_what_a_trainer_leaves_beside_is_no_weight(broken: Callable[[str], Path]) -> None:
    """And weights in torch's first format, which cannot be mapped, are read all the same."""
    folder = broken(DEMO.name)
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    torch.save({"lr": torch.ones(2)}, folder / "training_args.bin")
    torch.save({"model.norm.weight": torch.ones(2)}, folder / "optimizer.pt")
    model = qload.load(folder, allow_pickle=True)
    assert torch.equal(model.model.norm.weight, weights["model.norm.weight"])


def test_what_a_pickle_holds_besides_weights_is_left_out(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    more: dict[Any, Any] = {3: torch.ones(2), "sparse": torch.eye(3).to_sparse(), "epoch": 7}
    torch.save({**load_file(folder / WEIGHTS), **more}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    found = qload.report(qload.load(folder, allow_pickle=True)).findings
    assert [finding.code for finding in found] == ["QL001"]


def test_several_pickled_files_are_read_as_one(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for number in range(2):
        part = {name: weights[name] for name in sorted(weights)[number::2]}
        torch.save(part, folder / f"pytorch_model-0000{number + 1}-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.bin, pytorch_model-00002"):
        qload.load(folder)
    model = qload.load(folder, allow_pickle=True)
    assert qload.report(model).tensors == len(weights)


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2)])
def test_a_pickle_without_names_holds_no_weights(broken: Callable[[str], Path], content: object) -> None:
    folder = broken(DEMO.name)
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(QloadError, match=r"pytorch_model\.bin: the pickled file holds no weights"):
        qload.load(folder, allow_pickle=True)


def test_no_file_stays_open(broken: Callable[[str], Path]) -> None:
    """After a load, and after one that fails on the way."""
    folder = broken(DEMO.name)
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    qload.load(folder)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    size = qload.validate(folder).nbytes // 2

    def cut(done: qload.Progress) -> None:
        if done.done > 1000:
            os.truncate(folder / WEIGHTS, size)

    with pytest.raises(QloadError, match="the file ends before the tensor does"):
        qload.load(folder, progress=cut)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


class Trap:
    """Unpickling this runs code, if anybody lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickled_code_is_never_run(broken: Callable[[str], Path], tmp_path: Path) -> None:
    folder = broken(DEMO.name)
    pickle(folder, trap=Trap(tmp_path / "ran"))
    with pytest.raises(QloadError, match="cannot be read safely"):
        qload.load(folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_the_time_of_reading_headers_is_counted() -> None:
    opener = types.SimpleNamespace(qload_open_checkpoint=lambda: time.sleep(0.02))
    installed = qload.Registry.discover()
    methods = [each for name in installed.names for each in installed.origins(name)]
    registry = qload.Registry(methods, plugins=[origin("slow", opener)])
    assert qload.report(qload.load(DEMO, registry=registry)).seconds["headers"] >= 0.02


def test_nothing_changes_the_users_files(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop("model.norm.weight")(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError):
        qload.load(folder)
    qload.validate(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_generation_config_that_is_none(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(QloadError, match=r"generation_config\.json"):
        qload.load(folder)


def test_findings_can_be_read_by_a_program(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop(f"{LAYER}.weight_scale")(folder)
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    (finding,) = caught.value.findings
    assert json.dumps([finding.code, str(finding)])
    assert caught.value.where == str(folder)
