"""What a run costs is what it computes itself: no matter who else is at work on the machine."""

import hashlib
import os
import subprocess
import sys
import threading

import pytest
import torch

from rlkd.cost import NO_COST, UNKNOWN_COST, added, metered, share_of

BUSY = "import time\nprint(flush=True)\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def work() -> None:
    for _ in range(120):
        hashlib.sha256(bytes(1_000_000)).digest()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be bound to one core here")
def test_a_neighbour_on_the_same_core_takes_time_and_no_cpu_seconds():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with metered() as alone:
            work()
        start = [sys.executable, "-c", BUSY.format(60)]
        neighbours = [subprocess.Popen(start, stdout=subprocess.PIPE) for _ in range(3)]
        try:
            for neighbour in neighbours:
                assert neighbour.stdout is not None
                neighbour.stdout.readline()
            with metered() as crowded:
                work()
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.communicate()
    finally:
        os.sched_setaffinity(0, cores)
    assert crowded.seconds > 2 * crowded.cpu_seconds
    assert crowded.cpu_seconds == pytest.approx(alone.cpu_seconds, rel=0.3)


def test_threads_and_children_that_ended_are_counted():
    with metered() as one:
        work()
    with metered() as both:  # hashing leaves the interpreter's lock alone
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert both.cpu_seconds == pytest.approx(2 * one.cpu_seconds, rel=0.4)
    with metered() as child:
        subprocess.run([sys.executable, "-c", BUSY.format(0.3)], check=True)
    assert child.cpu_seconds > 0.29


def test_every_optimisation_step_is_counted_while_it_is_measured_and_by_every_meter():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizers = [torch.optim.AdamW([weight]), torch.optim.SGD([weight], lr=0.1)]

    def steps(count: int) -> None:
        for _ in range(count):
            for optimizer in optimizers:
                weight.sum().backward()
                optimizer.step()

    with metered() as outer:
        steps(2)
        with metered() as inner:
            steps(3)
    steps(5)
    assert (inner.steps, outer.steps) == (6, 10)
    assert set(outer.record()) == {"seconds", "cpu_seconds", "steps"}


def test_what_is_unknown_of_a_part_is_unknown_of_the_sum():
    cost = {"seconds": 2.0, "cpu_seconds": 1.5, "steps": 10}
    assert added(cost, NO_COST) == cost
    assert added(cost, cost) == {"seconds": 4.0, "cpu_seconds": 3.0, "steps": 20}
    assert added(cost, UNKNOWN_COST) == UNKNOWN_COST
    assert added(cost, {**cost, "cpu_seconds": None}) == {"seconds": 4.0, "cpu_seconds": None, "steps": 20}
    assert share_of(cost, 0.5) == {"seconds": 1.0, "cpu_seconds": 0.75, "steps": 10}
