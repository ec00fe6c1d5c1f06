"""The ggml types that are read, by their number in a GGUF file."""

from dataclasses import dataclass

SUPER_BLOCK = 256  # elements in a block of the K-quants


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One ggml type: `elements` consecutive weights of a row take `num_bytes`."""

    name: str
    elements: int
    num_bytes: int


FORMATS = {
    0: BlockFormat("F32", 1, 4),
    1: BlockFormat("F16", 1, 2),
    2: BlockFormat("Q4_0", 32, 18),
    3: BlockFormat("Q4_1", 32, 20),
    6: BlockFormat("Q5_0", 32, 22),
    7: BlockFormat("Q5_1", 32, 24),
    8: BlockFormat("Q8_0", 32, 34),
    10: BlockFormat("Q2_K", SUPER_BLOCK, 84),
    11: BlockFormat("Q3_K", SUPER_BLOCK, 110),
    12: BlockFormat("Q4_K", SUPER_BLOCK, 144),
    13: BlockFormat("Q5_K", SUPER_BLOCK, 176),
    14: BlockFormat("Q6_K", SUPER_BLOCK, 210),
    16: BlockFormat("IQ2_XXS", SUPER_BLOCK, 66),
    17: BlockFormat("IQ2_XS", SUPER_BLOCK, 74),
    18: BlockFormat("IQ3_XXS", SUPER_BLOCK, 98),
    19: BlockFormat("IQ1_S", SUPER_BLOCK, 50),
    20: BlockFormat("IQ4_NL", 32, 18),
    21: BlockFormat("IQ3_S", SUPER_BLOCK, 110),
    22: BlockFormat("IQ2_S", SUPER_BLOCK, 82),
    23: BlockFormat("IQ4_XS", SUPER_BLOCK, 136),
    29: BlockFormat("IQ1_M", SUPER_BLOCK, 56),
    30: BlockFormat("BF16", 1, 2),
    34: BlockFormat("TQ1_0", SUPER_BLOCK, 54),
    35: BlockFormat("TQ2_0", SUPER_BLOCK, 66),
}
