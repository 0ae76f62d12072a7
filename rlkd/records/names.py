"""Names that become folders: none leads out of the folder it is in, and no two are one."""

import hashlib
import re

from rlkd.errors import ConfigError

LONGEST = 120


def is_folder_name(name: object) -> bool:
    """Whether a name is one visible part of a path, on every system."""
    return isinstance(name, str) and len(name) <= LONGEST and re.fullmatch(r"[\w-][\w.-]*", name) is not None


def check_folder_name(name: object, where: str, what: str) -> str:
    """The name, or an error.

    Args:
        name: That becomes a folder.
        where: It was given, for the message.
        what: Has it, for the message.

    Raises:
        ConfigError: It would lead elsewhere, or be hidden.
    """
    if not isinstance(name, str) or not is_folder_name(name):
        raise ConfigError(
            f"{where}: every {what} needs a name of letters, digits, '_', '-' and '.', the last not at its "
            f"beginning and {LONGEST} signs at most, got {name!r:.80}; give one"
        )
    return name


def folder_of(name: str) -> str:
    """A folder for a name that comes with data: the name itself, or letters of it and a hash of all of it."""
    if is_folder_name(name):
        return name
    letters = re.sub(r"[^\w-]+", "-", name)[:40].strip("-")
    return f"{letters or 'name'}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
