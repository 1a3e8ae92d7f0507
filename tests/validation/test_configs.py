"""Rules of the config: where it stands, what contradicts it, and what nobody knows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, Case, config
from samples import BROKEN, DATA, DEMO, SIDE_FILES, flaws, samples

import qload
from qload.errors import CheckpointError, QloadError

SECTION = "quantization_config"


def put_in(**changes: Any) -> Break:
    return config(lambda whole: whole[SECTION].update(changes))


def nest(whole: dict[str, Any]) -> None:
    whole["text_config"] = {SECTION: whole.pop(SECTION)}


def write_beside(
    file: str, change: Callable[[dict[str, Any]], Any] = lambda section: None, alone: bool = False
) -> Break:
    """What config.json says once more in a side file, changed, or in its stead."""

    def write(folder: Path) -> None:
        path = folder / "config.json"
        whole = json.loads(path.read_text())
        section = dict(whole.pop(SECTION) if alone else whole[SECTION])
        change(section)
        (folder / file).write_text(json.dumps(section))
        path.write_text(json.dumps(whole))

    return write


def edit_file(file: str, change: Callable[[dict[str, Any]], Any]) -> Break:
    def edit(folder: Path) -> None:
        written = json.loads((folder / file).read_text())
        change(written)
        (folder / file).write_text(json.dumps(written))

    return edit


def repeat_key(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"quant_method":', '"quant_method": "gptq", "quant_method":', 1))


def put_twice(name: str, change: Callable[[dict[str, Any]], Any]) -> Break:
    def put(whole: dict[str, Any]) -> None:
        other = json.loads(json.dumps(whole[SECTION]))
        change(other)
        whole.update({name: other} if name != "text_config" else {name: {SECTION: other}})

    return config(put)


GROUP = "config_groups.group_0.weights"


def args(section: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = section["config_groups"]["group_0"]["weights"]
    return found


GPTQ, AWQ, FP8, BNB = "gptq-4bit-g128-asym", "autoawq-gemm-g128", "ct-fp8-block", "bnb-nf4-dq"

MISPLACED = (
    Case("QL102", DEMO.name, config(nest), f"text_config.{SECTION}"),
    Case("QL102", GPTQ, write_beside("quantize_config.json", alone=True), "gptq"),
    Case("QL102", AWQ, write_beside("quant_config.json", alone=True), "awq"),
    Case("QL102", "gptqmodel-gguf-q4_k", write_beside("quantize_config.json", alone=True), "gguf"),
)
CONFLICTS = (
    Case("QL103", GPTQ, write_beside("quantize_config.json", lambda one: one.update(group_size=64)), "group_size"),
    Case(
        "QL103", GPTQ, write_beside("quantize_config.json", lambda one: one.update(quant_method="awq")), "quant_method"
    ),
    Case("QL103", AWQ, write_beside("quant_config.json", lambda one: one.update(zero_point=False)), "zero_point"),
    Case(
        "QL103",
        "modelopt-nvfp4",
        edit_file("hf_quant_config.json", lambda one: one["quantization"].update(group_size=32)),
        "group_size",
    ),
    Case("QL103", DEMO.name, put_twice("compression_config", lambda one: args(one).update(num_bits=8)), GROUP),
)
NESTED = (Case("QL103", DEMO.name, put_twice("text_config", lambda one: args(one).update(group_size=64)), GROUP),)
UNREADABLE = (
    Case("QL104", DEMO.name, put_in(quant_method="compressed-tensor"), f"{SECTION}.quant_method"),
    Case("QL105", DEMO.name, put_in(ignore=["lm_head", "re:("]), "ignore.1"),
    Case("QL105", DEMO.name, repeat_key, f"{SECTION}.quant_method"),
    Case("QL105", GPTQ, put_in(bits="four"), "bits"),
    Case("QL105", BNB, put_in(llm_int8_skip_modules=["a", "("]), "llm_int8_skip_modules.1"),
    Case("QL105", "hqq-3bit-g64", config(lambda whole: whole[SECTION].pop("quant_config")), "quant_config"),
    Case("QL105", "quark-uint4-wo-128", put_in(exclude=["re:["]), "exclude.0"),
)
DTYPES = (
    Case("QL108", DEMO.name, config(lambda whole: whole.pop("dtype")), "dtype"),
    Case("QL108", DEMO.name, config(lambda whole: whole.update(torch_dtype="float16")), "torch_dtype"),
    Case("QL108", DEMO.name, config(lambda whole: whole.update(dtype="bf16")), "dtype"),
)
NAMED = (
    DEMO.name, GPTQ, AWQ, BNB, "hf-bitnet-packed", "hf-gptoss-mxfp4", "hqq-3bit-g64", "modelopt-nvfp4",
    "quark-uint4-wo-128", "torchao-int8dyn-int8w", "gptqmodel-gguf-q4_k",
)  # fmt: skip
UNKNOWN = tuple(Case("QL106", name, put_in(groop_size=128), "groop_size") for name in NAMED)

CASES: tuple[Case, ...] = (*MISPLACED, *CONFLICTS, *NESTED, *UNREADABLE, *DTYPES, *UNKNOWN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.checkpoint}-{case.where}")
def test_what_is_wrong_with_a_config_is_found_in_its_place(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    before = {finding.code for finding in qload.validate(folder).findings}
    case.breaks(folder)
    found = [each for each in qload.validate(folder).findings if each.code == case.code]
    assert any(each.where.startswith(case.where) for each in found), found
    assert before == flaws(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.checkpoint}-{case.where}")
def test_what_is_pointed_at_is_there(case: Case, broken: Callable[[str], Path]) -> None:
    """A pointer leads to something in the file that a finding names."""
    folder = broken(case.checkpoint)
    case.breaks(folder)
    for finding in qload.validate(folder).findings:
        if finding.code != case.code:
            continue
        written = json.loads((folder / finding.file).read_text())
        for key in finding.pointer:
            written = written[key]
        assert finding.pointer or finding.code in ("QL102", "QL108")


@pytest.mark.parametrize(
    "case", [*CONFLICTS, *UNREADABLE], ids=lambda case: f"{case.code}-{case.checkpoint}-{case.where}"
)
def test_a_load_refuses_what_the_validator_calls_an_error(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    case.breaks(folder)
    with pytest.raises(CheckpointError, match=case.code):
        qload.load(folder)


@pytest.mark.parametrize(
    ("name", "file", "change"),
    [
        (GPTQ, "quantize_config.json", lambda one: one.update(meta={"other": 1}, damp_percent=0.3)),
        (GPTQ, "quantize_config.json", lambda one: one.update(quant_method="wish", bits=8)),
        (AWQ, "quant_config.json", lambda one: one.update(w_bit=one.pop("bits"), version="GEMM")),
        (AWQ, "quant_config.json", lambda one: one.update(bits="none of ours")),
    ],
)
def test_what_is_spelled_otherwise_or_not_read_is_no_conflict(
    name: str, file: str, change: Callable[[dict[str, Any]], Any], broken: Callable[[str], Path]
) -> None:
    folder = broken(name)
    write_beside(file, change)(folder)
    assert {finding.code for finding in qload.validate(folder).findings} == flaws(folder)


def test_sections_that_agree_are_no_conflict(broken: Callable[[str], Path]) -> None:
    """A nested one may list other names, for its names begin elsewhere."""
    folder = broken(DEMO.name)
    put_twice("compression_config", lambda one: None)(folder)
    put_twice("text_config", lambda one: one.update(ignore=["model.lm_head"]))(folder)
    assert qload.validate(folder).findings == ()


@pytest.mark.parametrize(("written", "meant"), [("groop_size", "group_size"), ("desc_akt", "desc_act")])
def test_a_name_that_was_perhaps_meant_is_suggested(written: str, meant: str, broken: Callable[[str], Path]) -> None:
    folder = broken(GPTQ)
    put_in(**{written: 1})(folder)
    (finding,) = qload.validate(folder).findings
    assert finding.remedy == f"did you mean {meant!r}?"
    assert finding.pointer == (SECTION, written)


def test_a_method_that_was_perhaps_meant_is_suggested(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    put_in(quant_method="compressed_tensors")(folder)
    (finding,) = qload.validate(folder).findings
    assert finding.remedy == "did you mean 'compressed-tensors'?"


def write_config(folder: Path, section: dict[str, Any], name: str = "config.json", **more: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({"dtype": "bfloat16", "model_type": "llama", SECTION: section, **more}))
    return path


CONFIGS = [path for path in samples() if (path / "config.json").exists()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_config_alone_is_as_clean_as_the_checkpoint(path: Path) -> None:
    report = qload.validate(path / "config.json")
    assert {finding.code for finding in report.findings} == flaws(path)
    assert report.tensors == 0
    if (
        path.name not in BROKEN
        and not any(path.glob("*.gguf"))
        and not any((path / name).exists() for name in SIDE_FILES)
    ):
        assert report.method == qload.validate(path).method


SIDES = [file for path in CONFIGS for file in sorted(path.glob("*quant*.json"))]


@pytest.mark.parametrize("file", SIDES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_side_file_alone_is_of_the_same_method(file: Path) -> None:
    report = qload.validate(file)
    assert report.findings == ()
    assert report.method == qload.validate(file.parent).method


W4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
CT: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "bits": 5}, "5"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {r"+:.*\.0\.mlp\.down_proj": {"bits": 7}}}, "7"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "wish"}, "wish"),
    ({"quant_method": "awq", "bits": 3}, "3 bits"),
    ({"quant_method": "awq", "bits": 4, "version": "wish"}, "wish"),
    ({"quant_method": "qqq", "bits": 8}, "8 bits"),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 7}}}, "7 bits"),
    ({"quant_method": "modelopt", "quant_algo": "WISH"}, "WISH"),
    ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int7", "qscheme": "per_tensor"}}}, "int7"),
    ({**CT, "format": "wish", "config_groups": {"g": {"targets": ["Linear"], "weights": W4}}}, "wish"),
    ({**CT, "config_groups": {"g": {"targets": ["odd.name"], "weights": {**W4, "num_bits": 9}}}}, "int9"),
]


@pytest.mark.parametrize(("section", "said"), REFUSED, ids=str)
def test_what_a_method_refuses_is_found_in_the_config_alone(section: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = qload.validate(write_config(tmp_path, section)).findings
    assert {(finding.code, finding.pointer) for finding in found} == {("QL104", (SECTION,))}
    assert said in str(found[0])


HUB: list[dict[str, Any]] = [
    {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128],
     "scale_fmt": "ue8m0"},
    {"quant_method": "bitsandbytes", "_load_in_4bit": True, "_load_in_8bit": False, "load_in_4bit": True,
     "load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
     "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "llm_int8_enable_fp32_cpu_offload": False,
     "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": ["lm_head"], "llm_int8_threshold": 6.0},
    {"quant_method": "gptq", "batch_size": 1, "bits": 4, "block_name_to_quantize": None, "cache_block_outputs": True,
     "damp_percent": 0.01, "dataset": None, "desc_act": False, "exllama_config": {"version": 1}, "group_size": 128,
     "max_input_length": None, "model_seqlen": None, "module_name_preceding_first_block": None,
     "modules_in_block_to_quantize": None, "pad_token_id": None, "sym": True, "tokenizer": None,
     "true_sequential": True, "use_cuda_fp16": False, "use_exllama": True, "static_groups": False,
     "model_name_or_path": None, "model_file_base_name": "model", "disable_exllama": False},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm", "do_fuse": False,
     "exllama_config": None, "fuse_max_seq_len": None, "modules_to_fuse": None, "modules_to_not_convert": None,
     "backend": "autoawq"},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
    {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 32},
     "modules_to_not_convert": None},
]  # fmt: skip


@pytest.mark.parametrize("section", HUB, ids=lambda section: section["quant_method"])
def test_what_tools_write_is_known(section: dict[str, Any], tmp_path: Path) -> None:
    assert qload.validate(write_config(tmp_path, section)).findings == ()


def test_a_config_of_another_name_is_one_and_named(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"quant_method": "gptq", "bits": 4, "bytes": 1}, "mine.json")
    (finding,) = qload.validate(path).findings
    assert (finding.code, finding.file, finding.pointer) == ("QL106", "mine.json", (SECTION, "bytes"))


@pytest.mark.parametrize("name", ["README.md", "x.bin", "tokenizer.json", "absent.json"])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    if name != "absent.json":
        (tmp_path / name).write_text("{}")
    with pytest.raises(QloadError):
        qload.validate(tmp_path / name)


def test_a_config_that_is_no_json_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    report = qload.validate(tmp_path / "config.json")
    assert [(finding.code, finding.line) for finding in report.findings] == [("QL105", 1)]
    assert not report.ok


@pytest.mark.parametrize(
    "config",
    [
        {"torch_dtype": "bfloat16"},
        {"dtype": "torch.float16", "torch_dtype": "float16"},
        {"text_config": {"dtype": "bfloat16"}},
        {"dtype": None, "llm_config": {"torch_dtype": "bfloat16"}},
        {"vision_config": {"torch_dtype": "bfloat16"}},
    ],
    ids=str,
)
def test_a_dtype_is_looked_for_where_configs_have_it(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    assert qload.validate(tmp_path / "config.json").findings == ()


def test_the_samples_have_every_method_that_has_a_config_in_the_tests() -> None:
    assert all((DATA / name / "config.json").exists() for name in NAMED)
