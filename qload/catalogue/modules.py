"""Rules of modules: which tensors each has, and whether they are those that the config means."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error("QL201", Tier.HEADERS, "a tensor that the layer needs is not stored"),
    error("QL202", Tier.HEADERS, "a module that the config leaves unquantized is stored quantized"),
    warning("QL203", Tier.HEADERS, "an ignore entry that means different modules to different matchers"),
    error("QL204", Tier.HEADERS, "parts of a fused group are quantized differently"),
    error("QL205", Tier.HEADERS, "experts are missing, too many, stored twice, or of mixed layout"),
    warning("QL206", Tier.HEADERS, "tied in the config, but a head is stored"),
    warning("QL207", Tier.HEADERS, "scales of keys and values that are partial, or that nothing maps"),
    warning("QL208", Tier.HEADERS, "a bias too many or too few"),
    error("QL209", Tier.HEADERS, "config and tensors name modules with different prefixes"),
    error("QL210", Tier.HEADERS, "a stored tensor that nothing reads", waivable=True),
    error("QL211", Tier.HEADERS, "a module whose tensors cannot be put into this model", needs_model=True),
)
