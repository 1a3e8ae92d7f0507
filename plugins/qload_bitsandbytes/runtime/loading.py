"""What is done once a layer's tensors have landed: documents are read, checked, and turned into tensors."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qload.declare import ParameterSpec, index, metadata, tensor_scale
from qload.errors import CheckpointError
from qload.findings import Finding, report
from qload.layout import fixed
from qload.plan import Source
from qload.torch import Layer
from qload.torch.dtypes import torch_dtype
from qload_bitsandbytes import FORMATS
from qload_bitsandbytes.rules import CONTRADICTORY, KERNEL_LAYOUT
from qload_bitsandbytes.schemes import STATE
from qload_bitsandbytes.states import DTYPES, QuantState, check_state, read_state

ZERO_CODES = {"nf4": 7, "fp4": 0}
"""The codes that stand for zero."""


def check_format(layer: Layer) -> None:
    """Raises CheckpointError for an int8 weight that is not stored row by row."""
    stored = layer._parameters.get("weight_format")
    if stored is None:
        return
    found = int(stored.max())
    if found:
        finding = report(
            KERNEL_LAYOUT,
            "the weight is stored in the layout of a kernel",
            where=f"{layer.sources[0].prefix}.weight_format",
            expected=FORMATS[0],
            found=FORMATS[found],
            remedy="save it again, row by row, with the version of bitsandbytes that wrote it",
        )
        raise CheckpointError(layer.name, [finding])
    layer.set_tensor("weight_format", None)


def settle_states(layer: Layer) -> None:
    """Derive from a layer's documents what its hooks compute with, and give their memory back.

    Raises CheckpointError with everything in which the documents contradict the layer.
    """
    documents = layer._parameters.get("quant_state")
    if documents is None:
        _settle_share(layer)
        return
    states = _read_states(layer, documents.cpu())
    code = _find_dtype(layer, states.values())
    # Any value: its dtype is the one that the weight is rounded to.
    _derive(layer, metadata("dense_like", fixed(1), dtypes=(code,)), torch.zeros(1, dtype=torch_dtype(code)))
    if layer.scheme.nested is not None:
        _derive_blocks(layer)
        _derive_offsets(layer, states, documents)
    _clear_padding(layer)
    layer.set_tensor("quant_state", None)


def _settle_share(layer: Layer) -> None:
    """What depends on the share of a layer whose documents have been read: it may be another now."""
    if "blocks" in layer.derived:
        _derive_blocks(layer)
    if "dense_like" in layer.derived:
        _clear_padding(layer)


def _derive_blocks(layer: Layer) -> None:
    _derive(layer, index("blocks", fixed(2), bounds=(0, 0), dtypes=("I64",)), torch.tensor(_count_blocks(layer)))


def _read_states(layer: Layer, documents: Tensor) -> Mapping[Source, QuantState]:
    """The document of each source that the rank has a share of."""
    states: dict[Source, QuantState] = {}
    findings: list[Finding] = []
    for source in layer.sources:
        place = _find_place(layer, source)
        if place is None:
            continue
        where = f"{source.prefix}.{STATE}{layer.scheme.quant_type}"
        read = read_state(bytes(documents[place].tolist()), where)
        if isinstance(read, Finding):
            findings.append(read)
        else:
            findings += check_state(read, layer.scheme, source.geometry(layer.geometry), where)
            states[source] = read
    if findings:
        raise CheckpointError(layer.name, findings)
    return states


def _find_place(layer: Layer, source: Source) -> tuple[int, ...] | None:
    """Where a source's first part lies in tensors with an entry for each part; None where another rank has it."""
    if source.expert is None:
        return (source.part,)
    number = source.expert - layer.shard.experts.start
    return (number, source.part) if 0 <= number < layer.shard.experts.size else None


def _find_dtype(layer: Layer, states: Iterable[QuantState]) -> str:
    dtypes = sorted({state.dtype for state in states})
    if len(dtypes) > 1:
        finding = report(
            CONTRADICTORY,
            "the parts of one layer were of different dtypes before they were quantized",
            where=layer.name,
            expected="one dtype",
            found=", ".join(dtypes),
            remedy="build this layer from separate ones",
        )
        raise CheckpointError(layer.name, [finding])
    # A rank may have none of the experts, and then nothing is computed.
    return DTYPES[dtypes[0]] if dtypes else layer.geometry.dtype


def _derive(layer: Layer, spec: ParameterSpec, values: Tensor) -> None:
    """Derive a tensor that is the same for all experts."""
    experts = () if layer.local.experts is None else (layer.local.experts,)
    device = next(layer.parameters()).device
    layer.derive(spec, values.to(device).expand(*experts, *values.shape).contiguous())


def _count_blocks(layer: Layer) -> tuple[int, int]:
    """The blocks of a whole row, and those before this rank's columns; where rows are flat, every block is a row."""
    size, columns = layer.scheme.block_size, layer.geometry.in_features
    if not layer.scheme.is_aligned(columns):
        return 1, 0
    return columns // size, layer.shard.in_.start // size


def _derive_offsets(layer: Layer, states: Mapping[Source, QuantState], documents: Tensor) -> None:
    offsets = torch.zeros(documents.shape[:-1], dtype=torch.float32)
    for source, state in states.items():
        *expert, first = _find_place(layer, source) or (0,)
        own = offsets[expert[0]] if expert else offsets
        own[first : first + source.parts] = state.nested_offset or 0.0
    layer.derive(tensor_scale("nested_offset", dtypes=("F32",)), offsets.to(documents.device))


def _clear_padding(layer: Layer) -> None:
    """Write the code of zero into rows that no checkpoint stores: their blocks' scales need not be zero."""
    (cut, *_), packed = layer.shard.out, layer.get_parameter("weight_quantized")
    if cut.padding:
        code, first = ZERO_CODES[layer.scheme.quant_type], cut.size * layer.local.in_features
        stored = packed.view(-1).view(torch.uint8)
        if first % 2:
            stored[first // 2] = stored[first // 2] & 0xF0 | code
        stored[(first + 1) // 2 :] = code * 0x11
