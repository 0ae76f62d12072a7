"""The Hugging Face hub: a name that is not there is refused within seconds, hub or no hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlkd.errors import one_line

logger = logging.getLogger(__name__)

HUB_TIMEOUT = 3.0
"""Seconds that the hub has to answer in."""


@contextmanager
def offline_if_unreachable(name: str | Path, kind: Literal["dataset", "model"]) -> Iterator[None]:
    """Use local copies only where one short request finds no hub: its clients would retry for half a minute.

    Args:
        name: Hub id; of something on disk, the hub is not asked.
        kind: What it names.
    """
    if Path(name).exists():
        yield
        return
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    places: list[Any] = [huggingface_hub.constants]
    if kind == "dataset":
        import datasets

        places.append(datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    api = huggingface_hub.HfApi()
    ask: Any = api.dataset_info if kind == "dataset" else api.model_info
    try:
        ask(str(name), timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        pass  # it answered, or need not; the loader finds the words for what is wrong
    except Exception as error:
        # connection errors of several libraries, and the client's own for offline mode
        logger.debug("no hub: %s", one_line(error))
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
