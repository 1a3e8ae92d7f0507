"""Rules of the documents beside 4-bit weights, and of how int8 ones lie: found while a checkpoint is loaded."""

from qload.catalogue.rule import Tier, error

UNREADABLE = error(
    "BNB001",
    Tier.DATA,
    "a quantization state that cannot be read",
    failure="The document beside a 4-bit weight says its blocks, its shape and its dtype: without it nobody knows how "
    "to read the weight.",
    cure="Save the model again, or download the file again: the document is damaged, or of another tool.",
    needs_load=True,
)
CONTRADICTORY = error(
    "BNB002",
    Tier.DATA,
    "a quantization state that contradicts its layer",
    failure="The document says another shape, type or size of blocks than the tensors beside it have: the weight would "
    "be read with the scales of other blocks.",
    cure="Take weight and document from one checkpoint: they were put together from several.",
    needs_load=True,
)
KERNEL_LAYOUT = error(
    "BNB003",
    Tier.DATA,
    "an int8 weight in the layout of a kernel",
    failure="Its rows lie as a kernel of one kind of GPU wants them: read row by row, every weight is another one.",
    cure="Save the model again with the release of bitsandbytes that wrote it, row by row.",
    needs_load=True,
)
RULES = (UNREADABLE, CONTRADICTORY, KERNEL_LAYOUT)
