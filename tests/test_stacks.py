"""Logits of all teachers in one array: the same bits in memory and mapped, held once, and nothing of it believed."""

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkd.errors import CacheError
from rlkd.logit_cache import LogitCache, open_cache, stacks
from rlkd.records import file_hash

ROWS, TEACHERS, CLASSES = 500, 3, 7
SAVED = Path(__file__).parent / "version_before" / "saved" / "cache"


def write_cache(folder: Path, logits: Any) -> Path:
    """A cache of logits (N, K, C) as ``rlkd cache`` leaves it."""
    folder.mkdir()
    names = [f"logits-{k}.npy" for k in range(logits.shape[1])]
    for k, name in enumerate(names):
        np.save(folder / name, logits[:, k])
    manifest = {
        "format_version": 1,
        "task": "t",
        "data": "d",
        "labels": [f"c{c}" for c in range(logits.shape[2])],
        "teachers": [{"name": f"t{k}", "identity": str(k), "file": name} for k, name in enumerate(names)],
        "affinity": False,
        "files": {name: file_hash(folder / name) for name in names},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def random_logits(dtype: str = "float32", rows: int = ROWS) -> Any:
    return np.random.default_rng(0).standard_normal((rows, TEACHERS, CLASSES), dtype=np.float32).astype(dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache", random_logits())


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], LogitCache]:
    """Opens a cache that does not fit in memory, and is copied in several pieces."""
    monkeypatch.setattr(stacks, "RAM_LIMIT", 0)
    monkeypatch.setattr(stacks, "PIECE_BYTES", 10_000)
    return open_cache


def everything(cache: LogitCache) -> torch.Tensor:
    return cache.rows(torch.arange(len(cache)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_stack_and_arrays_one_by_one_give_the_same_bits(dtype: str, tmp_path: Path, mapped: Any) -> None:
    logits = random_logits(dtype)
    folder = write_cache(tmp_path / "cache", logits)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    cache = mapped(folder)
    (stack,) = folder.glob("stacked-*.npy")
    assert np.load(stack).dtype == np.dtype(dtype)
    assert {name: (folder / name).read_bytes() for name in before} == before
    arrays = LogitCache([logits[:, k] for k in range(TEACHERS)], cache.teacher_names)  # beyond the limit: as they are
    assert type(arrays._logits) is stacks.SeparateLogits
    in_memory = LogitCache(stacks.StackedLogits(logits), cache.teacher_names)
    exact, ids = torch.from_numpy(logits.astype(np.float32)), torch.tensor([7, 0, 499, 7])
    for one in (cache, arrays, in_memory):
        assert one.rows(ids).dtype == torch.float32
        assert torch.equal(one.rows(ids), exact[ids])
        assert torch.equal(one.pick(["t2", "t0"]).rows(ids), exact[ids][:, [2, 0]])
        assert torch.equal(one.pick(["t2", "t0"]).pick(["t0"]).head(8).rows(ids[:2]), exact[ids[:2], :1])
        assert torch.equal(everything(one.pick(["t1"]).take(ids.numpy())), exact[ids][:, [1]])
        with pytest.raises(IndexError):
            one.head(499).rows(ids)


def test_memory_holds_what_the_files_hold(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stacks, "PIECE_BYTES", 10_000)
    for dtype in ("float32", "float16"):
        logits = np.asfortranarray(random_logits(dtype))  # as some write them
        cache = open_cache(write_cache(tmp_path / dtype, logits))
        assert cache._logits.stack.dtype == dtype
        assert np.array_equal(cache._logits.stack, logits)
        assert not list((tmp_path / dtype).glob(stacks.STACKS))


def test_a_cache_of_the_version_before_gets_its_stack(tmp_path: Path, mapped: Any) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    for path in SAVED.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    cache = mapped(folder)
    assert list(folder.glob("stacked-*.npy"))
    for k, entry in enumerate(manifest["teachers"]):
        assert np.array_equal(everything(cache)[:, k].numpy(), np.load(folder / entry["file"]))


def test_a_stack_is_made_once_and_a_damaged_one_again(folder: Path, mapped: Any, caplog: Any) -> None:
    exact = everything(mapped(folder))
    (stack,), (note,) = folder.glob("stacked-*.npy"), folder.glob("stacked-*.json")
    made = stack.stat().st_mtime_ns
    mapped(folder)
    assert stack.stat().st_mtime_ns == made
    assert not caplog.messages
    content = stack.read_bytes()
    for damaged, path in ((content[:-1] + b"\x00", stack), (content[:90], stack), (b"{", note), (b"[]", note)):
        path.write_bytes(damaged)
        assert torch.equal(everything(mapped(folder)), exact)
        assert caplog.messages.pop() == f"{stack} is not what was written; it is made again"
        assert stack.read_bytes() == content
        caplog.clear()
    note.unlink()  # its maker was killed
    assert torch.equal(everything(mapped(folder)), exact)
    assert note.is_file()


def test_no_stack_is_made_of_damaged_arrays(folder: Path, mapped: Any) -> None:
    path = folder / "logits-1.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CacheError, match=r"damaged: logits-1\.npy"):
        mapped(folder)
    assert not list(folder.glob(stacks.STACKS))


def test_where_no_stack_can_be_written_arrays_are_read_and_that_is_told(folder: Path, mapped: Any, caplog: Any) -> None:
    exact = everything(mapped(folder))
    (stack,) = folder.glob("stacked-*.npy")
    stack.unlink()
    stack.mkdir()  # nothing can be written there, whoever runs this
    cache = mapped(folder)
    assert type(cache._logits) is stacks.SeparateLogits
    assert torch.equal(everything(cache), exact)
    assert "logits of 3 teachers are read one by one, which is slower: expected to write" in caplog.text


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_open_a_cache_at_once_make_one_stack(folder: Path, mapped: Any) -> None:
    children = [multiprocessing.get_context("fork").Process(target=mapped, args=(folder,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(list(folder.glob(stacks.STACKS))) == 2
    assert not list(folder.glob(".*.tmp"))


GROWTH = """
import sys
from pathlib import Path
from rlkd.logit_cache import open_cache, stacks

def kib(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])

small, large = map(Path, sys.argv[1:3])
open_cache(small)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
before = kib("VmRSS")
cache = open_cache(large)
print((kib("VmHWM") - before) * 1024 / sum(path.stat().st_size for path in large.glob("logits-*.npy")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_cache_is_held_in_memory_once(dtype: str, folder: Path, tmp_path: Path) -> None:
    rows = 120 * 2**20 // (TEACHERS * CLASSES * np.dtype(dtype).itemsize)
    large = write_cache(tmp_path / "large", np.ones((rows, TEACHERS, CLASSES), dtype=dtype))
    command = [sys.executable, "-c", GROWTH, str(folder), str(large)]
    growth = float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert 0.95 < growth < 1.2


def test_reading_takes_no_longer_than_from_a_map_of_numpy(folder: Path, mapped: Any) -> None:
    in_memory = LogitCache(stacks.StackedLogits(random_logits()), ["a", "b", "c"])
    (stack,) = folder.glob("stacked-*.npy") if mapped(folder) else ()
    plain, on_disk = np.load(stack, mmap_mode="r"), mapped(folder)
    reads: list[Callable[[torch.Tensor], Any]] = [lambda ids: torch.from_numpy(plain[ids.numpy()])]
    reads += [in_memory.rows, on_disk.rows]
    took = np.empty((300, len(reads)))
    for call, ids in enumerate(torch.randint(ROWS, (300, 64), generator=torch.Generator().manual_seed(0))):
        for way in np.roll(range(len(reads)), call):  # each goes first at times
            start = time.process_time()
            reads[way](ids)
            took[call, way] = time.process_time() - start
    by_hand, *ours = np.median(took, axis=0)
    assert max(ours) <= by_hand
