"""Columns of images: decoded pictures of ``datasets``, or rows of numbers, as one array of bytes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkd.data.columns import Source
from rlkd.errors import TaskError

_EXPECTED = (
    "pictures (a datasets.Image feature) or whole numbers from 0 to 255 by height and width, or by height, width and "
    "channels (a flat row of them is one grey square)"
)
_MEND = "for files of pictures use dataset.cast_column({column!r}, datasets.Image())"
_MOST_CHANNELS = 4


def read_images(source: Source, column: str) -> NDArray[np.uint8]:
    """The image of every row, splits in their order.

    Args:
        source: The splits.
        column: Holds pictures, or numbers: (H, W), (H, W, channels) or H * W of a square.

    Returns:
        Shape (N, H, W, channels): one channel where all pictures are grey, else three.

    Raises:
        TaskError: It holds something else, or images of several sizes.
    """
    parts = [_images_of(data, column, f"{split} of {source.name!r}") for split, data in source.splits.items()]
    channels = max(part.shape[-1] for part in parts)
    parts = [np.repeat(part, channels, axis=-1) if part.shape[-1] == 1 else part for part in parts]
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise _sizes(column, repr(source.name), sorted(shapes))
    return np.concatenate(parts)


def _images_of(data: Any, column: str, where: str) -> NDArray[np.uint8]:
    """Images of one split, (N, H, W, channels)."""
    if type(data.features[column]).__name__ == "Image":
        return _decoded(data, column, where)
    try:
        values = np.array(data[column][:])
    except ValueError as error:  # rows of several lengths
        raise _sizes(column, where, []) from error
    if values.dtype.kind not in "iu" or values.ndim not in (2, 3, 4) or not values.size:
        first = repr(data[column][0]) if len(data) else "nothing"
        raise TaskError(
            f"column {column!r} of {where} must hold images, {_EXPECTED}, row 0 is {first:.40}; "
            f"{_MEND.format(column=column)}"
        )
    if values.min() < 0 or values.max() > 255:
        raise TaskError(
            f"column {column!r} of {where} must hold images of numbers from 0 to 255, got {values.min()} to "
            f"{values.max()}; scale them"
        )
    return _with_channels(values.astype(np.uint8), column, where)


def _with_channels(values: NDArray[np.uint8], column: str, where: str) -> NDArray[np.uint8]:
    """Numbers as they stand in a table to (N, H, W, channels)."""
    if values.ndim == 2:
        side = math.isqrt(values.shape[1])
        if side**2 != values.shape[1]:
            raise TaskError(
                f"column {column!r} of {where} must hold images, {_EXPECTED}, got flat rows of {values.shape[1]}, "
                "which are no square; store each as lists by height, width and channels"
            )
        values = values.reshape(-1, side, side)
    values = values[..., None] if values.ndim == 3 else values
    if values.shape[-1] > _MOST_CHANNELS:
        raise TaskError(
            f"column {column!r} of {where} must hold images by height, width and channels, got {values.shape[1:]}; put "
            "the channels last"
        )
    return values


def _decoded(data: Any, column: str, where: str) -> NDArray[np.uint8]:
    """Pictures as arrays; all in colour if one of them is."""
    images = [_picture(image, row, column, where) for row, image in enumerate(data[column])]
    if not images:
        return np.zeros((0, 1, 1, 1), dtype=np.uint8)
    if len({image.shape[:2] for image in images}) > 1:
        raise _sizes(column, where, sorted({image.shape for image in images}))
    channels = max(image.shape[-1] for image in images)
    stacked = np.empty((len(images), *images[0].shape[:2], channels), dtype=np.uint8)
    for row, image in enumerate(images):
        stacked[row] = image  # a grey one is repeated over the channels
    return stacked


def _picture(image: Any, row: int, column: str, where: str) -> NDArray[np.uint8]:
    if image is None:
        raise TaskError(f"column {column!r} of {where} must hold images, row {row} is empty; drop the row")
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def _sizes(column: str, where: str, shapes: list[tuple[int, ...]]) -> TaskError:
    told = " and ".join(_shown(shape) for shape in shapes[:3]) or "several"
    return TaskError(
        f"column {column!r} of {where} must hold images of one size, got {told}; resize them, for example with "
        f"dataset.map(lambda row: {{{column!r}: row[{column!r}].resize((64, 64))}})"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
