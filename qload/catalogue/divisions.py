"""Rules of tensor parallelism: what a rank's share would split."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error(
        "QL401",
        Tier.HEADERS,
        "a rank's share of the input features that splits a quantization group",
        failure="Two ranks would need one scale. Engines say so after the whole load, as with `The input size is not "
        "aligned with the quantized weight shape`, or round down in silence and multiply by the scales of other "
        "groups.",
        cure="Choose a number of ranks that the finding names as fitting, quantize with a smaller group size, or "
        "divide mixtures by whole experts.",
        limits="A share that ends where the features end may have a short last group.",
        needs_ranks=True,
    ),
    error(
        "QL402",
        Tier.HEADERS,
        "a rank's share of the output features that splits a packed word or a head",
        failure="A word holds the values of several rows, and half of it cannot be read; half a head's attention "
        "cannot be computed. Engines stop at an assertion about divisibility, or shift all that follows.",
        cure="Choose a number of ranks that the finding names as fitting.",
        limits="Fewer heads of keys and values than ranks are repeated, and no fault where the ranks are a multiple.",
        needs_ranks=True,
    ),
    error(
        "QL403",
        Tier.HEADERS,
        "a rank's share that splits a block that shares a scale",
        failure="The rows of a block come to lie on two ranks, and each of a fused layer's parts is cut for itself: "
        "engines stop with `is not divisible by weight quantization block_n`, or round the scales' offset down and "
        "multiply by the wrong ones without an error.",
        cure="Choose a number of ranks that the finding names as fitting, or divide mixtures by whole experts.",
        needs_ranks=True,
    ),
    warning(
        "QL404",
        Tier.HEADERS,
        "activation order under row parallelism",
        failure="A rank's columns belong to groups from all over the layer, so that each rank has to hold the scales "
        "of all groups. Engines that cut the scales like the weight compute nonsense; the others take a slower path.",
        cure="Quantize without activation order, or with groups that are fixed before the columns are sorted; or use "
        "one rank.",
        limits="Loads by qload are right in spite of it: such scales stay whole on every rank.",
        needs_ranks=True,
    ),
    warning(
        "QL405",
        Tier.HEADERS,
        "a rank's share that is no whole number of a fast kernel's tiles",
        failure="The engine falls back to a slower kernel without a word, and adding ranks makes the model slower; "
        "or it has no other, and refuses.",
        cure="Choose a smaller number of ranks, or divide mixtures by whole experts.",
        limits="Whatever computes it gives the same result: this is about speed.",
        needs_ranks=True,
    ),
)
