"""Trainings side by side, each in a process of its own with its share of the cores."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

Job = TypeVar("Job")


def run_all(work: Callable[[Job], str], jobs: list[Job], at_once: int) -> Iterator[tuple[Job, str]]:
    """Each job with what `work` returns for it ("" or its problem), as it ends."""
    if at_once == 1 or len(jobs) < 2:
        yield from ((job, work(job)) for job in jobs)
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()
