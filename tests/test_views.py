"""Views of 05: which there are, what they are worth out of fold, and the weights they get."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

import src.inference.passes as module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, sha256
from src.artifacts.oof import load_oof
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.work import digest
from src.config.predict import TTA
from src.config.read import parse_config
from src.data.transforms import EvalTransform, Preprocessing, View
from src.errors import UserError
from src.inference.passes import Pass
from src.inference.predict import predict
from src.inference.views import tta_views
from src.inference.worth import OutOfFold, fitted_weights, pool_of_views
from src.metrics import Gain
from src.posthoc.calibrate import posthoc
from src.runtime import start
from src.training.fold import Fold
from src.training.stage1 import train_fold
from tests.training_kit import tiny_config, tiny_dataset

HOME = Path("runs/tiny/exp")
PREP = Preprocessing(4, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
PHOTO = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)


# ---- which views there are ----------------------------------------------------------------------


def seen_by(view: View) -> bytes:
    return EvalTransform(PREP, view)(PHOTO).tobytes()


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"vertical": True}, 4),
        ({"turns": True}, 8),
        ({"turns": True, "vertical": True}, 8),  # turned and mirrored, it stands on its head too
        ({"turns": True, "vertical": True, "flip": False}, 8),
        ({"turns": True, "flip": False}, 4),
        ({"flip": False}, 1),
    ],
)
def test_no_two_views_of_one_crop_are_the_same(keys, count):
    views = tta_views(TTA(**keys))
    assert len({seen_by(view) for view in views}) == len(views) == count and views[0] == View()


def test_views_are_flipped_then_turned_counterclockwise():
    found = EvalTransform(PREP, View(vertical=True, turns=1))(PHOTO)
    np.testing.assert_array_equal(found, np.rot90(PHOTO[::-1]))
    np.testing.assert_array_equal(EvalTransform(PREP, View(vertical=True))(PHOTO), PHOTO[::-1])


def test_ten_crops_are_five_and_their_mirror_images():
    assert (
        tta_views(TTA(crops=10)) == tta_views(TTA(crops=5)) and len(tta_views(TTA(crops=10))) == 10
    )
    with pytest.raises(UserError, match="crops: 10 are five and their mirror images"):
        parse_config({"predict": {"tta": {"crops": 10, "flip": False}}})


def test_a_view_keeps_the_name_it_had_before_there_were_turns():
    assert View(True).as_dict() == {"flip": True, "corner": (0.5, 0.5), "scale": 1.0}
    assert View(turns=2).as_dict()["turns"] == 2 and View(vertical=True).as_dict()["vertical"]


@pytest.mark.parametrize(
    ("key", "never", "shown"),
    [
        ("turns", {"rotate": 30}, [{"rotate": 90}, {"extra": ["RandomRotate90"]}]),
        ("vertical", {"rotate": 90}, [{"vflip": True}, {"rotate": 180}, {"extra": ["D4"]}]),
    ],
)
def test_views_that_training_never_showed_are_refused(key, never, shown):
    def with_augment(augment: dict):
        return parse_config({"predict": {"tta": {key: True}}, "train": {"augment": augment}})

    for augment in shown:
        assert getattr(with_augment(augment).predict.tta, key)
    with pytest.raises(UserError, match=f"predict.tta.{key} .*set {key}=false"):
        with_augment(never)


# ---- weights: simulated views -------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated(OutOfFold):
    """Views as [V, N, K] logits of images in three folds."""

    logits: np.ndarray = None
    label: np.ndarray = None
    fold: np.ndarray = None

    def _found(self, logits, rows) -> Predictions:
        ids = np.arange(len(self.fold)).astype(str)[rows]
        return Predictions(ids, logits, self.label[rows], self.fold[rows])

    def mean(self, fold, weights=None) -> Predictions:
        rows = self.fold == fold
        return self._found(np.average(self.logits[:, rows], axis=0, weights=weights), rows)

    def view(self, fold, number, rows) -> Predictions:
        which = np.flatnonzero(self.fold == fold)[rows]
        return self._found(self.logits[number][which], which)

    @property
    def equal(self) -> np.ndarray:
        return np.concatenate([self.outcome(self.mean(k)) for k in self.networks])

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([self.label[self.fold == k] for k in self.networks])


class Split:
    """What is asked of a dataset."""

    num_classes = 4

    def __init__(self, fold):
        self.fold = fold

    def held_out(self, k):
        return np.flatnonzero(self.fold == k)


def simulated(noise: list[float], seed: int = 0, images: int = 900, folds: int = 3) -> Simulated:
    """Views whose logits are right by 1.5 and wrong by noise of these sizes."""
    rng = np.random.default_rng(seed)
    label, fold = rng.integers(0, 4, images), np.arange(images) % folds
    clean = 1.5 * np.eye(4)[label]
    logits = np.stack([clean + s * rng.normal(size=clean.shape) for s in noise])
    scales = [1 + i / 10 for i in range(len(noise))]
    tta = {"flip": False, "scales": scales, "weights": "fitted"}
    config = parse_config({"predict": {"tta": tta}, "metric": "accuracy"})
    networks = dict.fromkeys(range(folds))
    return Simulated(config, Split(fold), networks, {}, Path(), {}, logits, label, fold)


def test_weights_are_the_most_likely_ones_and_cross_fitted():
    seen = simulated([1.0, 2.5])
    facts, weights, outcome = fitted_weights(seen, seen.labels, seen.equal)

    def slow(rows) -> float:
        def loss(w):
            z = log_softmax(w * seen.logits[0, rows] + (1 - w) * seen.logits[1, rows], axis=1)
            likelihood = -z[np.arange(rows.sum()), seen.label[rows]].mean()
            theta = np.log([w, 1 - w]) - np.log([w, 1 - w]).mean()  # λ/(2n) Σθ², of equal softmax
            return likelihood + (theta**2).sum() / (2 * rows.sum())

        grid = np.linspace(0.001, 0.999, 999)
        return grid[np.argmin([loss(w) for w in grid])]

    assert facts["kept"] and facts["fitted"]["gain_low"] > 0
    assert abs(weights[0] - slow(seen.fold >= 0)) < 2e-3 and weights[0] > 0.75
    for k in range(3):
        w = facts["fitted"]["per_fold"][str(k)]
        assert abs(w[0] - slow(seen.fold != k)) < 2e-3
        rows = seen.labels.reshape(3, -1)[k], outcome.reshape(3, -1)[k]
        mixed = np.average(seen.logits[:, seen.fold == k], axis=0, weights=w)
        np.testing.assert_array_equal(rows[1], mixed.argmax(1))


def test_equal_views_rarely_get_weights():
    """The rule lets one standard error pass, which chance exceeds in one draw of six."""
    kept = 0
    for seed in range(30):
        seen = simulated([1.5, 1.5, 1.5], seed, images=300)
        kept += fitted_weights(seen, seen.labels, seen.equal)[0]["kept"]
    assert kept <= 9


@pytest.mark.parametrize(("views", "folds", "reason"), [(1, 3, "one view"), (2, 1, "two folds")])
def test_where_nothing_can_be_fitted_weights_are_equal_and_it_says_why(views, folds, reason):
    seen = simulated([1.0, 3.0][:views], folds=folds)
    facts, weights, _ = fitted_weights(seen, seen.labels, seen.equal)
    assert not facts["kept"] and reason in facts["reason"] and set(weights) == {1 / views}


def test_with_too_many_numbers_weights_are_fitted_on_some_images(monkeypatch):
    monkeypatch.setattr("src.inference.worth.FITTED_ON", 2 * 4 * 300)
    seen = simulated([1.0, 2.5])
    pool, fold = pool_of_views(seen, 2)
    assert np.bincount(fold).tolist() == [100] * 3 and pool.members[0].shape == (300, 4)
    assert fitted_weights(seen, seen.labels, seen.equal)[0]["fitted"]["images"] == 300


# ---- 05, from start to finish -------------------------------------------------------------------


def config(**tta):
    tree = tiny_config(train={"epochs": 1, "warmup_epochs": 0}).model_dump(mode="json")
    return parse_config(tree | {"stage2": [], "posthoc": {"steps": []}, "predict": {"tta": tta}})


@pytest.fixture
def passes(tmp_path, monkeypatch) -> list[str]:
    """Both folds trained and 04 run; grows with every pass of 05 over images."""
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    for fold in (0, 1):
        directory = HOME / "stage1" / f"fold{fold}"
        train_fold(Fold(config(), data, fold, directory, start("fp32")), overwrite=False)
    posthoc(config(), "exp")
    found: list[str] = []
    run = module.run_network

    def counted(*args, **kwargs):
        if len(found) == dies.get("at"):
            raise KeyboardInterrupt
        found.append(kwargs["label"])
        return run(*args, **kwargs)

    monkeypatch.setattr(module, "run_network", counted)
    yield found
    dies.clear()


dies: dict[str, int] = {}  # "at": the pass that is killed


def manifest() -> dict:
    return read_json(HOME / "predict/manifest.json")


def test_the_views_are_measured_on_held_out_images_and_the_prediction_stays(passes):
    cfg = config(scales=[1.0, 1.5])
    before = {n: sha256(p) for n, p in predict(cfg, "exp", False).items()}
    assert len(passes) == 8 and "views_gain" not in manifest()
    cfg = config(scales=[1.0, 1.5], measure=True)
    assert {n: sha256(p) for n, p in predict(cfg, "exp", False).items()} == before
    assert passes[8:] == [f"fold{k}, view {i}/4 (out of fold)" for k in (0, 1) for i in (2, 3, 4)]
    oof = load_oof(HOME, "stage1", load_dataset("tiny"))
    held_out = [load_predictions(p, 6) for p in (HOME / "predict/cache").glob("fold?-oof-*.npz")]
    held_out = {part.fold[0]: part for part in held_out}
    logits = np.concatenate([held_out[k].logits for k in (0, 1)])
    label = np.concatenate([held_out[k].label for k in (0, 1)])

    def balanced(logits, label) -> float:
        return np.mean([np.mean(logits[label == c].argmax(1) == c) for c in set(label.tolist())])

    gain = manifest()["views_gain"]
    assert gain["images"] == len(oof.label) == len(label) and gain["metric"] == "balanced_accuracy"
    assert gain["all_views"] == pytest.approx(balanced(logits, label))
    assert gain["one_view"] == pytest.approx(balanced(oof.logits, oof.label))
    assert gain["gain"] == pytest.approx(gain["all_views"] - gain["one_view"])
    assert read_json(HOME / "predict/views.json")["gain"] == gain
    assert manifest()["view_weights"] == [0.25] * 4
    predict(config(scales=[1.0, 1.5]), "exp", False)  # asks for less than there is
    assert len(passes) == 14


def test_fitted_weights_weigh_the_test_views_and_a_killed_run_goes_on(passes, monkeypatch):
    monkeypatch.setattr(Gain, "fails", lambda *_: None)  # whatever they gain on so few images
    cfg = config(scales=[1.0, 1.5], weights="fitted")
    dies["at"] = 4
    with pytest.raises(KeyboardInterrupt):
        predict(cfg, "exp", False)
    dies.clear()
    paths = predict(cfg, "exp", False)
    assert len(passes) == len(set(passes)) == 6 + 8
    found = read_json(HOME / "predict/views.json")
    weights = manifest()["view_weights"]
    assert found["kept"] and weights == found["weights"] == found["fitted"]["weights"]
    assert sum(weights) == pytest.approx(1) and len(set(weights)) == 4
    expected = 0
    for network in ("fold0", "fold1"):
        parts = (HOME / "predict/cache").glob(f"{network}-*.view.npz")
        parts = {load_predictions(p, 6).logits.tobytes(): p for p in parts if "-oof-" not in p.name}
        assert len(parts) == 4  # they stay: other weights may be fitted to them
        keys = [Pass(HOME / "stage1" / network).key(load_dataset("tiny")) | {"views": v.as_dict()}
                for v in tta_views(cfg.predict.tta)]  # fmt: skip
        files = [HOME / f"predict/cache/{network}-{digest(key)[:12]}.view.npz" for key in keys]
        views = [load_predictions(path, 6).logits for path in files]
        expected = expected + np.average(views, axis=0, weights=weights) / 2
    logits = load_predictions(paths["posthoc"], 6).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not np.allclose(logits, np.mean(views, 0), atol=1e-4)
    predict(cfg, "exp", False)
    assert len(passes) == 14
