"""What a GPU can do, as kernels ask before they are chosen."""

import sys

import torch


def miss_capability(device: torch.device, least: tuple[int, int], most: tuple[int, int] | None = None) -> str | None:
    """Why a kernel of NVIDIA's for capabilities from `least` on, up to `most`, does not run there; None if it does."""
    if torch.version.hip is not None:
        return "it is written for NVIDIA's GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < least:
        return f"it needs compute capability {_format(least)}, and this GPU has {_format(found)}"
    if most is not None and found > most:
        return f"it ends with compute capability {_format(most)}, and this GPU has {_format(found)}"
    return None


def miss_cuda(least: tuple[int, int]) -> str | None:
    """Why a kernel of CUDA's libraries from version `least` on is not there; None if it is."""
    version = torch.version.cuda
    if version is None or tuple(map(int, version.split(".")[:2])) < least:
        return f"it needs CUDA {_format(least)}, and torch is built with {version or 'none'}"
    return None


def takes_scales_of_rows(device: torch.device) -> bool:
    """Whether torch's own scaled product is relied on for a scale for each row of both operands.

    On 8.9 it ran beside the current stream before torch 2.12, on 12.x it was seen to be refused, and builds for
    Windows have none. Source: pytorch/pytorch#177651, #192707, and ATen's native/cuda/RowwiseScaledMM.cu.
    """
    if device.type != "cuda":
        return True
    major, _ = torch.cuda.get_device_capability(device)
    return major in (9, 10) and sys.platform != "win32"


def _format(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
