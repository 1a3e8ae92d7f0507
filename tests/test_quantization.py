"""Which method a checkpoint is of: named, claimed, unknown, or none."""

import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from samples import DATA, make_quantization, written_method
from strangers import make_rows, registry_with

from qload import Registry
from qload.checkpoint import Checkpoint, Folder, TensorEntry, open_folder
from qload.configs import find_section
from qload.errors import CheckpointError, MethodError, PluginError
from qload.geometry import Kind, single
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo
from qload.registry import METHODS_GROUP, UNQUANTIZED, Origin
from qload.resolution import resolve


def with_claims(registry: Registry, **claims: Claim | None) -> Registry:
    """The installed methods, and some that claim every checkpoint."""

    def plugin(claim: Claim | None) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            qload_method_info=lambda: MethodInfo("claims", None, Capabilities()),
            qload_scheme_for=lambda: None,
            qload_create_weights=lambda: (),
            qload_dequantize=lambda: None,
            qload_claim=lambda: claim,
        )

    more = [
        Origin(name, name, "dist", "1", lambda claim=claim: plugin(claim))  # type: ignore[misc]
        for name, claim in claims.items()
    ]
    return Registry([*(origin for name in registry.names for origin in registry.origins(name)), *more])


def bare(config: dict[str, Any], files: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint(Path("none"), config, {}, files)


def test_the_config_names_the_method(registry: Registry) -> None:
    for path in sorted(path for path in DATA.iterdir() if (path / "model.safetensors").exists()):
        assert resolve(open_folder(Folder(path)), registry).method.name == written_method(path)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "x"}},
        {"compression_config": {"quant_method": "x"}},
        {"text_config": {"quantization_config": {"quant_method": "x"}}},
        {"text_config": None, "llm_config": {"quantization_config": {"quant_method": "x"}}},
        {"thinker_config": {"quantization_config": {"quant_method": "x"}}},
        {"text_config": {"quantization_config": {"quant_method": "y"}}, "quantization_config": {"quant_method": "x"}},
    ],
)
def test_the_section_is_found_where_tools_put_it(config: dict[str, Any]) -> None:
    assert find_section(config) == {"quant_method": "x"}


@pytest.mark.parametrize("section", [[1], "gptq", 3, True])
def test_a_section_that_is_no_object(section: object, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"QL105 quantization_config in config\.json: is not a JSON object"):
        resolve(bare({"quantization_config": section}), registry)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_no_section_means_not_quantized(registry: Registry, config: dict[str, Any]) -> None:
    quantization = resolve(bare(config), registry)
    assert quantization.method.name == UNQUANTIZED
    assert quantization.treat(ModuleInfo(("a",))).scheme is None


class Optional(BaseModel):
    bits: int = 4


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("model", [None, Optional])
def test_a_method_sees_what_is_stored_below_a_module(named: bool, model: type[BaseModel] | None) -> None:
    """However the checkpoint is known to be its own, and whether it has a config or none."""
    info = MethodInfo("rows", model, Capabilities(embedding=True))
    hooks = {"qload_scheme_for": lambda module: " ".join(sorted(module.stored)), "qload_claim": lambda: Claim(5)}
    asked = registry_with(make_rows(qload_method_info=lambda: info, **hooks))
    entries = {f"a.{leaf}": TensorEntry(f"a.{leaf}", "I8", (1,), "f", 0, 1) for leaf in ("values", "row_scale")}
    config = {"quantization_config": {"quant_method": "rows"}} if named else {}
    quantization = resolve(Checkpoint(Path("none"), config, entries), asked)
    assert quantization.treat(ModuleInfo(("a",))).scheme == "row_scale values"
    assert quantization.treat(ModuleInfo(("a",), stored=frozenset(["given"]))).scheme == "given"


@pytest.mark.parametrize("model", [None, Optional])
def test_a_method_sees_shapes_and_what_the_files_say(model: type[BaseModel] | None) -> None:
    """By whichever of a module's names the files' metadata knows it; a module's hash takes no notice of either."""
    info = MethodInfo("rows", model, Capabilities(embedding=True))

    def choose(module: ModuleInfo) -> str:
        hash(module)
        return f"{module.tensors['values'].shape} {dict(module.described)}"

    asked = registry_with(make_rows(qload_method_info=lambda: info, qload_scheme_for=choose))
    entries = {"a.values": TensorEntry("a.values", "I8", (1, 2), "f", 0, 2)}
    config = {"quantization_config": {"quant_method": "rows"}}
    metadata: dict[str, dict[str, str]] = {"f": {"model.a.weight": "text", "b.weight": "other"}}
    quantization = resolve(Checkpoint(Path("none"), config, entries, metadata=metadata), asked)
    scheme = quantization.treat(ModuleInfo(("a", "model.a"))).scheme
    assert scheme == "(1, 2) {'weight': ('text',)}"
    given = ModuleInfo(("a", "model.a"), Kind.LINEAR, ("Linear",), frozenset(["values"]), entries_below(entries))
    assert quantization.treat(given).scheme == scheme


def entries_below(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    return {name.removeprefix("a."): entry for name, entry in entries.items()}


def test_faults_of_a_side_file_are_its_own(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text('{"bits": "four", "group_size": 128}')
    with pytest.raises(CheckpointError) as caught:
        resolve(Checkpoint(tmp_path, {}, {}, ("quantize_config.json",)), registry)
    (finding,) = caught.value.findings
    assert str(finding).startswith("bits in quantize_config.json")


def test_an_unknown_method_is_a_finding_with_the_known_ones(registry: Registry) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(bare({"quantization_config": {"quant_method": "wishful"}}), registry)
    (finding,) = caught.value.findings
    assert finding.code == "QL104"
    assert "'wishful'" in str(finding)
    assert all(name in str(finding) for name in registry.names)


def test_a_config_that_breaks_the_schema_gives_every_fault(registry: Registry) -> None:
    section = {"quant_method": "gptq", "bits": "four", "group_size": 0, "dynamic": {"+:(": {}}}
    with pytest.raises(CheckpointError) as caught:
        make_quantization(section, registry)
    assert [finding.code for finding in caught.value.findings] == ["QL105"] * 3
    text = str(caught.value)
    assert all(word in text for word in ("bits", "group_size", "not a regular expression"))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_side_file_alone_is_claimed(registry: Registry, tmp_path: Path, method: str) -> None:
    name, section = {
        "gptq": ("quantize_config.json", '{"bits": 4, "group_size": 128, "desc_act": false}'),
        "awq": ("quant_config.json", '{"w_bit": 4, "q_group_size": 64, "zero_point": true}'),
    }[method]
    (tmp_path / name).write_text(section)
    quantization = resolve(Checkpoint(tmp_path, {}, {}, (name,)), registry)
    assert quantization.method.name == method
    treatment = quantization.treat(ModuleInfo(("model.layers.0.mlp.up_proj",)))
    assert str(treatment.scheme) == {"gptq": "int4 group 128", "awq": "int4 group 64"}[method]


@pytest.mark.parametrize("section", [{"bits": 4}, {"quant_method": None, "bits": 4}])
def test_a_config_that_writes_no_name_is_claimed(registry: Registry, tmp_path: Path, section: dict[str, Any]) -> None:
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    checkpoint = Checkpoint(tmp_path, {"quantization_config": section}, {}, ("quantize_config.json",))
    assert resolve(checkpoint, registry).method.name == "gptq"


@pytest.mark.parametrize("name", ["foo", "", 3, ["gptq"]])
def test_a_side_file_does_not_overrule_a_name(registry: Registry, tmp_path: Path, name: object) -> None:
    """The weights are of the method that the config names, and loading them as another's gives noise."""
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    config = {"quantization_config": {"quant_method": name}}
    with pytest.raises(CheckpointError) as caught:
        resolve(Checkpoint(tmp_path, config, {}, ("quantize_config.json",)), registry)
    assert [finding.code for finding in caught.value.findings] == ["QL104"]
    assert repr(name) in str(caught.value)


def test_a_claim_under_an_alias_is_heard_where_the_config_writes_it(registry: Registry) -> None:
    claiming = with_claims(registry, one=Claim(5, alias="uno"), two=Claim(7, alias="due"), three=Claim(9))
    for alias, method in (("uno", "one"), ("due", "two")):
        assert resolve(bare({"quantization_config": {"quant_method": alias}}), claiming).method.name == method
    with pytest.raises(CheckpointError):
        resolve(bare({"quantization_config": {"quant_method": "tre"}}), claiming)


@pytest.mark.parametrize("alias", ["rows", None, "cols"])
def test_a_named_method_may_read_its_config_from_elsewhere(alias: str | None) -> None:
    """By a claim under its own name; any other claim of its is not heard where it is named."""
    info = MethodInfo("rows", Optional, Capabilities(embedding=True))
    claim = Claim(5, {"bits": 3}, "side.json", alias)
    asked = registry_with(make_rows(qload_method_info=lambda: info, qload_claim=lambda: claim))
    config = resolve(bare({"quantization_config": {"quant_method": "rows", "bits": 8}}), asked).config
    assert config == Optional(bits=3 if alias == "rows" else 8)


@pytest.mark.parametrize(("kv_cache", "scheme"), [(False, None), ("loaded", "by row")])
def test_a_method_that_has_no_caches_is_not_asked_about_them(kv_cache: Any, scheme: str | None) -> None:
    """A simple method would answer with a weight's scheme, for a module that has no weight."""
    attention = ModuleInfo(("model.layers.0.self_attn",), Kind.KV_CACHE, ("LlamaAttention", "Module"))
    info = MethodInfo("rows", None, Capabilities(embedding=True, kv_cache=kv_cache))
    asked = registry_with(make_rows(qload_method_info=lambda: info))
    assert resolve(bare({"quantization_config": {"quant_method": "rows"}}), asked).treat(attention).scheme == scheme


def test_the_most_specific_claim_wins(registry: Registry) -> None:
    claiming = with_claims(registry, one=Claim(5), two=Claim(7), three=None)
    assert resolve(bare({}), claiming).method.name == "two"


def test_a_tie_of_claims_names_both(registry: Registry) -> None:
    claiming = with_claims(registry, one=Claim(5), two=Claim(5))
    with pytest.raises(MethodError, match="one and two both claim"):
        resolve(bare({}), claiming)


def test_a_plugin_that_fails_is_named(registry: Registry) -> None:
    plugin = types.SimpleNamespace(
        qload_method_info=lambda: MethodInfo("fails", None, Capabilities()),
        qload_scheme_for=lambda: 1 / 0,
        qload_create_weights=lambda: (),
        qload_dequantize=lambda: None,
    )
    failing = Registry([*registry.origins(UNQUANTIZED), Origin("fails", "fails", "dist", "1", lambda: plugin)])
    quantization = resolve(bare({"quantization_config": {"quant_method": "fails"}}), failing)
    with pytest.raises(PluginError, match="qload_scheme_for raises ZeroDivisionError"):
        quantization.treat(ModuleInfo(("a",)))


def test_a_declaration_is_asked_for_once(registry: Registry) -> None:
    quantization = make_quantization({"quant_method": "gptq", "bits": 4}, registry)
    treatment = quantization.treat(ModuleInfo(("a",)))
    geometry = single(256, 512, kind=Kind.LINEAR)
    assert quantization.declare(treatment, geometry) is quantization.declare(treatment, geometry)


def test_every_plugin_here_is_an_entry_point(registry: Registry) -> None:
    folders = {path.name for path in (Path(__file__).parents[1] / "plugins").glob("qload_*")}
    assert {origin.target for name in registry.names for origin in registry.origins(name)} == folders, METHODS_GROUP


def ask_by_place(registry: Registry, section: dict[str, Any], dtypes: dict[str, str]) -> dict[str, Any]:
    """What is done to modules that store a weight of those dtypes, by a method that tells them by place.

    Its scheme is the name that it was asked about, and the weight's dtype.
    """
    hooks: dict[str, Any] = {
        "qload_method_info": lambda: MethodInfo("by place", None, Capabilities(), is_by_place=True),
        "qload_scheme_for": lambda module: f"{module.name} {module.tensors['weight'].dtype}",
        "qload_create_weights": lambda: (),
        "qload_dequantize": lambda: None,
    }
    made = Origin("made-up", "made_up", "dist", "1", lambda: types.SimpleNamespace(**hooks))
    found = make_quantization({"quant_method": "made-up", **section}, Registry([*registry.origins(UNQUANTIZED), made]))
    names = {module: f"{module}.weight" for module in dtypes}
    found.modules = {module: {"weight": name} for module, name in names.items()}
    found.tensors = {name: TensorEntry(name, dtypes[module], (2, 2), "f", 0, 4) for module, name in names.items()}
    return {module: found.treat(ModuleInfo((module,))).scheme for module in dtypes}


def test_one_module_is_asked_about_for_all_that_are_alike(registry: Registry) -> None:
    asked = ask_by_place(registry, {}, {"a.0.x": "I8", "a.1.x": "I8", "a.2.x": "U8", "a.10.x": "I8", "a.3.y": "I8"})
    assert asked == {
        "a.0.x": "a.0.x I8",
        "a.1.x": "a.0.x I8",
        "a.2.x": "a.2.x U8",
        "a.10.x": "a.10.x I8",
        "a.3.y": "a.3.y I8",
    }


def test_where_the_config_writes_numbers_each_module_is_asked_about(registry: Registry) -> None:
    modules = {"a.0.x": "I8", "a.1.x": "I8", "a.0.y": "I8", "a.1.y": "I8"}
    asked = ask_by_place(registry, {"ignore": ["a.1.x"]}, modules)
    assert asked == {"a.0.x": "a.0.x I8", "a.1.x": "a.1.x I8", "a.0.y": "a.0.y I8", "a.1.y": "a.0.y I8"}
