"""The joint search finds what the chain cannot, is nested, goes on, and keeps nothing of noise."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import src.posthoc.joint as joint
from src.artifacts.work import RUNS
from src.fusion import STEPS, build_steps
from src.fusion.step import State, Step
from src.fusion.store import load_recipe
from src.posthoc.calibrate import posthoc
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from src.posthoc.joint import Space, studies_of, try_jointly
from tests.fabricate import (
    DATASET,
    config,
    digits_world,
    with_random_labels,
    write_dataset,
    write_experiment,
)

K, FOLDS = 3, 3


@dataclass(frozen=True)
class Keys:
    name: str


class Swap(Step):
    """Exchanges the logits of two classes: alone it only does harm."""

    pair: ClassVar[tuple[int, int]]

    def candidates(self):
        return [{"swap": True}]

    @classmethod
    def apply(cls, state, params):
        logits, (a, b) = state.logits.copy(), cls.pair
        logits[:, [a, b]] = logits[:, [b, a]]
        return logits


class First(Swap):
    pair = (0, 1)


class Second(Swap):
    pair = (1, 2)


class Fitted(Step):
    """Adds to each class the share of it among the images that it was fitted on."""

    seen: ClassVar[list] = []

    def fit(self, states, labels):
        self.seen.append(sum(map(len, labels)))
        return {"bias": np.bincount(np.concatenate(labels), minlength=K) / 1e6}

    @staticmethod
    def apply(state, params):
        return state.logits + params["bias"].astype(np.float32)


@pytest.fixture
def steps(monkeypatch):
    made = {"first": First, "second": Second, "fitted": Fitted}
    for name, kind in made.items():
        monkeypatch.setitem(STEPS, name, kind)
    return {name: kind(Keys(name), config()) for name, kind in made.items()}


def start_of(labels_of, seed=0, n=60) -> Start:
    """Random logits; labels [n] from them."""
    rng = np.random.default_rng(seed)
    states, labels = {}, {}
    for fold in range(FOLDS):
        logits = rng.normal(size=(n, K)).astype(np.float32)
        logits[np.arange(n), np.arange(n) % K] += 9  # each class is on top as often
        states[fold] = State(logits, None, "stage1")
        labels[fold] = labels_of(logits, rng)
    return Start("stage1", states, labels)


def rotated(logits, rng):
    """Right by both swaps, one after the other, where class 0 or 2 is on top, and as it is where
    class 1 is: either swap alone gains nothing."""
    return np.array([2, 1, 1])[logits.argmax(1)]


def searching(trials=12, **sections):
    return config(posthoc={"search": {"trials": trials}}, **sections)


def test_two_steps_that_only_help_together_are_found(tmp_path, steps):
    start, settings = start_of(rotated), searching()
    pair = [steps["first"], steps["second"]]
    chain = no_steps(start)
    for step in pair:
        assert not try_step(step, start, chain, settings).kept  # one after the other: neither
    trial = try_jointly(start, pair, chain, settings, tmp_path)
    assert trial.kept and trial.before == 0.25 and trial.after == 0.75
    whole = (("first", {"swap": True}), ("second", {"swap": True}))
    assert all(recipe == whole for recipe in trial.recipes.values())
    assert trial.searched[0] == ({"first": 0, "second": 0}, pytest.approx(trial.before))


def test_a_study_knows_nothing_of_the_fold_that_is_left_out(tmp_path, steps):
    """With fold 0's labels changed, what is chosen without fold 0 stays as it is, to the bit."""
    start = start_of(rotated)
    other = Start(start.name, start.states, start.labels | {0: (start.labels[0] + 1) % K})
    every = list(steps.values())
    one, two = (
        try_jointly(s, every, no_steps(s), searching(), tmp_path / str(i))
        for i, s in enumerate((start, other))
    )
    assert str(one.recipes[0]) == str(two.recipes[0])
    assert one.before != two.before


def test_what_fits_itself_is_scored_on_a_fold_it_was_not_fitted_on(steps):
    start = start_of(rotated)
    space = Space(start, [steps["fitted"]], "accuracy")
    Fitted.seen.clear()
    space.score({"fitted": 1}, (0, 1, 2))
    assert Fitted.seen == [120, 120, 120]  # two folds of 60 at a time, never all three
    space.score({"fitted": 0}, (0, 1, 2))
    space.score({"fitted": 1}, (0, 1, 2))
    assert len(Fitted.seen) == 3  # and fitted once


def test_a_trial_is_a_recipe_and_back():
    settings = config(posthoc={"steps": [{"name": "tau_norm", "grid": 5}, "temperature"]})
    rng = np.random.default_rng(0)
    head = {"stage1": ("linear", {"weight": rng.normal(size=(K, 4)).astype(np.float32)})}
    f = rng.normal(size=(30, 4)).astype(np.float32)
    state = State(f @ head["stage1"][1]["weight"].T, f, "stage1", head)
    start = Start("stage1", {0: state}, {0: rng.integers(0, K, 30)})
    space = Space(start, build_steps(settings), "accuracy")
    assert space.sizes() == {
        "tau_norm": len(space.candidates["tau_norm"]),
        "temperature": 1,
    }
    for number in range(1, len(space.candidates["tau_norm"]) + 1):
        values = {"tau_norm": number, "temperature": 0}
        assert space.values_of(space.recipe(values, (0,))) == values


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, steps, monkeypatch):
    start, every, settings = start_of(rotated, seed=3), list(steps.values()), searching(10)
    whole = try_jointly(start, every, no_steps(start), settings, tmp_path / "whole")
    real, calls = Space.score, []

    def stopped(self, values, folds):
        calls.append(str((values, folds)))
        if len(calls) == 14:
            raise KeyboardInterrupt
        return real(self, values, folds)

    monkeypatch.setattr(joint.Space, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        try_jointly(start, every, no_steps(start), settings, tmp_path / "parts")
    again = try_jointly(start, every, no_steps(start), settings, tmp_path / "parts")
    assert str(again.recipes) == str(whole.recipes) and again.searched == whole.searched
    twice = [call for call in set(calls) if calls.count(call) > 1]
    assert twice == [calls[13]]  # the interrupted trial; the finished ones are not scored again


def test_studies_of_other_settings_or_files_are_removed(tmp_path):
    one = studies_of(tmp_path, {"a": 1}, [("oof.npz", "12")])
    (one / "stage1").mkdir(parents=True)
    assert studies_of(tmp_path, {"a": 1}, [("oof.npz", "12")]) == one and one.is_dir()
    assert studies_of(tmp_path, {"a": 1}, [("oof.npz", "34")]) != one and not one.exists()


def test_noise_keeps_nothing(tmp_path):
    kept = 0
    for seed in range(20):
        start = start_of(lambda z, rng: rng.integers(0, K, len(z)), seed, n=100)
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(K, 4)).astype(np.float32)
        bias = rng.normal(size=K).astype(np.float32)
        heads = {"stage1": ("linear", {"weight": weight, "bias": bias})}
        states = {}
        for k, state in start.states.items():
            f = rng.normal(size=(len(state.logits), 4)).astype(np.float32)
            counts = np.array([90, 30, 10])
            states[k] = State(f @ weight.T + bias, f, "stage1", heads, counts)
        start = Start("stage1", states, start.labels)
        settings = config(
            posthoc={"steps": ["tau_norm", "logit_adjustment"], "search": {"trials": 8}}
        )
        steps = build_steps(settings)
        kept += try_jointly(start, steps, no_steps(start), settings, tmp_path / str(seed)).kept
    assert kept <= 4


def test_04_searches_jointly_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    world = with_random_labels(digits_world(), 1)
    write_dataset(world)
    write_experiment(world, "exp")
    settings = searching(4, stage2=[{"head": "crt"}, {"head": "ncm"}])
    table = posthoc(settings, "exp")
    rows = table[table["step"] == "joint"]
    assert len(rows) == 3 and set(rows["kept"]) == {"no"}
    said = capsys.readouterr().out.replace("\n  ", " ")
    assert re.search("stage1: balanced accuracy.*no gain beyond chance by .*joint", said), said
    assert load_recipe(RUNS / DATASET / "exp" / "posthoc")["head"] in {"stage1", "crt", "ncm"}
