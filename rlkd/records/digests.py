"""Keys: hashes of what something is made of, which name folders and tell one run from another."""

import hashlib
import json
from typing import Any, Literal

import xxhash


def digest(
    content: Any, digits: int = 8, *, algorithm: Literal["xxh3", "sha256"] = "xxh3", in_order: bool = False
) -> str:
    """A key of plain values: equal contents have equal keys, and any change gives another.

    Every key says which of the forms it has: folders and records that are on disk are found by it.

    Args:
        content: What JSON can hold.
        digits: Length of the key; at most 16 of xxh3, 64 of sha256.
        algorithm: The hash.
        in_order: The order of a mapping's keys counts too.

    Returns:
        Hexadecimal digits.
    """
    described = json.dumps(content, sort_keys=not in_order).encode()
    if algorithm == "xxh3":
        return xxhash.xxh3_64_hexdigest(described)[:digits]
    return hashlib.sha256(described).hexdigest()[:digits]
