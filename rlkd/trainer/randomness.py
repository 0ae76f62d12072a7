"""What happens beside training draws nothing from the generators that training draws from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def generators_as_they_were() -> Iterator[None]:
    """Afterwards the generators of Python, numpy and torch, of the accelerator too, are where they were.

    A data loader that is read draws a seed for its workers even where it has none, and a collator may draw what it
    likes: a student with dropout would be another one, by what was only looked at.
    """
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = [] if found is None else [torch.accelerator.current_device_index()]
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if found is None else found.type):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
