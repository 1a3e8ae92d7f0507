"""Rules of values: what only the data shows."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error("QL501", Tier.DATA, "a scale that is NaN, infinite, or negative where it cannot be"),
    error("QL502", Tier.PROBE, "a global scale that is zero, infinite, or of the other convention"),
    error("QL503", Tier.PROBE, "symmetric zero-points of another version than the config names"),
    error("QL504", Tier.DATA, "a packed weight that is zero throughout"),
    error("QL505", Tier.DATA, "an index or a zero-point out of range"),
    warning("QL506", Tier.PROBE, "parts of a fused layer whose shared scales differ"),
    warning("QL507", Tier.PROBE, "every scale of keys and values is 1"),
    error("QL508", Tier.PROBE, "a setting stored beside the weights is not the config's"),
)
