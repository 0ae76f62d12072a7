"""The Hugging Face hub: a name that is not there is refused within seconds, hub or no hub."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlkd.errors import RlkdError, one_line

logger = logging.getLogger(__name__)

HUB_TIMEOUT = 3.0
"""Seconds that the hub has to answer in."""
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.skops", "*.npy")
"""Of a model's repository what we read: nothing that is unpickled, and no code."""
ID = re.compile(r"(?![.-])[\w.-]+(/(?![.-])[\w.-]+)?", re.ASCII)
"""The name of a repository, with its owner or, of the oldest, without."""


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


def may_be_id(name: Any) -> bool:
    """Whether something can only be meant for a repository on the hub: a string, nothing on disk, of that form."""
    return isinstance(name, str) and not Path(name).exists() and ID.fullmatch(name) is not None


def snapshot(
    name: str, *, expected: str, error: type[RlkdError], files: Sequence[str] = MODEL_FILES, **of_the_hub: Any
) -> Path:
    """The folder of a model's repository in the hub's cache, with files of one commit; those at its top alone.

    Args:
        name: Hub id.
        expected: What it was to name, for the error.
        error: The error to raise.
        files: Patterns of the files that are wanted.
        **of_the_hub: ``revision``, ``token``, ``cache_dir`` and the like.

    Raises:
        RlkdError: There is no such repository, or no hub and no copy of it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with offline_if_unreachable(name, "model"):
            return Path(snapshot_download(name, allow_patterns=[*files], ignore_patterns=["*/*"], **of_the_hub))
    except (HfHubHTTPError, HFValidationError, OSError) as problem:
        raise error(
            f"expected {expected} or a hub id, got {name!r}: no such folder, and the hub gave none "
            f"({one_line(problem)}); check the path"
        ) from problem
