"""torchao: weights as its tensor classes, taken apart into plain tensors with a description of each weight.

Integers of up to eight bits and eight-bit floats with scales of any extent, packed four-bit integers, and
microscaled floats. The description is in the metadata of the safetensors files; without it, the config says what
is stored. Source of the layout: torchao's `prototype/safetensors`, and the tensor classes that it can save.
"""

import re
from dataclasses import replace

from qload.declare import ParameterSpec
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo, Parts, Tile
from qload_torchao.config import TorchaoConfig
from qload_torchao.declarations import create_weights
from qload_torchao.metadata import PREFIX, QDATA, find_whole, read_scheme
from qload_torchao.presets import PRESETS
from qload_torchao.recipes import make_scheme
from qload_torchao.schemes import Storage, TorchaoScheme

OLD_LEAF = re.compile(r"\w+:\w+")
"""What torchao 0.14 calls the tensors of a parameter, and a plain parameter itself: `weight:qdata`, `bias:_data`."""


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="int, fp8, mx and nvfp4 tensor classes, saved as safetensors; quantized inputs",
        config=TorchaoConfig,
        capabilities=Capabilities(
            embedding=True,
            parts=Parts.ANY,
            activations=True,
            quantize=True,
            tensor_parallel="whole groups and blocks; swizzled scales: 128 rows and 4 groups",
        ),
        runtime="qload_torchao.runtime",
        is_by_place=True,
        presets=PRESETS,
    )


def qload_scheme_for(config: TorchaoConfig, module: ModuleInfo) -> TorchaoScheme | None:
    _refuse_others(module)
    texts = module.described.get("weight", ())
    if len(texts) > 1:
        raise ValueError("the metadata of the weight files contradicts itself about the weight")
    if texts:
        return read_scheme(texts[0], module.tensors)
    return _choose(config, module)


def qload_create_weights(scheme: TorchaoScheme) -> tuple[ParameterSpec, ...]:
    return create_weights(scheme)


def qload_tile(scheme: TorchaoScheme) -> Tile | None:
    """Source: torchao's `safe_int_mm`, which multiplies as floats what is no multiple of 8."""
    is_int8 = scheme.storage is Storage.INT8 and scheme.inputs is not None
    return Tile(8, 8, "torch._int_mm") if is_int8 else None


def _refuse_others(module: ModuleInfo) -> None:
    """Parameters of other names can be quantized too, such as stacks of experts, and no layer has them."""
    if any(map(OLD_LEAF.fullmatch, module.stored)):
        raise ValueError("the tensors have the names that torchao 0.14 gave them: save the model with a later one")
    for name, texts in module.described.items():
        if name != "weight" and f"_{name}_qdata" in module.stored and texts:
            raise ValueError(f"the parameter {name} is quantized, and of a module's only its weight is supported")


def _choose(config: TorchaoConfig, module: ModuleInfo) -> TorchaoScheme | None:
    """By the config, for a module of which the files say nothing but what is stored."""
    is_stored = QDATA in module.stored
    if module.stored and not is_stored:
        return None
    settings = config.settings_for(module.names, module.kind, is_stored)
    if settings is None:
        return None
    leaves = frozenset(leaf.removeprefix(PREFIX) for leaf in module.stored)
    scheme = make_scheme(settings, leaves if is_stored else None)
    return replace(scheme, block=find_whole(scheme.block, scheme.storage, module.tensors.get(QDATA)))
