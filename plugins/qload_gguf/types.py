"""ggml's types of tensors, by the number that a file's header gives them.

Source: gguf-py's `GGMLQuantizationType` and `GGML_QUANT_SIZES`; for one bit, GPTQModel's `qlinear/gguf.py`, whose
Q1_0_g128 is ggml's Q1_0.
"""

from typing import NamedTuple


class BlockType(NamedTuple):
    """A type whose rows are blocks: so many elements, stored in so many bytes.

    `scales` are the places of the float16s that all values of a block are multiplied with or added to; that of IQ1_M,
    which is spread over four words, is not among them.
    """

    name: str
    elements: int
    nbytes: int
    scales: tuple[int, ...] = ()


VALUES: dict[int, str] = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
"""Types that hold values as they are, by their codes in safetensors."""

BLOCKS: dict[int, BlockType] = {
    2: BlockType("Q4_0", 32, 18, (0,)),
    3: BlockType("Q4_1", 32, 20, (0, 2)),
    6: BlockType("Q5_0", 32, 22, (0,)),
    7: BlockType("Q5_1", 32, 24, (0, 2)),
    8: BlockType("Q8_0", 32, 34, (0,)),
    10: BlockType("Q2_K", 256, 84, (80, 82)),
    11: BlockType("Q3_K", 256, 110, (108,)),
    12: BlockType("Q4_K", 256, 144, (0, 2)),
    13: BlockType("Q5_K", 256, 176, (0, 2)),
    14: BlockType("Q6_K", 256, 210, (208,)),
    16: BlockType("IQ2_XXS", 256, 66, (0,)),
    17: BlockType("IQ2_XS", 256, 74, (0,)),
    18: BlockType("IQ3_XXS", 256, 98, (0,)),
    19: BlockType("IQ1_S", 256, 50, (0,)),
    20: BlockType("IQ4_NL", 32, 18, (0,)),
    21: BlockType("IQ3_S", 256, 110, (0,)),
    22: BlockType("IQ2_S", 256, 82, (0,)),
    23: BlockType("IQ4_XS", 256, 136, (0,)),
    29: BlockType("IQ1_M", 256, 56),
    34: BlockType("TQ1_0", 256, 54, (52,)),
    35: BlockType("TQ2_0", 256, 66, (64,)),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
    41: BlockType("Q1_0", 128, 18, (0,)),
}

SHORT_SIGNS = BlockType("Q1_0_g32", 32, 6, (0,))
"""GPTQModel's own Q1_0, of 32 elements, which no file of ggml has."""

BY_NAME: dict[str, BlockType] = {block.name: block for block in (*BLOCKS.values(), SHORT_SIGNS)}
