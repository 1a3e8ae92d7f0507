"""Rules of the config: what it says, where, and in which words."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error("QL101", Tier.HEADERS, "quantized tensors, and no quantization config"),
    warning("QL102", Tier.CONFIG, "the quantization config is only in a side file, or nested"),
    error("QL103", Tier.CONFIG, "two sources of the quantization config disagree"),
    error("QL104", Tier.CONFIG, "a method, a format or a scheme that is not known"),
    error("QL105", Tier.CONFIG, "the config breaks its schema"),
    warning("QL106", Tier.CONFIG, "a field that is not known"),
    warning("QL107", Tier.HEADERS, "a target or an ignore entry that matches nothing"),
    warning("QL108", Tier.CONFIG, "the dtype is missing, or named twice and differently"),
)
