"""The rules that need nothing but config and headers, and look at the checkpoint as a whole."""

from collections.abc import Callable, Iterable

from qload.examination import Examination
from qload.findings import Finding
from qload.validation.biases import find_odd_biases
from qload.validation.caches import find_odd_caches
from qload.validation.experts import find_odd_experts
from qload.validation.fused import find_mixed_parts
from qload.validation.heads import find_needless_heads
from qload.validation.layers import find_absent_layers
from qload.validation.matchers import find_ambiguous_names
from qload.validation.names import find_idle_names
from qload.validation.prefixes import find_prefix_drift
from qload.validation.strangers import find_by_plugins

Finder = Callable[[Examination], Iterable[Finding]]

FINDERS: tuple[Finder, ...] = (
    find_idle_names,
    find_ambiguous_names,
    find_prefix_drift,
    find_mixed_parts,
    find_odd_experts,
    find_needless_heads,
    find_odd_caches,
    find_odd_biases,
    find_absent_layers,
    find_by_plugins,
)
"""Each finds what its module is about, in the order in which it is reported."""
