"""Lets torchvision be imported whose operators were built for another torch: nobody here calls them."""

from typing import Any

import torch

_register = torch.library.register_fake


def _skipping(name: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(name, str) and name.startswith("torchvision::"):
        return lambda function: function
    return _register(name, *args, **kwargs)


torch.library.register_fake = _skipping
