"""Rules of tensor parallelism: what a rank's share would split."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error("QL401", Tier.HEADERS, "a rank's share of the input features splits a quantization group", needs_ranks=True),
    error("QL402", Tier.HEADERS, "a rank's share of the output features splits a word or a head", needs_ranks=True),
    error("QL403", Tier.HEADERS, "a rank's share splits a block that shares a scale", needs_ranks=True),
    warning("QL404", Tier.HEADERS, "activation order under row parallelism", needs_ranks=True),
    warning("QL405", Tier.HEADERS, "a rank's share is no whole tiles of the fast kernel", needs_ranks=True),
)
