"""Whether the host may ask what a tensor has, for which it waits until the device has computed it."""

import torch
from torch import Tensor


def must_not_wait(x: Tensor) -> bool:
    """Whether a graph is made of what is done with x: by the compiler, or captured from a GPU's stream."""
    if torch.compiler.is_compiling():
        return True
    return x.is_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
