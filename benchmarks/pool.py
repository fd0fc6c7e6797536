"""Trainings side by side, each in a process of its own with its share of the cores."""

import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

from src.errors import UserError

Job = TypeVar("Job")
Work = Callable[[Job], dict[str, str]]


def run_all(work: Work, jobs: list[Job], at_once: int) -> Iterator[tuple[Job, str]]:
    """Each job with its problem ("" when it has none), as it ends.

    work: returns the parts that failed and why; whatever it raises is the job's problem alone
    """
    if at_once == 1 or len(jobs) < 2:
        yield from ((job, attempt(work, job)) for job in jobs)
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(attempt, work, job): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()


def attempt(work: Work, job: Job) -> str:
    try:
        failed = work(job)
    except UserError as error:
        return " ".join(str(error).split())
    except Exception as error:  # one method must not end a night of training
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return "; ".join(f"{part}: {why}" for part, why in failed.items())
