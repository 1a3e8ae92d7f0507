"""Whole tensors in memory as sources of a layer: which parts they are, and whether they are as declared."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from qload.checkpoint import TensorEntry
from qload.declare import ParameterSpec
from qload.dtypes import storage_bytes
from qload.errors import LayoutError, ParameterError
from qload.plan import Source
from qload.plan.fits import Reading, count_measured, make_fit, view_bytes
from qload.torch.dtypes import dtype_code, torch_dtype
from qload.torch.identity import Identity


class Whole(NamedTuple):
    """A whole tensor in the shape and dtype in which it is read, and how that fills a parameter.

    `length` is that of the axis of which only what is stored knows it; None where there is none.
    """

    tensor: Tensor
    reading: Reading
    length: int | None


def find_source(identity: Identity, part: int | str | None, expert: int | None) -> Source:
    """The source of one part or of all, of one expert or of all.

    Raises ParameterError for one that the layer does not have.
    """
    number = None if part is None else _find_part(identity, part)
    _check_expert(identity, expert)
    parts = len(identity.geometry.parts) if number is None else 1
    return Source(identity.layer, number or 0, parts, expert)


def _find_part(identity: Identity, part: object) -> int:
    names = [each.name for each in identity.geometry.parts]
    for group in (names, identity.aliases):
        if isinstance(part, str) and part in group:
            return group.index(part)
    if isinstance(part, int) and not isinstance(part, bool) and 0 <= part < len(names):
        return part
    named = f"{', '.join((*names, *identity.aliases))}, or " if any(names) else ""
    expected = f"{named}0 to {len(names) - 1}"
    raise ParameterError("the layer has no such part", where=identity.where, expected=expected, found=repr(part))


def _check_expert(identity: Identity, expert: object) -> None:
    count = identity.geometry.experts
    is_number = isinstance(expert, int) and not isinstance(expert, bool)
    if expert is None or (count is not None and is_number and expert in range(count)):
        return
    expected = "none" if count is None else f"0 to {count - 1}"
    raise ParameterError("the layer has no such expert", where=identity.where, expected=expected, found=repr(expert))


def read_whole(identity: Identity, tensor: Tensor, source: Source, own: str, *, free: bool, cast: bool) -> Whole:
    """How a whole tensor fills a parameter whose dtype is `own`; where that is `free`, any that is declared fits.

    With `cast`, others are converted by value. Raises ParameterError for a dtype or shape that is not as declared,
    LayoutError where this rank's share of it splits a unit.
    """
    stored = _find_stored(identity, source)
    dtypes = stored.dtypes if free else (own,)
    seen = view_bytes(describe(tensor, identity.where), stored)
    if seen.dtype not in dtypes and cast:
        tensor = tensor.to(torch_dtype(own))
        seen = describe(tensor, identity.where)
    elif seen.dtype not in dtypes:
        raise _wrong_dtype(identity, dtypes, seen.dtype)
    measured = identity.spec.layout.is_measured
    length = count_measured(identity.spec, source, identity.geometry, seen.shape) if measured else None
    fit = make_fit(identity.spec, stored, source, identity.geometry, identity.shard, length)
    reading = fit.read(seen.shape)
    if reading is None:
        raise _wrong_shape(identity, source, fit.expected, seen.shape)
    if reading.fault:
        raise LayoutError(reading.fault, where=identity.where)
    viewed = tensor if seen.dtype == dtype_code(tensor.dtype) else tensor.contiguous().view(torch_dtype(seen.dtype))
    return Whole(viewed.detach().reshape(reading.shape), reading, length)


def describe(tensor: Tensor, name: str, file: str = "memory") -> TensorEntry:
    """What a header would say of a tensor in memory."""
    code = dtype_code(tensor.dtype)
    return TensorEntry(name, code, tuple(tensor.shape), file, 0, storage_bytes(code, tensor.numel()))


def _find_stored(identity: Identity, source: Source) -> ParameterSpec:
    """The declaration of what the source stores."""
    if not source.belongs_to(identity.geometry):
        raise ParameterError("the layer has no such part", where=identity.where, found=str(source))
    for spec in identity.treatment.declare(source.geometry(identity.geometry)):
        if spec.name == identity.spec.name:
            return spec
    raise ParameterError(
        "no checkpoint stores the parameter",
        where=identity.where,
        found="one that the layer's method derived",
        remedy="make the layer's parameters with layer.allocate(device), and load those",
    )


def _wrong_dtype(identity: Identity, dtypes: Sequence[str], found: str) -> ParameterError:
    return ParameterError(
        f"the {identity.spec.kind.value} cannot be loaded from that dtype without changing what it says",
        where=identity.where,
        expected=" or ".join(dtypes),
        found=found,
        remedy="cast=True converts it by value",
    )


def _wrong_shape(identity: Identity, source: Source, expected: str, found: tuple[int, ...]) -> ParameterError:
    stored = source.geometry(identity.geometry)
    return ParameterError(
        f"the {identity.spec.kind.value} has the wrong shape",
        where=identity.where,
        expected=expected,
        found=str(list(found)),
        remedy=f"the whole tensor of {stored.out_features} x {stored.in_features} is wanted, not a rank's share of it",
    )
