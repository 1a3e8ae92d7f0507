"""Rules of weights of which the zeros are left out: found while a checkpoint is loaded."""

from qload.catalogue.rule import Tier, error

BROKEN_MASK = error(
    "CT501",
    Tier.DATA,
    "a mask that does not keep the values that are stored",
    failure="The mask says where the stored values belong. With another number of bits than values, all that come "
    "after the first wrong one land in the wrong place.",
    cure="Download the checkpoint again, or compress it anew.",
    needs_load=True,
)
RULES = (BROKEN_MASK,)
