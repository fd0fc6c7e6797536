"""Nearest neighbours against brute force, and the distances that go with the predictions."""

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src import logits as room
from src.artifacts.dataset import fold_name
from src.artifacts.heads import load_head, save_head
from src.artifacts.predictions import Predictions, load_predictions, stack
from src.config.heads import KNN, NCM
from src.config.read import parse_config
from src.config.tree import dump_config
from src.errors import UserError
from src.inference.predict import predict
from src.logits import FINE, head_distance, head_logits, nearest
from src.posthoc.calibrate import posthoc
from src.rebalance import HEADS
from src.rebalance.features import FeatureSet
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.fabricate import some_classes
from tests.training_kit import COUNTS, tiny_config, tiny_dataset

CPU = torch.device("cpu")


def cosine(a, b) -> float:
    length = max(np.linalg.norm(a), 1e-12) * max(np.linalg.norm(b), 1e-12)
    return float(np.asarray(a, float) @ np.asarray(b, float) / length)


def slow_neighbours(query, bank, k) -> list[tuple[float, int]]:
    """Sorted by cosine, in parts of 1 / FINE, then by row."""
    found = sorted((-round(cosine(query, row) * FINE), i) for i, row in enumerate(bank))
    return [(-c / FINE, i) for c, i in found[:k]]


def slow_knn(query, data: FeatureSet, bank, spec: KNN) -> np.ndarray:
    votes = [0.0] * data.num_classes
    labels = list(data.labels) * max(spec.views, 1)
    for c, i in slow_neighbours(query, bank, spec.k):
        share = 1 / list(data.labels).count(labels[i]) if spec.balanced else 1
        votes[labels[i]] += share * math.exp(c / spec.temperature)
    smoothed = [(1 - spec.smoothing) * v / sum(votes) + spec.smoothing / len(votes) for v in votes]
    return np.log(smoothed)


def some_features(rng, grid: bool, views: int) -> FeatureSet:
    """grid: of whole numbers, with many equal rows and equal cosines."""
    num, width, n = (int(v) for v in rng.integers((2, 2, 2), (6, 5, 30)))
    labels = np.concatenate([np.arange(num), rng.integers(num, size=n)])
    draw = (lambda: rng.integers(-1, 2, (len(labels), width))) if grid else (
        lambda: rng.normal(size=(len(labels), width)))  # fmt: skip
    f = [draw().astype(np.float32) for _ in range(1 + views)]
    counts = np.bincount(labels, minlength=num)
    return FeatureSet(f[0], f[1:], labels, some_classes(num, counts=counts))


def fit(spec, data):
    return HEADS[spec.head](spec, data, 0, CPU)


@pytest.mark.parametrize("grid", [False, True], ids=["random", "ties"])
def test_hundreds_of_cases_against_brute_force(grid, tmp_path, monkeypatch):
    rng = np.random.default_rng(int(grid))
    for case in range(150):
        monkeypatch.setattr(room, "STRIDE", int(rng.integers(1, 40)))
        monkeypatch.setattr(room, "BLOCK", int(rng.integers(1, 200)))
        views = int(rng.integers(0, 3))
        data = some_features(rng, grid, views)
        spec = KNN(
            k=int(rng.integers(1, 80)),  # often more than there are
            temperature=float(rng.choice([0.01, 0.07, 1.0])),
            balanced=bool(rng.integers(2)),
            smoothing=0.05,
            views=views,
        )
        kind, arrays = fit(spec, data)
        query = rng.normal(size=(int(rng.integers(1, 4)), data.width)).astype(np.float32)
        if grid:
            query = np.sign(query)
            query[0] = 0  # all cosines are zero: the first rows of the bank
        found = head_logits(query, arrays, kind)
        bank = arrays["bank"].astype(float)
        want = [slow_knn(q, data, bank, spec) for q in query]
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
        distance = [1 - max(cosine(q, row) for row in bank) for q in query]
        np.testing.assert_allclose(head_distance(query, arrays, kind), distance, atol=2e-6)
        if case % 30 == 0:
            save_head(tmp_path / "head.safetensors", kind, arrays)
            kind, arrays = load_head(tmp_path / "head.safetensors")
            np.testing.assert_array_equal(head_logits(query, arrays, kind), found)


def test_any_chunks_give_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    f, bank = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(70, 6))
    bank[35:] = bank[:35]  # every neighbour twice, in different blocks
    bank = bank.astype(np.float16)
    want = nearest(f, bank, 9)
    for stride in (1, 2, 7, 35, 69, 70, 1000):
        for block in (1, 64, 500, 10**6):
            monkeypatch.setattr(room, "STRIDE", stride)
            monkeypatch.setattr(room, "BLOCK", block)
            cosines, rows = nearest(f, bank, 9)
            np.testing.assert_allclose(cosines, want[0], atol=2 / FINE)
            same = rows == want[1]
            assert same.mean() > 0.99 and (rows[~same] % 35 == want[1][~same] % 35).all()


def test_rows_of_equal_cosines_go_by_their_order():
    bank = np.array([[0, 1], [1, 0], [2, 0], [1, 0], [0, 2]], np.float16)
    cosines, rows = nearest(np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32), bank, 3)
    assert rows.tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(cosines, [[1] * 3, [0.5**0.5] * 3, [0] * 3], atol=1e-6)


def test_memory_does_not_grow_with_images_times_neighbours():
    rng = np.random.default_rng(0)
    f = rng.normal(size=(3000, 4)).astype(np.float32)
    bank = rng.normal(size=(20_000, 4)).astype(np.float16)
    tracemalloc.start()
    nearest(f, bank, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20 < 4 * len(f) * len(bank)


def test_a_rare_class_counts_by_its_images_if_it_is_to():
    """Of the three nearest, two are of the class of four images and one of the class of one."""
    f = np.array([[1, 0.1], [1, -0.1], [0, 1], [-1, 0], [1, 0.2]], np.float32)
    data = FeatureSet(f, [], np.array([0, 0, 0, 0, 1]), some_classes(2, counts=[4, 1]))
    query = np.array([[1.0, 0.0]], np.float32)
    for balanced, label in ((True, 1), (False, 0)):
        kind, arrays = fit(KNN(k=3, temperature=1.0, balanced=balanced), data)
        assert head_logits(query, arrays, kind).argmax() == label


def test_a_damaged_bank_is_an_error_in_words(tmp_path):
    kind, arrays = fit(KNN(), some_features(np.random.default_rng(0), False, 0))
    save_head(tmp_path / "head.safetensors", kind, arrays | {"labels": arrays["labels"][1:]})
    with pytest.raises(UserError, match=r"labels of this knn head .*expected int64 \[N\]"):
        load_head(tmp_path / "head.safetensors")


# ---- distances ---------------------------------------------------------------------------------


def test_distances_of_every_kind_against_loops():
    rng = np.random.default_rng(4)
    f = rng.normal(size=(7, 4)).astype(np.float32)
    w = rng.normal(size=(3, 4)).astype(np.float32)
    many = rng.normal(size=(3, 2, 4)).astype(np.float32)
    center, sixteen = rng.normal(size=4).astype(np.float32), np.float32(16)
    cases = {
        "cosine": ({"weight": w, "scale": sixteen}, f, w),
        "subcentre": ({"weight": many, "scale": sixteen}, f, many.reshape(-1, 4)),
        "centred": ({"weight": w, "bias": w[:, 0], "center": center}, f - center, w),
    }
    for kind, (arrays, rows, others) in cases.items():
        want = [1 - max(cosine(a, b) for b in others) for a in rows]
        np.testing.assert_allclose(head_distance(f, arrays, kind), want, atol=1e-5)
        wide = np.concatenate([rng.normal(size=(7, 2)), f], 1).astype(np.float32)
        branch = arrays | {"columns": np.array([2, 6])}
        np.testing.assert_allclose(head_distance(wide, branch, kind), want, atol=1e-5)
    assert head_distance(f, {"weight": w, "bias": w[:, 0]}, "linear") is None


def test_files_with_and_without_distances(tmp_path):
    ids, blank = np.array(["a", "b"]), np.array([0, 1])
    z = np.eye(2, dtype=np.float32)
    old = Predictions(ids, z, blank, blank)
    new = Predictions(ids[::-1], z, blank, blank, distance=np.array([0.25, 0.5]))
    old.save(tmp_path / "old.npz")
    new.save(tmp_path / "new.npz")
    assert load_predictions(tmp_path / "old.npz", 2).distance is None
    found = load_predictions(tmp_path / "new.npz", 2)
    assert found.image_id.tolist() == ["a", "b"] and found.distance.tolist() == [0.5, 0.25]
    assert found.with_logits(z).distance is None  # of another head
    others = np.array(["d", "c"])
    assert stack([new, replace(old, image_id=others)]).distance is None
    assert stack([old, replace(new, image_id=others)]).distance is None
    assert stack([new, replace(new, image_id=others)]).distance.tolist() == [0.5, 0.25, 0.5, 0.25]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small experiment with sub-centres through 02 … 05, in its own working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("knn"))
        data = tiny_dataset()
        tree = dump_config(
            tiny_config({"head": "subcentre"}, {"criterion": "arcface", "epochs": 2})
        )
        heads = [{"head": "knn", "k": 4}, {"head": "ncm"}, {"head": "crt", "epochs": 2}]
        config = parse_config(tree | {"stage2": heads, "predict": {"tta": {"flip": False}}})
        stage1(config, "exp", ["0", "1"], False)
        stage2(config, "exp", False)
        table = posthoc(config, "exp")
        paths = predict(config, "exp", False)
        yield data, Path("runs/tiny/exp"), table, paths


def test_04_judges_neighbours_like_any_head(finished):
    data, _, table, _ = finished
    assert {"stage1", "knn", "ncm", "crt"} <= set(table["start"])
    reasons = table[table["step"] == "tau_norm"].set_index("start")["reason"]
    assert "needs a linear head, not one of kind knn" in reasons["knn"]
    assert "needs a linear head, not one of kind subcentre" in reasons["stage1"]
    tried = table[(table["step"] == "ncm_fusion") & (table["start"] == "knn")]
    assert len(tried) == 1 and tried["gain"].notna().all()
    assert table.loc[table["start"] == "knn", "balanced_accuracy"].notna().any()


def test_held_out_images_are_no_neighbours_of_themselves(finished):
    data, home, _, _ = finished
    for fold in data.folds:
        kind, arrays = load_head(home / "stage2/knn" / fold_name(fold) / "head.safetensors")
        held_out = load_predictions(home / "stage1" / fold_name(fold) / "oof.npz", len(COUNTS))
        found = load_predictions(home / "stage2/knn" / fold_name(fold) / "oof.npz", len(COUNTS))
        assert len(arrays["bank"]) == len(data.training(fold)) == sum(COUNTS) - len(held_out.label)
        bank = arrays["bank"].astype(float)
        want = [1 - max(cosine(f, row) for row in bank) for f in held_out.features]
        np.testing.assert_allclose(found.distance, want, atol=3e-6)


def test_distances_go_with_the_predictions_of_the_heads_that_have_them(finished):
    data, home, _, paths = finished
    has = {"stage1": True, "knn": True, "ncm": True, "crt": False, "posthoc": False}
    for name, path in paths.items():
        found = load_predictions(path, len(COUNTS))
        assert (found.distance is not None) == has[name], name
    for name in ("stage1", "knn", "ncm"):
        each = []
        for fold in data.folds:
            stage = home / ("stage1" if name == "stage1" else f"stage2/{name}") / fold_name(fold)
            kind, arrays = load_head(stage / "head.safetensors")
            (cache,) = (home / "predict/cache").glob(f"{fold_name(fold)}-*.npz")
            each.append(head_distance(load_predictions(cache, len(COUNTS)).features, arrays, kind))
        found = load_predictions(paths[name], len(COUNTS)).distance
        np.testing.assert_allclose(found, np.mean(each, 0), atol=1e-6)
        part = load_predictions(stage / "oof.npz", len(COUNTS))
        assert part.distance.shape == part.label.shape and (part.distance >= -1e-5).all()


def test_class_means_are_the_nearest_in_what_ncm_keeps():
    data = some_features(np.random.default_rng(8), False, 0)
    kind, arrays = fit(NCM(), data)
    means = []
    for c in range(data.num_classes):
        rows = [f / np.linalg.norm(f) for f in data.plain[data.labels == c]]
        means.append(np.mean(rows, 0))
    want = [1 - max(cosine(f, m) for m in means) for f in data.plain]
    np.testing.assert_allclose(head_distance(data.plain, arrays, kind), want, atol=1e-5)
