"""What is done to a module, as a frozen value."""

from dataclasses import dataclass

from qload_compressed_tensors.config import QuantizationArgs, QuantizationGroup, Strategy
from qload_compressed_tensors.formats import MARLIN_24, PLAIN_FORMATS, SPARSE_FORMATS, choose_format
from qload_compressed_tensors.quantizers import Quantizer, make_activation_quantizer, make_quantizer


@dataclass(frozen=True, slots=True)
class CompressedScheme:
    """Weights in one of the formats, what inputs and outputs are quantized with, and how zeros are left out, if so."""

    format: str
    weights: Quantizer
    inputs: Quantizer | None = None
    outputs: Quantizer | None = None
    sparsity: str | None = None

    def __str__(self) -> str:
        sparsity = MARLIN_24 if self.format == MARLIN_24 else self.sparsity
        words = [f"{self.weights} {sparsity}" if sparsity is not None else str(self.weights)]
        for what, quantizer in (("inputs", self.inputs), ("outputs", self.outputs)):
            if quantizer is not None:
                words.append(f"{what} {'dynamic' if quantizer.dynamic else 'static'} {quantizer}")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class SparseScheme:
    """Weights that are not quantized, of which the zeros are left out."""

    sparsity: str

    def __str__(self) -> str:
        return self.sparsity


@dataclass(frozen=True, slots=True)
class CacheScheme:
    """How an attention's keys and values are quantized."""

    states: Quantizer

    def __str__(self) -> str:
        return f"kv cache {'dynamic' if self.states.dynamic else 'static'} {self.states}"


Scheme = CompressedScheme | SparseScheme | CacheScheme


def make_scheme(group: QuantizationGroup, format: str | None, sparsity: str | None) -> CompressedScheme | None:
    """The scheme of a group, stored in its own format or the config's; None for one without quantizers.

    Zeros are left out of what is stored as `weight` alone. Raises ValueError for what is not supported.
    """
    inputs = _make_activations(group.input_activations, "inputs")
    outputs = _make_activations(group.output_activations, "outputs")
    if group.weights is None:
        if inputs is not None or outputs is not None:
            raise ValueError("activations are quantized and weights are not")
        return None
    weights = make_quantizer(group.weights)
    if weights.is_float and inputs is not None and not inputs.is_float:
        raise ValueError(f"weights are {weights} and inputs {inputs}: no kernel multiplies floats with integers")
    stored_as = choose_format(group.format or format, weights, inputs)
    return CompressedScheme(stored_as, weights, inputs, outputs, sparsity if stored_as in PLAIN_FORMATS else None)


def check_sparsity(format: str) -> str:
    """The format of a sparse weight. Raises ValueError for one that is not known."""
    if format not in SPARSE_FORMATS:
        raise ValueError(f"sparsity format {format!r} is not one of {', '.join(SPARSE_FORMATS)}")
    return format


def make_cache_scheme(args: QuantizationArgs) -> CacheScheme:
    """The scheme of a KV cache. Raises ValueError for what is not supported."""
    static = (Strategy.TENSOR, Strategy.ATTN_HEAD)
    return CacheScheme(make_activation_quantizer(args, "keys and values", static))


def _make_activations(args: QuantizationArgs | None, what: str) -> Quantizer | None:
    return None if args is None else make_activation_quantizer(args, what, (Strategy.TENSOR,))
