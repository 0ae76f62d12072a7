"""Which rows were right, and what was answered, as text that a JSON line can hold."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_bits(correct: NDArray[np.bool_]) -> str:
    """Which rows were right, as hexadecimal digits; :func:`unpack_bits` reads it."""
    return f"{len(correct)}:{np.packbits(correct).tobytes().hex()}"


def unpack_bits(packed: str) -> NDArray[np.bool_]:
    """Bool array (N,) of what :func:`pack_bits` wrote."""
    count, _, digits = packed.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8), count=int(count)).astype(bool)


def pack_classes(classes: NDArray[np.integer[Any]]) -> str:
    """Class indices >= 0, shape (N,), with as many bits each as the largest needs; :func:`unpack_classes` reads it."""
    width = max(1, int(classes.max(initial=0)).bit_length())
    bits = (classes[:, None] >> np.arange(width)) & 1
    return f"{width}:{pack_bits(bits.astype(bool).ravel())}"


def unpack_classes(packed: str) -> NDArray[np.int64]:
    """Class indices, int64 (N,), of what :func:`pack_classes` wrote."""
    width, _, digits = packed.partition(":")
    bits = unpack_bits(digits).reshape(-1, int(width))
    return np.asarray(bits @ (1 << np.arange(int(width))), dtype=np.int64)
