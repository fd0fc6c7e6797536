"""An Optuna study in a directory, on which several processes work and of which any may be killed.

Start the same command again, on this machine or on another one that sees the directory, and there
is one worker more. Each holds a lock on a file of its own, which the system lets go of when the
process ends in whatever way, so that a trial whose worker is gone is known at once, without waiting
for a timeout: it is given up and its values go to the next free worker. Handing out trials is
done by one process at a time, so that there are never more than asked for.
"""

import hashlib
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import qmc

from src import cli
from src.artifacts.files import write_table
from src.artifacts.lock import drop, locked, take
from src.config.search import Range, Search
from src.errors import UserError
from src.progress import progress

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
Objective = Callable[[Trial, dict], float]
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Worker:
    """This process's place in the study; `name` is what its trials are marked with."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.name = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"  # ids come back
        self.file = directory / "workers" / self.name

    def __enter__(self) -> "Worker":
        take(self.file)
        return self

    def __exit__(self, *error) -> None:
        self.file.unlink(missing_ok=True)
        drop(self.file)

    def others(self) -> list[str]:
        """Workers that are alive, without this one."""
        names = sorted(path.name for path in (self.directory / "workers").glob("*"))
        return [name for name in names if name != self.name and self.alive(name)]

    def alive(self, name: str | None) -> bool:
        """Whether a worker still holds its lock."""
        if name == self.name:
            return True
        path = self.directory / "workers" / (name or "")
        if not path.is_file():
            return False
        if take(path) is not None:
            return True
        drop(path)
        return False


def open_study(directory: Path, spec: Search, about: dict, sign: int = 1) -> optuna.Study:
    """The study of the directory; a new one keeps `about` with it. sign: -1 where a lower score is
    better"""
    url = f"sqlite:///{(directory / 'study.db').resolve()}"
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 120}})
    study = optuna.create_study(
        study_name="search",
        storage=storage,
        direction="maximize" if sign > 0 else "minimize",
        pruner=_pruner(spec),
        load_if_exists=True,
    )
    if not study.user_attrs:
        for key, value in about.items():
            study.set_user_attr(key, value)
    return study


def first_values(spec: Search, now: dict) -> list[dict]:
    """What is tried before the model of the scores is asked: the config's own values `now`, as far
    as they are in range, then points of a scrambled Halton sequence, spread evenly."""
    own = {k: now[k] for k, span in spec.keys.items() if inside(span, now.get(k))}
    points = qmc.Halton(len(spec.keys), rng=spec.seed).random(_first(spec) - 1)  # in [0, 1)
    spans = spec.keys.items()
    return [own] + [
        {k: _at(span, now.get(k), float(u)) for (k, span), u in zip(spans, point, strict=True)}
        for point in points
    ]


def _at(span: Range, now, u: float) -> int | float | str | bool | None:
    """The value at the share u of the way from low to high."""
    if span.choices is not None:
        return span.choices[int(u * len(span.choices))]
    if span.log:
        value = float(np.exp(np.log(span.low) + u * (np.log(span.high) - np.log(span.low))))
    else:
        value = span.low + u * (span.high - span.low)
    value = min(max(value, span.low), span.high)
    return round(value) if _whole(span, now) else value


def _whole(span: Range, now) -> bool:
    """Both ends are whole numbers, and the config's own value is none with a point."""
    return isinstance(span.low, int) and isinstance(span.high, int) and not isinstance(now, float)


def _first(spec: Search) -> int:
    """Trials that are made before the model of the scores is asked."""
    return min(10, max(4, spec.trials // 3))


def _pruner(spec: Search) -> optuna.pruners.BasePruner:
    if spec.pruner == "none":
        return optuna.pruners.NopPruner()
    warmup = (spec.epochs or 0) // 3
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=warmup)


def work(
    study: optuna.Study, spec: Search, now: dict, worker: Worker, run: Objective, wait: float = 2.0
) -> None:
    """Take trials until `spec.trials` are done, by this worker and the others.

    now: the config's own values by key · run: values → score; it may raise
    TrialPruned · wait: seconds between looks at what the others are doing
    """
    waiting, bar = False, progress(spec.trials, "search", "trials")
    while True:
        with locked(worker.directory):
            trial = next_trial(study, spec, now, worker)
            running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        if trial is None and not running:
            bar.close()
            return
        if trial is None:
            if not waiting:
                cli.say(f"waiting for the last {running} trials of {worker.others()}")
            waiting = True
            time.sleep(wait)
            continue
        try:
            study.tell(trial, run(trial, trial.params))
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        bar.update()
        with locked(worker.directory):
            write_table(worker.directory / "trials.csv", table(study, spec))


def next_trial(study: optuna.Study, spec: Search, now: dict, worker: Worker) -> Trial | None:
    """The next trial with its values, or None when all are done or being worked on."""
    for lost in study.get_trials(states=(TrialState.RUNNING,)):
        if not worker.alive(lost.user_attrs.get("worker")):
            values = lost.system_attrs.get("fixed_params", {}) | lost.params
            study.tell(lost.number, state=TrialState.FAIL)
            study.enqueue_trial(values, user_attrs={"origin": origin(lost)})
    taken = study.get_trials(deepcopy=False, states=(*DONE, TrialState.RUNNING))
    if len(taken) >= spec.trials:
        return None
    first = first_values(spec, now)
    if len(taken) < len(first) and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial(first[len(taken)])
    study.sampler = _sampler(spec, len(taken))
    trial = study.ask()
    trial.set_user_attr("worker", worker.name)
    for key, span in spec.keys.items():
        suggest(trial, key, span, now.get(key))
    return trial


def origin(trial: FrozenTrial | Trial) -> int:
    """The number under which these values were first tried."""
    return trial.user_attrs.get("origin", trial.number)


def _sampler(spec: Search, taken: int) -> optuna.samplers.TPESampler:
    """Seeded per trial, so that a study that was stopped goes on as if it had not been."""
    digest = hashlib.sha256(f"{spec.seed}/{taken}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little")
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_first(spec))


def suggest(trial: Trial, key: str, span: Range, now) -> int | float | str | bool | None:
    if span.choices is not None:
        return trial.suggest_categorical(key, list(span.choices))
    if _whole(span, now):
        return trial.suggest_int(key, span.low, span.high, log=span.log)
    return trial.suggest_float(key, span.low, span.high, log=span.log)


def inside(span: Range, value) -> bool:
    """Whether a range has this value."""
    if span.choices is not None:
        return value in span.choices
    return isinstance(value, int | float) and span.low <= value <= span.high


def table(study: optuna.Study, spec: Search) -> pd.DataFrame:
    """One row per trial that has ended or runs: trial, state, score, the values, epochs, seconds,
    worker and note."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state in (TrialState.WAITING, TrialState.FAIL):
            continue
        ended = trial.datetime_complete or trial.datetime_start
        rows.append(
            {"trial": trial.number, "state": trial.state.name.lower(), "score": trial.value}
            | {key: trial.params.get(key) for key in spec.keys}
            | {"epochs": trial.last_step, "seconds": (ended - trial.datetime_start).total_seconds()}
            | {key: trial.user_attrs.get(key, "") for key in ("worker", "note")}
        )
    return pd.DataFrame(rows)


def winner(study: optuna.Study) -> FrozenTrial:
    """The best trial, the first of equals. Errors: UserError when none was trained to its end."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        notes = [t.user_attrs.get("note") for t in study.get_trials(deepcopy=False)]
        last = next((note for note in reversed(notes) if note), "all were pruned")
        raise UserError(f"no trial of the search came to its end; the last said: {last}")
    sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
    return max(complete, key=lambda t: (sign * t.value, -t.number))
