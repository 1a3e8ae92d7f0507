"""The roundings of inputs that methods have in common: integers and floats, with stored scales or scales of their own.

Both give codes and fake values out of one function, so that the codes times their scales are the fake values, but for
the rounding of that product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qload.torch.activations import Agree, Way, count_steps, fake_quantize, join_groups, split_groups
from qload.torch.floats import encode_e2m1


@dataclass(frozen=True, slots=True)
class DynamicRounding(Way):
    """To `bits` bits with scales found in x: of tokens, of groups of features, or of the tensor.

    Scales are rounded as `fake_quantize_dynamic` has it; a stored scale is the scale of scales.
    """

    @property
    def dtype(self) -> torch.dtype:
        """See `choose_dtype`."""
        return choose_dtype(self.bits, self.is_float, self.symmetric)

    @property
    def is_static(self) -> bool:
        return False

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        """Codes [tokens, features], and scales [tokens, groups], [tokens, 1] or []. E2M1 needs even features."""
        steps, found = self.count(split_groups(x, self.group), scale, agree)
        codes = encode(join_groups(steps, self.group, x.shape[-1]), self.dtype)
        return codes, found if self.group is None or self.by_tensor else found.squeeze(-1)


@dataclass(frozen=True, slots=True)
class StaticRounding:
    """To `bits` bits with the stored scale, which broadcasts against x.

    With `has_zero`, what is stored is the scale and the zero-point, [2], in the scale's dtype, which holds both.
    """

    bits: int
    is_float: bool
    has_zero: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """See `choose_dtype`."""
        return choose_dtype(self.bits, self.is_float, not self.has_zero)

    @property
    def group(self) -> None:
        return None

    @property
    def is_static(self) -> bool:
        return True

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        """Codes [tokens, features], and the scale. Raises ValueError without one."""
        step, zero = self._read(scale)
        return encode(count_steps(x, step, zero, self.bits, self.is_float), self.dtype), step

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:
        return fake_quantize(x, *self._read(scale), self.bits, self.is_float)

    def _read(self, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if scale is None:
            raise ValueError("inputs are rounded with a stored scale, and there is none")
        return (scale[0], scale[1]) if self.has_zero else (scale, None)


def choose_dtype(bits: int, is_float: bool, symmetric: bool) -> torch.dtype:
    """What codes are stored as: int8; float8_e4m3fn for floats of 6 and 8 bits; uint8 for two of 4 bits.

    Zero-points are subtracted already, so that codes that have them are wider: int16, int32 beyond 8 bits, or float32.
    No kernel multiplies these as they are.
    """
    if is_float:
        if not symmetric:
            return torch.float32
        return torch.uint8 if bits == 4 else torch.float8_e4m3fn
    if bits > 8:
        return torch.int32
    return torch.int8 if symmetric else torch.int16


def encode(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiples of scales, floats, as codes of `dtype`; as uint8 two of E2M1, that of the even column low."""
    if dtype is not torch.uint8:
        return steps.to(dtype)
    codes = encode_e2m1(steps)
    return codes[..., ::2] | codes[..., 1::2] << 4
