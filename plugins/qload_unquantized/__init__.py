"""The method for modules that are not quantized: one weight, stored as values."""

from qload.declare import ParameterSpec, weight
from qload.hookspecs import Capabilities, MethodInfo
from qload.layout import in_, out


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="weights stored as values",
        config=None,
        capabilities=Capabilities(embedding=True),
        runtime="qload_unquantized.runtime",
        is_by_place=True,
    )


def qload_scheme_for() -> None:
    return None


def qload_create_weights() -> tuple[ParameterSpec, ...]:
    return (weight("weight", out(), in_()),)
