"""Rules of shapes and dtypes."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error(
        "QL301",
        Tier.HEADERS,
        "a group scale of the wrong shape",
        failure="A scale belongs to each group of input features: ceil(features / group size) of them for each "
        "output. With others, an engine copies what fits and leaves the rest as it was allocated, or gives columns "
        "the scale of another group.",
        cure="Make the config's group size the one that the weights were quantized with, or export the layer again.",
        limits="The last group may be short. -1 as group size is one group of all features.",
    ),
    error(
        "QL302",
        Tier.HEADERS,
        "a packed weight of the wrong shape",
        failure="The number of words says how many values there are. Where it is impossible for the bits and the "
        "layer's size, the config speaks of another width or the tensor is cut or turned; engines stop at a mismatch "
        "that names neither, or decode other values.",
        cure="Make the bits and the packing that the config names those of the tensors, or export the layer again.",
    ),
    error(
        "QL303",
        Tier.HEADERS,
        "a block scale of the wrong shape",
        failure="A grid of scales covers the weight block by block, the last of each row and column short. A grid "
        "that is turned, squeezed to one dimension or of another block size gives blocks the scales of others, and "
        "where the number of entries fits nothing fails.",
        cure="Make the config's block size the one of the tensors, and store the grid as [ceil(out / block), ceil(in "
        "/ block)].",
    ),
    error(
        "QL304",
        Tier.HEADERS,
        "a scale of the wrong dtype",
        failure="The bytes of a power of two are its exponent. Copied by value they become factors up to 254; floats "
        "taken for exponents are as wrong, and a narrower dtype overflows to infinity.",
        cure="Store the scale in the dtype that the scheme names, without converting bytes that are exponents by "
        "value.",
    ),
    error(
        "QL305",
        Tier.HEADERS,
        "zero-points of the wrong shape or dtype",
        failure="Engines expect zero-points packed as the scheme says. Unpacked ones, or none where the weights are "
        "asymmetric, are read as if they were: every weight of a group is then off by the same amount.",
        cure="Pack the zero-points as the format has them, or make the config say whether the scheme is symmetric.",
        limits="A symmetric scheme may leave them out.",
    ),
    warning(
        "QL306",
        Tier.HEADERS,
        "a layer that is fused on disk with one scale for all parts",
        failure="Engines expect a scale for each of the parts. They fill the first and leave the others as they were "
        "allocated, or must know by name that this layer is an exception; each part is also less exact than with a "
        "scale of its own.",
        cure="Store the parts as modules of their own, or repeat the scale for each.",
        limits="Scales by channel, group or block serve every part, and are no fault.",
    ),
    error(
        "QL307",
        Tier.HEADERS,
        "a tensor of the wrong shape",
        failure="Either the config is of another model size, or the tensor is cut, turned or padded. Engines stop at "
        "it late, without saying which, or copy the part that fits.",
        cure="Compare the sizes in config.json with those of the tensors, and export whichever is wrong again.",
    ),
    error(
        "QL308",
        Tier.HEADERS,
        "a tensor of the wrong dtype",
        failure="A dtype says how to read the bytes. Engines convert by value: packed words become floats, eight-bit "
        "floats become whole numbers, and nothing fails.",
        cure="Store the tensor in the dtype that the finding expects, or correct the format that the config names.",
    ),
)
