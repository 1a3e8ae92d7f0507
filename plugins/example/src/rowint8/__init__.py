"""int8 weights with a scale for each row: the declaration, which imports without torch."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from qload.declare import ParameterSpec, channel_scale, packed
from qload.geometry import Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.layout import in_, out


class RowInt8Config(BaseModel):
    """`quantization_config` in config.json; modules whose names end with an entry of `skip` are left alone."""

    quant_method: Literal["rowint8"] = "rowint8"
    skip: list[str] = ["lm_head"]
    embeddings: bool = True


@dataclass(frozen=True, slots=True)
class RowInt8Scheme:
    """There is only one way to do it."""

    def __str__(self) -> str:
        return "by row"


def qload_method_info() -> MethodInfo:
    return MethodInfo(
        summary="int8 with a float32 scale for each row",
        config=RowInt8Config,
        capabilities=Capabilities(embedding=True),
        runtime="rowint8.runtime",
    )


def qload_scheme_for(config: RowInt8Config, module: ModuleInfo) -> RowInt8Scheme | None:
    if module.kind is Kind.EMBEDDING and not config.embeddings:
        return None
    if not {"Linear", "Embedding"} & set(module.classes) or module.name.endswith(tuple(config.skip)):
        return None
    return RowInt8Scheme()


def qload_create_weights() -> tuple[ParameterSpec, ...]:
    return (
        packed("values", out(), in_(), dtypes=("I8",)),
        channel_scale("row_scale", out(), dtypes=("F32",)),
    )
