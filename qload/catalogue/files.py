"""Rules of files: headers, the index, and what lies in a folder."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    warning("QL001", Tier.HEADERS, "only pickled weights"),
    error("QL002", Tier.HEADERS, "a git-LFS pointer in place of the file"),
    error("QL003", Tier.HEADERS, "a header that cannot be read, or whose tensors overlap or leave holes"),
    error("QL004", Tier.HEADERS, "a truncated file"),
    error("QL005", Tier.HEADERS, "the index names a file that is not there"),
    error("QL006", Tier.HEADERS, "the index names a tensor that its file does not hold"),
    warning("QL007", Tier.HEADERS, "a stale index"),
    error("QL008", Tier.HEADERS, "one tensor in several files"),
    warning("QL009", Tier.HEADERS, "overlapping sets of weight files"),
    error("QL010", Tier.DATA, "a checksum differs from the published one"),
    error("QL011", Tier.HEADERS, "no weights"),
    error("QL012", Tier.CONFIG, "no config.json"),
    error("QL013", Tier.HEADERS, "a file that could not be read"),
)
