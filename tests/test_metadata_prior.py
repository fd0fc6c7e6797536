"""A prior by columns beside the images: it says what their counts say, and of noise nothing."""

import numpy as np
import pandas as pd
import pytest

from src.artifacts.files import read_table, write_table
from src.errors import UserError
from src.fusion import STEPS, apply_recipe
from src.fusion.metadata import tables
from src.fusion.step import State
from src.fusion.store import load_recipe, save_recipe
from src.posthoc.calibrate import posthoc
from src.posthoc.crossfit import no_steps, try_step
from src.posthoc.inputs import Start
from tests.fabricate import config, digits_world, seal, step, write_dataset, write_experiment

KEYS = {"data": {"root": "data/raw/digits", "columns": ["country", "month"]}, "metric": "accuracy"}
APPLY = STEPS["metadata_prior"].apply
CLASSES = 6


def planted(columns_of, seed=0, n=450, folds=3, scale=1.0, balanced=False) -> Start:
    """Calibrated logits of features around class means, times `scale` or without the prior;
    columns_of: (rng, labels) → text by column."""
    rng = np.random.default_rng(seed)
    prior = np.geomspace(1, 0.05, CLASSES)
    prior /= prior.sum()
    y = rng.choice(CLASSES, n, p=prior)
    centre = rng.normal(size=(CLASSES, 3))
    f = centre[y] + rng.normal(size=(n, 3))
    z = f @ centre.T - np.square(centre).sum(1) / 2 + np.log(prior) * (not balanced)
    columns = {name: np.asarray(v, dtype=str) for name, v in columns_of(rng, y).items()}
    fold, counts = np.arange(n) % folds, np.bincount(y, minlength=CLASSES)
    states = {
        k: State(
            (scale * z[fold == k]).astype(np.float32), None, "stage1", {}, counts,
            columns={name: v[fold == k] for name, v in columns.items()},
        )
        for k in range(folds)
    }  # fmt: skip
    return Start("stage1", states, {k: y[fold == k] for k in range(folds)})


def informative(rng, y):
    """Countries that depend on the class, months that do not."""
    by_class = rng.dirichlet(np.full(5, 0.4), CLASSES)
    where = (by_class[y].cumsum(1) > rng.random((len(y), 1))).argmax(1)
    return {"country": where, "month": rng.integers(0, 4, len(y))}


def tried(start: Start, **keys):
    asked = step("metadata_prior", keys, **KEYS)
    return try_step(asked, start, no_steps(start), config(**KEYS))


def strengths(trial) -> dict:
    return {"+".join(t["columns"]): t["strength"] for t in trial.choices[None]["tables"]}


# ---- the tables, against the formula written densely ---------------------------------------------


def test_tables_are_smoothed_counts_over_what_they_back_off_to():
    rng = np.random.default_rng(0)
    y, prior = rng.integers(0, 3, 60), np.array([0.5, 0.3, 0.2])
    a, b = (np.where(rng.random(60) < 0.6, y, rng.integers(0, 3, 60)).astype(str) for _ in "ab")
    b[:5] = ""
    found = tables({"a": a, "b": b}, y, prior)
    assert [t.columns for t in found] == [("a",), ("b",), ("a", "b")]
    single = {}
    for table, column in zip(found[:2], (a, b), strict=True):
        for row, (value,) in enumerate(table.values):
            n = np.bincount(y[column == value], minlength=3)
            alpha = recovered_alpha(table.added.toarray()[row], n, prior)
            p = (n + alpha * prior) / (n.sum() + alpha)
            single[table.columns[0], value] = np.log(p / prior)
            same_but_for_a_constant(table.added.toarray()[row], np.log(p / prior))
    for row, (u, v) in enumerate(found[2].values):
        n = np.bincount(y[(a == u) & (b == v)], minlength=3)
        q = prior * np.exp(single["a", u] + single["b", v])
        q /= q.sum()
        alpha = recovered_alpha(found[2].added.toarray()[row], n, q)
        p = (n + alpha * q) / (n.sum() + alpha)
        same_but_for_a_constant(found[2].added.toarray()[row], np.log(p / q))
    assert ("", "0") not in map(tuple, found[2].values.tolist()) and "" not in found[1].values


def recovered_alpha(added, n, q) -> float:
    """From one cell; the others must then follow."""
    c = int(n.argmax())
    return n[c] / (q[c] * np.expm1(added[c]))


def same_but_for_a_constant(a, b):
    np.testing.assert_allclose(np.ptp(a - b), 0, atol=1e-4)


def test_alpha_is_where_the_counts_are_most_likely():
    rng = np.random.default_rng(1)
    prior, alpha = np.full(4, 0.25), 5.0
    values = np.repeat(np.arange(300), 40)
    y = np.concatenate([rng.choice(4, 40, p=p) for p in rng.dirichlet(alpha * prior, 300)])
    table = tables({"a": values.astype(str)}, y, prior)[0]
    row = table.values[:, 0].tolist().index("7")
    n = np.bincount(y[values == 7], minlength=4)
    found = recovered_alpha(table.added.toarray()[row], n, prior)
    assert found == pytest.approx(alpha, rel=0.15)


# ---- planted truths ------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "balanced"), [(1, False), (3, False), (1, True)])
def test_an_informative_column_is_recovered_on_any_scale_of_the_logits(scale, balanced):
    """Bayes' rule has strength 1, times the scale of the logits; months say nothing."""
    trial = tried(planted(informative, n=900, scale=scale, balanced=balanced))
    assert trial.kept and trial.gain.low > 0.02
    found = strengths(trial)
    assert found.keys() == {"country"}
    assert found["country"] / scale == pytest.approx(1, abs=0.35)


def test_what_only_two_columns_together_tell_is_found():
    def either(rng, y):
        a = rng.integers(0, 6, len(y))
        return {"country": a, "month": (y + a) % 6}

    trial = tried(planted(either, n=900))
    assert trial.kept and "country+month" in strengths(trial)
    alone = tried(planted(either, n=900), columns=["country"])
    assert not alone.kept and not strengths(alone)


def test_columns_without_information_get_no_strength():
    def noise(rng, y):
        return {"country": rng.integers(0, 8, len(y)), "month": rng.integers(0, 3, len(y))}

    found = [tried(planted(noise, seed, n=240, folds=2)) for seed in range(50)]
    assert sum(bool(strengths(trial)) for trial in found) < 5
    assert sum(trial.kept for trial in found) < 5


def test_a_column_of_one_value_per_image_tells_nothing_of_other_images():
    """It would tell all, if an image's own label were among the counts."""
    trial = tried(planted(lambda rng, y: {"country": np.arange(len(y)), "month": y * 0}))
    assert not trial.kept and not strengths(trial)


def test_two_folds_leave_one_to_fit_on():
    trial = tried(planted(informative, n=900, folds=2))
    assert trial.kept and strengths(trial).keys() == {"country"}


def test_classes_without_an_image_and_two_classes_alone():
    start = planted(informative)
    for k, state in start.states.items():
        start.labels[k][:] = start.labels[k] % 2
        state.counts[:] = [300, 150, 0, 0, 0, 0]
    trial = tried(start)
    assert all(np.isfinite(part).all() for part in (trial.before, trial.after))


def test_the_prior_is_of_the_counts_and_a_class_without_an_image_counts_one(monkeypatch):
    start, seen = planted(informative, n=90), []

    def watched(columns, labels, prior):
        seen.append(prior)
        return tables(columns, labels, prior)

    monkeypatch.setattr("src.fusion.metadata_prior.tables", watched)
    for state in start.states.values():
        state.counts[:] = [60, 20, 5, 1, 0, 0]
    step("metadata_prior", **KEYS).fit(list(start.states.values()), list(start.labels.values()))
    assert len(seen) > 3  # of each fold left out, and of all
    for prior in seen:
        np.testing.assert_allclose(prior, np.array([60, 20, 5, 1, 1, 1]) / 88)


# ---- applied -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params() -> dict:
    return tried(planted(informative, n=900)).choices[None]


def images(*countries) -> State:
    logits = np.zeros((len(countries), CLASSES), np.float32)
    columns = {"country": np.array(countries), "month": np.array(["1"] * len(countries))}
    return State(logits, None, "stage1", columns=columns)


def test_values_never_seen_and_empty_ones_leave_the_logits_as_they_are(params):
    found = APPLY(images("0", "Atlantis", ""), params)
    assert np.abs(found[0]).max() > 0.1
    assert not found[1:].any()


def test_what_is_stored_applies_to_identical_bytes(params, tmp_path):
    tree = {"head": "stage1", "steps": [{"step": "metadata_prior", "params": params}]}
    save_recipe(tmp_path, tree)
    recipe, some = load_recipe(tmp_path), images("3", "0", "x")
    given, counts = {"stage1": some.logits}, np.ones(CLASSES, int)
    found = apply_recipe(recipe, None, {}, given, counts, some.columns)
    assert found.tobytes() == APPLY(some, params).tobytes()
    with pytest.raises(UserError, match="columns 'country' are needed .* test.csv has only 'site'"):
        apply_recipe(recipe, None, {}, given, counts, {"site": some.columns["country"]})


# ---- errors and the whole stage ------------------------------------------------------------------


def test_columns_that_are_not_carried_are_an_error_of_the_config():
    with pytest.raises(UserError, match="data.columns names none; name them there"):
        config(posthoc={"steps": ["metadata_prior"]})
    asked = {"steps": [{"name": "metadata_prior", "columns": ["mont"]}]}
    with pytest.raises(UserError, match=r"names the columns 'mont', but data.columns names \['cou"):
        config(posthoc=asked, **KEYS)


def test_04_wants_the_columns_in_the_test_table_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = digits_world()
    directory = write_dataset(world)
    write_experiment(world, "exp")
    settings = config(posthoc={"steps": ["metadata_prior"], "heads": ["stage1"]}, **KEYS)
    with pytest.raises(UserError, match="folds.csv: the column 'country' is missing"):
        posthoc(settings, "exp")
    for file, month in (("folds.csv", "1"), ("test.csv", "")):
        table = read_table(directory / file)
        write_table(directory / file, table.assign(country="a", month=month))
    seal(directory)
    with pytest.raises(UserError, match="test.csv: the column 'month' is empty"):
        posthoc(settings, "exp")
    write_table(directory / "test.csv", pd.DataFrame(table).assign(country="a", month="3"))
    seal(directory)
    write_experiment(world, "exp")
    found = posthoc(settings, "exp")
    assert "carry no columns 'country', 'month'; run 02" in found["reason"].iloc[1]
