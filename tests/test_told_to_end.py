"""A command that is told to end writes what Ctrl-C would have it write, and ends by the signal."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rlkd.cli.ending import TOLD, unwinding_when_told
from rlkd.data import load_task, planted_logits
from rlkd.logit_cache import load_cache

OWN = """
import os, signal
class Told:
    def run(self, pool, bank, seed):
        bank.ask(0, pool.ids[:30])
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass
"""


def test_what_was_paid_for_is_a_cache_when_asking_is_told_to_end(tmp_path: Path) -> None:
    task = load_task("planted")
    np.save(tmp_path / "small.npy", planted_logits(task)[:, 0].astype(np.float32))
    (tmp_path / "own.py").write_text(OWN)
    words = "ask --task planted --teachers small.npy -o cache --quiet --budget 100 --strategy own:Told"
    start = "import rlkd.cli; rlkd.cli.main()"
    ended = subprocess.run([sys.executable, "-c", start, *words.split()], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGTERM, ended.stderr
    assert ended.stderr.strip() == "rlkd: told to end; the same command continues, with --resume where it has that flag"
    mask = load_cache(tmp_path / "cache", task).mask_rows(torch.arange(len(task.table)))
    assert mask is not None
    assert mask.sum() == 30


def test_who_handles_the_signal_keeps_it_and_another_thread_changes_nothing() -> None:
    seen: list[int] = []
    usual = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with unwinding_when_told():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert seen == [signal.SIGTERM]

    def elsewhere() -> None:
        with unwinding_when_told():
            seen.append(TOLD)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[1:] == [TOLD]
    with unwinding_when_told():
        assert signal.getsignal(signal.SIGTERM) is not usual
    assert signal.getsignal(signal.SIGTERM) is usual
    with pytest.raises(SystemExit), unwinding_when_told():
        raise SystemExit(1)  # is nobody's signal
