"""Validating: real checkpoints are clean, and what is said of a bad one can be read by people and programs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from edits import WEIGHTS, edit_config, edit_tensors, split_files, write_index
from samples import ALIASES, BROKEN, DEMO, SIDE_FILES, flaws, is_sound, samples, supported, written_method
from torch import Tensor

import qload
from qload.calls import BoundHook
from qload.checkpoint import TensorEntry
from qload.errors import QloadError
from qload.findings import Finding


@pytest.mark.parametrize("path", supported(), ids=lambda path: path.name)
def test_real_checkpoints_are_clean(path: Path) -> None:
    """A false alarm is the worst defect that a validator can have."""
    report = qload.validate(path)
    assert {finding.code for finding in report.findings} == flaws(path)
    assert report.ok
    written = written_method(path)
    assert report.method in ALIASES.get(written, (written,))


@pytest.mark.parametrize("path", [path for path in samples() if not is_sound(path)], ids=lambda path: path.name)
def test_broken_checkpoints_are_not_passed(path: Path) -> None:
    report = qload.validate(path)
    assert {finding.code for finding in report.errors} <= BROKEN[path.name]
    assert not report.ok


def is_in_one_file(path: Path) -> bool:
    """Whether the model is in a file with a config of its own."""
    return not (path / WEIGHTS).exists()


@pytest.mark.parametrize("path", [path for path in supported() if not is_in_one_file(path)], ids=lambda path: path.name)
def test_several_files_are_as_clean_as_one(path: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", *SIDE_FILES):
        if (path / name).exists():
            (tmp_path / name).write_bytes((path / name).read_bytes())
    split_files(tmp_path, 3)
    assert {finding.code for finding in qload.validate(tmp_path).findings} == flaws(path)


def test_what_is_counted() -> None:
    report = qload.validate(DEMO)
    assert (report.method, report.tensors) == ("compressed-tensors", 63)
    assert report.nbytes < (DEMO / "model.safetensors").stat().st_size < report.nbytes + 10_000


def test_pickled_weights_are_no_clean_checkpoint(broken: Callable[[str], Path]) -> None:
    """`load` refuses them, unless it is told otherwise."""
    folder = broken(DEMO.name)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    report = qload.validate(folder)
    assert [finding.code for finding in report.findings] == ["QL001"]


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(QloadError, match="there is no such folder"):
        qload.validate("nowhere")


def test_a_method_that_is_in_conflict_is_a_finding() -> None:
    registry = qload.Registry.discover()
    origins = [origin for name in registry.names for origin in registry.origins(name)]
    twice = qload.Registry([*origins, *registry.origins("compressed-tensors")])
    (finding,) = qload.validate(DEMO, registry=twice).findings
    assert finding.code == "QL104"
    assert "QLOAD_PREFER" in str(finding)


@pytest.mark.parametrize("name", ["wish", "awq", "compressed-tensors"])
def test_what_was_found_before_the_method_is_not_forgotten(
    name: str, broken: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its name is unknown, or it is blocked, or the config breaks its schema."""
    monkeypatch.setenv("QLOAD_DISABLE", "awq")
    folder = broken(DEMO.name)
    placed = split_files(folder)
    placed.popitem()
    write_index(folder, placed)
    edit_config(folder, lambda whole: whole["quantization_config"].update(quant_method=name, config_groups=3))
    codes = [finding.code for finding in qload.validate(folder).findings]
    assert codes == ["QL007", "QL105" if name == "compressed-tensors" else "QL104"]


def test_a_plain_module_beside_quantized_ones_of_the_same_name(broken: Callable[[str], Path]) -> None:
    """One layer's projection is stored plain, and the others' packed: the config says nothing of it."""
    folder = broken(DEMO.name)
    name = "model.layers.0.mlp.down_proj"

    def change(stored: dict[str, Tensor]) -> None:
        plain = stored["lm_head.weight"][:256].repeat(1, 2)
        for leaf in ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"):
            del stored[f"{name}.{leaf}"]
        stored[f"{name}.weight"] = plain

    edit_tensors(folder, change)
    found = {finding.where for finding in qload.validate(folder).errors}
    assert f"{name}.weight_packed" in found


def test_modules_that_a_class_name_may_or_may_not_mean_are_left_alone(broken: Callable[[str], Path]) -> None:
    """A router is stored as a plain matrix; without the model nobody knows that it is no Linear."""
    folder = broken("ct-qwen3moe-w4a16")

    def change(config: dict[str, dict[str, list[str]]]) -> None:
        config["quantization_config"]["ignore"] = ["lm_head"]

    edit_config(folder, change)
    assert qload.validate(folder).findings == ()


@pytest.mark.parametrize("projection", ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_fault_is_found_in_whichever_layer_it_is(layer: int, projection: str, broken: Callable[[str], Path]) -> None:
    """Layers that are alike are planned once; one that differs is not among them."""
    folder, scale = broken(DEMO.name), f"model.layers.{layer}.{projection}.weight_scale"
    edit_tensors(folder, lambda stored: stored.update({scale: stored[scale][:, 1:].clone()}))
    assert [(each.code, each.where) for each in qload.validate(folder).findings] == [("QL301", scale)]


def test_what_nothing_needs_may_be_absent(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)

    def drop_shapes(stored: dict[str, Tensor]) -> None:
        for name in [name for name in stored if name.endswith(".weight_shape")]:
            del stored[name]

    edit_tensors(folder, drop_shapes)
    assert qload.validate(folder).findings == ()
    assert qload.report(qload.load(folder)).findings == ()


def test_a_fault_of_many_layers_is_named_for_each(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)

    def rename(stored: dict[str, Tensor]) -> None:
        for name in [name for name in stored if name.endswith("up_proj.weight_scale")]:
            stored[name + "s"] = stored.pop(name)

    edit_tensors(folder, rename)
    layers = [f"model.layers.{number}.mlp.up_proj.weight_scale" for number in (0, 1)]
    found = [each.where for each in qload.validate(folder).findings]
    assert sorted(found) == sorted([*layers, *(f"{layer}s" for layer in layers)])


def test_a_methods_own_rules_see_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, seen = qload.Registry.discover(), []

    def check(_: object, tensors: Mapping[str, TensorEntry]) -> list[Finding]:
        seen.append(tensors["weight_packed"].name)
        return []

    method = registry.method("compressed-tensors")
    hooks = {**method.declaration, "qload_check": BoundHook(method.origin, "qload_check", check)}
    monkeypatch.setattr(method, "_declaration", replace(method._declaration, hooks=hooks))
    assert qload.validate(DEMO, registry=registry).findings == ()
    assert len(seen) == len(set(seen)) == 14


def test_nothing_that_passes_is_refused_for_what_headers_show() -> None:
    for path in supported():
        if qload.validate(path).ok:
            qload.load(path)


def test_a_finding_is_a_value() -> None:
    registry = qload.Registry.discover()
    assert qload.validate(DEMO, registry=registry) == qload.validate(DEMO, registry=registry)
