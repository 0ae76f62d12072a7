"""Which rows were right, as text that a JSON line can hold."""

import numpy as np
from numpy.typing import NDArray


def pack_bits(correct: NDArray[np.bool_]) -> str:
    """Which rows were right, as hexadecimal digits; :func:`unpack_bits` reads it."""
    return f"{len(correct)}:{np.packbits(correct).tobytes().hex()}"


def unpack_bits(packed: str) -> NDArray[np.bool_]:
    """Bool array (N,) of what :func:`pack_bits` wrote."""
    count, _, digits = packed.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(bool)
