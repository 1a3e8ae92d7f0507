"""Rounds the keys and values that attentions of transformers hand to their caches, as a quantized cache would.

An attention's forward is given a stand-in for the cache, whether there is one or not: what goes in is rounded once,
and what is kept is what a quantized cache gives back.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qload.torch.layers import Layer

SCALES = "kv_scales"
"""The name, below an attention, of the layer that holds the scales of its keys and values."""
_CACHES = ("past_key_values", "past_key_value")
"""What transformers calls the argument, in its versions."""


class RoundingCache:
    """Stands in for a cache, or for none, inside one attention's forward."""

    def __init__(self, cache: Any, scales: Layer) -> None:
        self._cache = cache
        self._scales = scales

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Round, then keep, if there is a cache: all keys and values so far."""
        hook = self._scales.hooks.cache
        if hook is not None:
            keys, values = hook(self._scales.pieces()[0], keys, values)
        if self._cache is None:
            return keys, values
        found: tuple[Tensor, Tensor] = self._cache.update(keys, values, *args, **kwargs)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def has_cache(module: nn.Module) -> bool:
    """Whether an attention is handed a cache at all."""
    return _cache_argument(module) is not None


def count_heads(module: nn.Module) -> int:
    """The heads of an attention's keys and values, by its config; 1 where that does not say."""
    config = getattr(module, "config", None)
    names = ("num_key_value_heads", "num_attention_heads")
    counts = (getattr(config, name, None) for name in names)
    return next((count for count in counts if isinstance(count, int)), 1)


def quantize_caches(model: nn.Module) -> None:
    """Let every attention round its keys and values whose method has a way to."""
    for module in model.modules():
        scales = getattr(module, SCALES, None)
        if isinstance(scales, Layer) and scales.hooks.cache is not None and has_cache(module):
            module.register_forward_pre_hook(_stand_in, with_kwargs=True)


def _stand_in(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Replace the cache among an attention's arguments, unless activations are to be left alone."""
    scales = module.get_submodule(SCALES)
    name = _cache_argument(module)
    if not isinstance(scales, Layer) or not scales.quantize_activations or name is None:
        return None
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    given.arguments[name] = RoundingCache(given.arguments.get(name), scales)
    return given.args, given.kwargs


def _cache_argument(module: nn.Module) -> str | None:
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in _CACHES if name in parameters), None)
