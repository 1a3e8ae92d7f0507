"""Whether the host may ask what a tensor has, for which it waits until the device has computed it."""

import torch
from torch import Tensor


def must_not_wait(x: Tensor) -> bool:
    """Whether x has no values yet: a graph is made, by the compiler or from a GPU's stream, or x is on meta."""
    if torch.compiler.is_compiling() or x.is_meta:
        return True
    return x.is_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
