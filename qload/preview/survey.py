"""What planning and validating both start from: the modules of an examined checkpoint, one for all that are alike."""

from dataclasses import dataclass

from qload.checkpoint import Checkpoint
from qload.examination import Examination
from qload.outline import Outline, thin
from qload.preview.modules import Modules, choose_dtype, list_modules
from qload.quantization import Quantization


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint without the layers that are like another one, its modules, and the dtype that they compute in."""

    checkpoint: Checkpoint
    quantization: Quantization
    outline: Outline
    modules: tuple[Modules, ...]
    dtype: str


def survey(found: Examination) -> Survey | None:
    """The modules of a checkpoint that was examined; None where it is not known how to read it."""
    if found.quantization is None or found.outline is None:
        return None
    samples, dtype = thin(found.checkpoint, found.quantization, found.outline), choose_dtype(found.checkpoint)
    modules = tuple(list_modules(samples, found.quantization, found.outline, dtype))
    return Survey(samples, found.quantization, found.outline, modules, dtype)
