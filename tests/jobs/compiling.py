"""Work for ranks that compile what they compute."""

import torch
from torch import Tensor

import qload
from qload import Registry
from qload.quantization import unquantized
from qload.torch import ColumnParallelLinear, RowParallelLinear, Site
from qload.torch.parallel import Group


def compile_linears(group: Group, weight: Tensor, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What a layer of columns and one of rows answer, compiled whole and not."""
    site = Site(unquantized(Registry.discover()), "a", group)
    rows, columns = weight.shape
    layers = (
        ColumnParallelLinear(columns, rows, site, gather_output=True),
        RowParallelLinear(columns, rows, site, input_is_parallel=False),
    )
    answers = []
    for layer in layers:
        qload.load_tensors(layer, {"a.weight": weight}, site.quantization)
        with torch.no_grad():
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
            answers.append((compiled(x), layer(x)))
    return answers
