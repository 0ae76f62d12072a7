"""Batches of a data set of pictures, made by the image processor that a trainer is given."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BaseImageProcessor, default_data_collator

PIXELS = "pixel_values"


class ImageCollator:
    """Turns rows with a picture into ``pixel_values`` and what else the rows hold.

    Args:
        processor: An image processor of transformers.
        column: Holds the pictures, as ``datasets`` decodes them.
        channels: Of the student: 1 reads them in grey, 3 in colour.
    """

    def __init__(self, processor: Any, column: str, channels: int) -> None:
        self.column = column
        self._processor, self._mode = processor, "L" if channels == 1 else "RGB"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of B rows; ``pixel_values`` have the shape (B, channels, H, W)."""
        pictures = [row[self.column].convert(self._mode) for row in rows]
        others: list[Any] = [{name: value for name, value in row.items() if name != self.column} for row in rows]
        made = self._processor(pictures, return_tensors="pt")
        return {PIXELS: made[PIXELS], **default_data_collator(others)}


def image_collator(processor: Any, data: Any, model: Any) -> ImageCollator | None:
    """The collator of a data set with one column of pictures, for a trainer whose processor is one of images.

    Args:
        processor: The trainer's ``processing_class``.
        data: Its training data.
        model: The student.

    Returns:
        None where the processor is another one, or the data hold no pictures, several, or ``pixel_values`` already.
    """
    features = getattr(data, "features", None) or {}
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if not isinstance(processor, BaseImageProcessor) or len(found) != 1 or PIXELS in features:
        return None
    return ImageCollator(processor, found[0], getattr(getattr(model, "config", None), "num_channels", 3))


def same_processing(one: Any, other: Any) -> bool:
    """Whether two image processors make the same of a picture, by their settings."""
    return bool(type(one) is type(other) and one.to_dict() == other.to_dict())
