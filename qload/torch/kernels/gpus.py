"""What a GPU can do, as kernels ask before they are chosen."""

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


def _format(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
