"""Rules of shapes and dtypes."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error("QL301", Tier.HEADERS, "the shape of a group scale"),
    error("QL302", Tier.HEADERS, "the shape of a packed weight"),
    error("QL303", Tier.HEADERS, "the shape of a block scale"),
    error("QL304", Tier.HEADERS, "the dtype of a scale"),
    error("QL305", Tier.HEADERS, "the shape or dtype of zero-points"),
    warning("QL306", Tier.HEADERS, "fused on disk, with one scale for all parts"),
    error("QL307", Tier.HEADERS, "the shape of a tensor"),
    error("QL308", Tier.HEADERS, "the dtype of a tensor"),
)
