"""int8 weights with a scale for each row: the declaration, which imports without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from qload.catalogue import Rule, Tier, warning
from qload.checkpoint import TensorEntry
from qload.declare import ParameterSpec, channel_scale, packed
from qload.findings import Finding, report
from qload.geometry import Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.layout import in_, out

SCATTERED = warning(
    "ROWINT001",
    Tier.HEADERS,
    "values and scales of one module in different files",
    failure="Whoever reads file by file has to keep the values until the file with their scales has come.",
    cure="Write all tensors of a module into one file.",
)


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


def qload_kernels() -> tuple[str, ...]:
    return ("rowint8.kernel:RowProduct",)


def qload_rules() -> tuple[Rule, ...]:
    return (SCATTERED,)


def qload_check(tensors: Mapping[str, TensorEntry]) -> Iterator[Finding]:
    files = {tensors[name].file for name in ("values", "row_scale") if name in tensors}
    if len(files) > 1:
        values, others = tensors["values"], files - {tensors["values"].file}
        message = "the scales of these values lie in another file"
        yield report(SCATTERED, message, where=values.name, file=values.file, found=", ".join(sorted(others)))
