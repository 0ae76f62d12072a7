"""Where and how networks compute: devices, threads, precision. Needs torch alone, and so does who imports it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlkd.errors import ConfigError
from rlkd.records import rank_on_machine


def found_device(name: str) -> str:
    """What ``auto`` stands for on this machine: its accelerator, else the processor; other names stay as they are."""
    if name != "auto":
        return name
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def own_device(name: str | None) -> str | None:
    """The accelerator of this process among those that a launcher started on a machine; alone, as it is named."""
    rank, accelerator = rank_on_machine(), torch.accelerator.is_available()
    if rank == 0 or not accelerator or name not in (None, found_device("auto")):
        return name
    return f"{found_device('auto')}:{rank % torch.accelerator.device_count()}"


def check_device(name: str | None) -> None:
    """Refuse a device that this machine does not have, before anything is loaded.

    Args:
        name: For example ``"cpu"`` or ``"cuda:1"``. None: whichever there is.

    Raises:
        ConfigError: There is no such device here.
    """
    devices = ["cpu"]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        numbered = (f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))
        devices += [accelerator.type, *numbered]
    if name is not None and name not in devices:
        raise ConfigError(f"device must be one that this machine has ({', '.join(devices)}), got {name!r}; choose one")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread: small networks are no slower, and figures do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def mixed_precision(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Compute in bfloat16 where that is safe, if asked for; otherwise nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
