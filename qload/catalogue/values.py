"""Rules of values: what only the data shows."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error(
        "QL501",
        Tier.DATA,
        "a scale that is NaN, infinite, or negative where it cannot be",
        failure="One NaN in one scale makes every logit NaN: greedy decoding repeats one token for ever, and a "
        "sampler stops with an error about probabilities. A negative one turns the weights of a whole group round.",
        cure="Quantize the layer again: an input that was zero throughout, or an overflow in a narrow dtype, is the "
        "usual reason.",
        limits="Some symmetric schemes make negative scales on purpose; a sign is a fault only where the method says "
        "that its scales have none. A size of 2^100 or more counts as infinite.",
    ),
    error(
        "QL502",
        Tier.PROBE,
        "a global scale that is zero, infinite, or of the other convention",
        failure="One producer stores the factor to multiply by (some ten-thousandths), another the one to divide by "
        "(some thousands), under names that converters confuse. Taken for the other, every weight of the layer is "
        "off by a factor of millions.",
        cure="Store the reciprocal, or make the config name the format whose convention the scale follows.",
    ),
    error(
        "QL503",
        Tier.PROBE,
        "symmetric zero-points of another version than the config names",
        failure="The first version of the format stores zero-points less one (0x77 at 4 bits), the second as they "
        "are (0x88). Read by the other, every weight is off by one step, and the model answers `!!!!`.",
        cure="Make `checkpoint_format` name the version that the zero-points are of.",
        limits="Speaks only of symmetric weights, whose zero-points can have one value alone.",
    ),
    error(
        "QL504",
        Tier.DATA,
        "a weight that is one number, or a scale that is zero, throughout",
        failure="The tensor was allocated and never written, or overwritten, and the layer gives out garbage. Zero is "
        "a code like any other: after the zero-point is taken off, it is the least value that a weight can have.",
        cure="Export the layer again; a quantizing job that ran out of memory or skipped an expert is the usual "
        "reason.",
        limits="Speaks of whole tensors of projections: zeros in a part of one are no fault, and tables of zeros may "
        "be ones that nobody reads.",
    ),
    error(
        "QL505",
        Tier.DATA,
        "an index or a zero-point out of range",
        failure="A kernel looks a group up by its index and reads past the end of the scales: an illegal memory "
        "access that stops the process, or whatever lies there taken for a scale.",
        cure="Export the layer again, and check that the group size did not change in between.",
    ),
    warning(
        "QL506",
        Tier.PROBE,
        "parts of a fused layer whose shared scales differ",
        failure="Kernels have one scale for the fused layer. Engines take the greatest and round the other parts "
        "again, or take the greatest and round nothing: accuracy is lost, or the parts come out too large.",
        cure="Quantize the parts together, so that the tool gives them one scale.",
        limits="Speaks only of scales by tensor; those by channel, group or block stay apart.",
    ),
    warning(
        "QL507",
        Tier.PROBE,
        "scales of keys and values that are all 1",
        failure="They were never calibrated, and stand there as the tool set them up. An eight-bit cache then cuts "
        "off great values and loses small ones.",
        cure="Calibrate the cache with data, or leave the scales and the cache's scheme out, so that an engine can "
        "find them itself.",
        limits="A few scales of exactly 1 among others are no fault.",
    ),
    error(
        "QL508",
        Tier.PROBE,
        "a setting stored beside the weights that is not the config's",
        failure="Readers that go by the config and those that go by the tensors decode the same bytes by different "
        "bits, group sizes or axes, and one of them gets other weights.",
        cure="Correct the config to what the layers were quantized with, or export the layer again.",
    ),
    error(
        "QL509",
        Tier.DATA,
        "a weight or a bias that is NaN or infinite",
        failure="It spreads through every layer above it: all logits are NaN. An 8-bit float has codes that are NaN, "
        "so that a block of bytes that was never written, or was overwritten, is many of them.",
        cure="Download or export the file again; where the original weights overflow a narrower dtype, keep them in "
        "bfloat16.",
        limits="Speaks of tensors named weight or bias, and of packed weights in floats; buffers may hold infinities. "
        "A size of 2^100 or more counts as one.",
    ),
)
