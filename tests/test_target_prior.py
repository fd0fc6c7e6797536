"""The leaderboard's class prior: what a CSV may say, and logit adjustment towards it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_table
from src.artifacts.target_prior import load_target_prior
from src.config.read import parse_config
from src.ensemble.choice import choose
from src.errors import UserError
from src.fusion import STEPS, apply_recipe
from src.fusion.pool import Pool
from src.fusion.step import State
from src.fusion.store import load_recipe
from src.metrics import SCORES, importance, metric_of, paired_gain
from src.posthoc.calibrate import posthoc
from tests.fabricate import CLASS_IDS, config, digits_world, step, write_dataset, write_experiment

COUNTS = np.array([100, 10, 1])
LOGITS = np.log([[100.0, 20.0, 3.0]])
APPLY = STEPS["logit_adjustment"].apply


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = digits_world()
    write_dataset(found)
    return found


def table(priors: dict[str, object]) -> dict:
    """The config of a CSV with these priors, written."""
    rows = {"class_id": list(priors), "prior": [str(p) for p in priors.values()]}
    write_table("data/raw/digits/prior.csv", pd.DataFrame(rows))
    return {"target_prior": "prior.csv"}


EQUAL = dict.fromkeys(CLASS_IDS, 0.1)


# ---- where it comes from -------------------------------------------------------------------------


def test_names_and_csv_give_a_prior_in_the_order_of_the_labels(world):
    data = load_dataset("digits")
    count = np.bincount(world.labels)
    found = {n: load_target_prior(config(target_prior=n), data) for n in ("balanced", "train")}
    np.testing.assert_allclose(found["balanced"], np.full(10, 0.1))
    np.testing.assert_allclose(found["train"], count / count.sum())
    assert load_target_prior(config(), data) is None
    shuffled = {c: (i + 1) / 55 for i, c in reversed(list(enumerate(CLASS_IDS)))}
    from_csv = load_target_prior(config(**table(shuffled)), data)
    np.testing.assert_allclose(from_csv, np.arange(1, 11) / 55)


def test_uniform_over_present_leaves_out_classes_without_an_image(world):
    data = load_dataset("digits")
    data = replace(data, images=data.images[data.images["label"] != 3])
    found = load_target_prior(config(target_prior="uniform-over-present"), data)
    np.testing.assert_allclose(found, np.where(np.arange(10) == 3, 0, 1 / 9))


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({c: 0.1 for c in CLASS_IDS[2:]}, r"prior.csv: lacks 2 of 10 classes: '00012', '1e5'"),
        (EQUAL | {"NA": 0.2}, r"prior.csv: the priors sum to 1.1, expected 1"),
        (EQUAL | {"7": -0.1, "NA": 0.3}, r"prior.csv: prior of the classes '7' is negative"),
        (EQUAL | {"7": "a"}, r"prior of the classes '7' is negative or no number"),
        (EQUAL | {"7": "inf"}, r"prior of the classes '7' is negative or no number"),
        (EQUAL | {"08": 0.0}, r"1 class ids are not in classes.csv: '08'"),
    ],
)
def test_a_csv_that_is_no_prior_is_refused(world, priors, message):
    with pytest.raises(UserError, match=message):
        load_target_prior(config(**table(priors)), load_dataset("digits"))


def test_a_csv_needs_its_columns_and_one_row_per_class(world):
    data, path = load_dataset("digits"), "data/raw/digits/prior.csv"
    settings = config(target_prior="prior.csv")
    with pytest.raises(UserError, match="prior.csv: no such file; target_prior names a CSV under"):
        load_target_prior(settings, data)
    write_table(path, pd.DataFrame({"class_id": CLASS_IDS, "p": "0.1"}))
    with pytest.raises(UserError, match="columns 'prior' are missing, it has 'class_id', 'p'"):
        load_target_prior(settings, data)
    write_table(path, pd.DataFrame({"class_id": [*CLASS_IDS, "7"], "prior": "0.1"}))
    with pytest.raises(UserError, match="classes '7' have more than one row"):
        load_target_prior(settings, data)


def test_another_word_is_an_error_of_the_config():
    with pytest.raises(UserError, match=r"target_prior.*'uniform'; expected balanced, train"):
        parse_config({"target_prior": "uniform"})


# ---- logit adjustment ----------------------------------------------------------------------------


def state(start="stage1", target=None) -> State:
    return State(LOGITS, None, start, {}, COUNTS, target=target)


def test_the_targets_prior_takes_the_place_of_the_training_images():
    target = np.array([0.2, 0.5, 0.3])
    found = np.exp(APPLY(state(target=target), {"tau": 1.0})[0])
    np.testing.assert_allclose(found / found.sum(), np.array([1, 2, 3]) * target / 2.1)
    half = np.exp(APPLY(state(target=target), {"tau": 0.5})[0])
    np.testing.assert_allclose(half, np.array([10, 20 / 10**0.5, 3]) * target**0.5)


def test_a_balanced_target_is_what_adjustment_without_one_does():
    third = np.full(3, 1 / 3)
    with_, without = (APPLY(state(target=t), {"tau": 0.7}) for t in (third, None))
    np.testing.assert_allclose(np.ptp(with_ - without), 0, atol=1e-12)
    assert step("logit_adjustment", target_prior="balanced").refuses(state(target=third)) is None


@pytest.mark.parametrize(
    ("start", "train"),
    [("stage1", {"criterion": {"name": "balanced_softmax"}}), ("crt", {})],
)
def test_what_is_balanced_gains_the_targets_prior_and_never_loses_its_own_twice(start, train):
    found = step("logit_adjustment", train=train, target_prior="train")
    assert "already" in found.refuses(state(start))
    assert "already" in found.refuses(state(start, np.full(3, 1 / 3)))
    target = np.array([0.2, 0.5, 0.3])
    assert found.refuses(state(start, target)) is None
    whole = next(p for p in found.candidates() if p["tau"] == 1)
    np.testing.assert_allclose(APPLY(state(start, target), whole), LOGITS + np.log(target))


def test_the_training_images_own_prior_is_no_target_to_adjust_to():
    found = step("logit_adjustment", target_prior="train")
    assert "that of the training images" in found.refuses(state(target=COUNTS / 111))
    assert found.refuses(state()) is None


def test_a_class_that_the_leaderboard_lacks_is_not_predicted():
    found = APPLY(state(target=np.array([0, 0.5, 0.5])), {"tau": 1.0})
    assert np.isfinite(found).all() and found.argmax() > 0


def test_the_recipe_carries_the_target_to_05(world):
    write_experiment(world, "exp")
    priors = {c: (i + 1) / 55 for i, c in enumerate(CLASS_IDS)}
    steps = {"heads": ["stage1"], "steps": ["logit_adjustment"]}
    settings = config(posthoc=steps, metric="accuracy", judge={"standard_errors": 0})
    settings = settings.model_copy(update=table(priors))
    posthoc(settings, "exp")
    recipe = load_recipe(load_dataset("digits").directory.parent / "exp/posthoc")
    np.testing.assert_allclose(recipe["target"], np.arange(1, 11) / 55)
    table(EQUAL)  # another CSV now: the recipe is what it was
    f, counts = world.test_features, np.bincount(world.labels, minlength=10)
    tau = {"head": "stage1", "steps": [{"step": "logit_adjustment", "params": {"tau": 1.0}}]}
    z = world.logits("stage1", 0, f)
    found = apply_recipe(recipe | tau, f, world.heads[0], {"stage1": z}, counts)
    shift = np.log(counts) - np.log(np.arange(1, 11) / 55)
    np.testing.assert_allclose(found, z - shift, rtol=1e-4, atol=1e-4)
    inputs = read_json("runs/digits/exp/posthoc/manifest.json")["inputs"]
    assert "target_prior" in inputs
    with pytest.raises(UserError, match="target_prior: 'prior.csv' there, 'balanced' now"):
        posthoc(settings.model_copy(update={"target_prior": "balanced"}), "exp")


# ---- scores under the target prior --------------------------------------------------------------


def skewed(seed=0, n=4000):
    """Labels of a long tail, and predictions that are right for the frequent and not the rare."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.8, 0.15, 0.05])
    right = rng.random(n) < np.array([0.9, 0.6, 0.2])[labels]
    return labels, np.where(right, labels, (labels + 1) % 3)


def test_accuracy_is_that_of_images_drawn_from_the_target():
    labels, predicted = skewed()
    target = np.array([0.1, 0.3, 0.6])
    recall = [np.mean(predicted[labels == c] == c) for c in range(3)]
    weights = importance(labels, target)
    assert weights.sum() == pytest.approx(len(labels))
    found = SCORES["accuracy"](predicted, labels, 3, weights)
    assert found == pytest.approx(target @ recall)
    mine = SCORES["balanced_accuracy"](predicted, labels, 3, weights)
    assert mine == pytest.approx(np.mean(recall))
    assert importance(labels, None) is None


def test_macro_f1_under_the_target_is_that_of_a_sample_of_it():
    labels, predicted = skewed(n=40000)
    target, rng = np.array([0.1, 0.3, 0.6]), np.random.default_rng(1)
    wanted = rng.choice(3, 40000, p=target)
    rows = np.concatenate(
        [rng.choice(np.flatnonzero(labels == c), (wanted == c).sum()) for c in range(3)]
    )
    expected = SCORES["macro_f1"](predicted[rows], labels[rows], 3)
    found = SCORES["macro_f1"](predicted, labels, 3, importance(labels, target))
    assert found == pytest.approx(expected, abs=0.01)


def test_the_gain_under_the_target_and_its_noise():
    """Swapping a gain of frequent classes for one of rare ones pays under a balanced target."""
    labels, _ = skewed(n=600)
    rng = np.random.default_rng(2)
    before = np.where(labels == 0, 0, rng.integers(0, 3, 600))
    after = np.where((labels == 0) & (rng.random(600) < 0.2), 1, labels)
    third = np.full(3, 1 / 3)
    plain = paired_gain(before, after, labels, 3, "accuracy")
    found = paired_gain(before, after, labels, 3, "accuracy", third)
    weights = importance(labels, third)
    value = ((after == labels) * 1.0 - (before == labels)) @ weights / 600
    assert found.value == pytest.approx(value) and found.value > 0.3 > plain.value
    share = np.bincount(labels) / 600
    spread = [np.std((after == labels)[labels == c] * 1.0 - (before == labels)[labels == c])
              / np.sqrt(600 * share[c]) for c in range(3)]  # fmt: skip
    assert found.noise == pytest.approx(np.linalg.norm(spread) / 3, rel=0.35)


def test_own_metrics_see_images_as_often_as_they_count(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def hits(labels, predicted):\n    return float((labels == predicted).mean())\n"
    )
    labels, predicted = skewed()
    weights = importance(labels, np.full(3, 1 / 3))
    own = metric_of(f"python:{path}:hits").score(predicted, labels, 3, weights)
    assert own == pytest.approx(SCORES["accuracy"](predicted, labels, 3, weights), abs=0.01)


def test_classes_without_an_image_leave_the_weight_to_others():
    labels = np.array([0, 0, 1])
    weights = importance(labels, np.array([0.2, 0.2, 0.6]))
    np.testing.assert_allclose(weights, [0.75, 0.75, 1.5])
    assert importance(labels, np.array([0, 0, 1.0])).tolist() == [1, 1, 1]


def test_04_chooses_the_strength_that_the_target_asks_for(world):
    """Out-of-fold images are as the training images; under a balanced target accuracy gains from
    adjustment, under their own it loses."""
    write_experiment(world, "exp")
    steps = {"heads": ["stage1"], "steps": ["logit_adjustment", "temperature"]}
    tables = {}
    for target in (None, "balanced"):
        keys = {"metric": "accuracy", "posthoc": steps, "target_prior": target}
        keys["judge"] = {"standard_errors": 1}
        tables[target] = posthoc(config(**keys), "exp", overwrite=True)
    adjusted = {name: t.set_index("step").loc["logit_adjustment"] for name, t in tables.items()}
    assert adjusted["balanced"]["kept"] == "yes" and adjusted["balanced"]["gain"] > 0.05
    assert not adjusted[None]["gain"] > 0.05
    final = tables["balanced"].iloc[-1]
    assert final["on_target"] == pytest.approx(final["balanced_accuracy"])
    assert "on_target" not in tables[None]


def test_the_combiner_is_judged_under_the_target():
    rng = np.random.default_rng(3)
    labels = rng.choice(3, 900, p=[0.8, 0.15, 0.05])
    fold = np.arange(900) % 3
    truth = np.eye(3)[labels]
    frequent = np.log(0.98 * truth * (labels == 0)[:, None] + 0.02) * 1.0
    rare = np.log(0.98 * truth * (labels > 0)[:, None] + 0.02) * 0.9
    members = [m.astype(np.float32) for m in (frequent, rare)]
    section = config().ensemble.combiner
    for target in (None, np.array([0.02, 0.49, 0.49])):
        found = choose(members, labels, fold, "accuracy", section, config().judge, None, target)
        pool = Pool(members, labels, "accuracy", None, target)
        outcome = pool.outcome(lambda m: m[0])
        expected = importance(labels, target)
        score = SCORES["accuracy"](outcome, labels, 3, expected)
        assert pool.score(outcome, np.ones(900, bool)) == pytest.approx(score)
        assert found.gain.value == found.gain.value or found.method == "single"
