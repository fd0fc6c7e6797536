"""Pseudo-labels: a fabricated first round, what the second takes of it, and how it trains."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax, softmax
from torch.nn import functional as F

import src.training.stage1 as stage1
from src.artifacts.dataset import load_dataset
from src.artifacts.files import (
    read_json,
    read_table,
    sha256,
    write_bytes,
    write_json,
    write_table,
)
from src.artifacts.marks import marked, pseudo_labelled
from src.artifacts.oof import optimism
from src.artifacts.predictions import Predictions
from src.config.pseudo import Pseudo
from src.config.read import parse_config
from src.data.dataset import Batch, Targets
from src.errors import UserError
from src.losses import build_criterion
from src.networks.base import mixed
from src.runtime import start
from src.training.mixing import Mixer
from src.training.pseudo import pseudo_rows, select, soft_labels
from tests.fabricate import seal, some_classes
from tests.training_kit import COUNTS, SIZE, resumes_exactly, tiny_config, tiny_dataset, train_tiny

FIRST = Path("runs/tiny/first")
TEST = 18  # test images, three of each class
LABELS = np.repeat(np.arange(6), 3)


def second(network: dict | None = None, train: dict | None = None, **keys):
    return tiny_config(network, (train or {}) | {"pseudo": {"experiment": "first"} | keys})


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two folds, 18 test images, and a first round of which fold 0 and 1 say other things."""
    monkeypatch.chdir(tmp_path)
    folds = tiny_dataset().directory
    rng, rows = np.random.default_rng(1), []
    for i, label in enumerate(LABELS):
        colour = 40 * label + rng.integers(-30, 30, (SIZE, SIZE, 3))
        path = folds / "images" / f"t{i:02d}.png"
        Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(path)
        rows.append({"image_id": path.stem, "path": str(path)})
    write_table(folds / "test.csv", pd.DataFrame(rows))
    seal(folds, status="finished")
    first_round()
    return load_dataset("tiny")


def says(seed: int, fold: int, scale: float = 6.0) -> Predictions:
    """Logits that favour the image's class shifted by `seed`, in varying degree."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(TEST, 6)) + scale * np.eye(6)[(LABELS + seed) % 6]
    ids, nothing = np.array([f"t{i:02d}" for i in range(TEST)]), np.full(TEST, -1)
    return Predictions(ids, logits.astype(np.float32), nothing, np.full(TEST, fold))


def first_round(networks=("fold0", "fold1"), **scale) -> None:
    """What 02, 04 and 05 leave below FIRST."""
    for network in networks:
        home = FIRST / "stage1" / network
        write_bytes(home / "weights.safetensors", network.encode())
        classes = {"classes.csv": sha256("runs/tiny/folds/classes.csv")}
        seal(home, inputs=classes, pseudo={})
        fold = int(network[-1])
        says(fold, fold, **scale).save(FIRST / "predict" / "networks" / network / "posthoc.npz")
    write_json(FIRST / "posthoc" / "posthoc.json", {"head": "stage1", "steps": []})
    says(5, -1, **scale).save(FIRST / "predict" / "posthoc.npz")
    sealed(networks)


def sealed(networks=("fold0", "fold1"), lacking: str = "") -> None:
    """The manifest of 05 in the first round."""
    home = FIRST / "predict"
    inputs = {n: sha256(f"runs/tiny/folds/{n}") for n in ("folds.csv", "test.csv")}
    for n in networks:
        inputs[f"{n}/weights"] = sha256(FIRST / "stage1" / n / "weights.safetensors")
    files = [p for p in home.rglob("*.npz") if lacking not in str(p) or not lacking]
    outputs = {p.relative_to(home).as_posix(): sha256(p) for p in files}
    manifest = {"inputs": inputs, "outputs": outputs, "networks": list(networks)}
    write_json(home / "manifest.json", manifest)


def rows_of(config, data, fold: int | None):
    files = stage1.pseudo_files(config, "second", data, fold)
    return pseudo_rows(config, files, data, fold)


# ---- which images ------------------------------------------------------------------------------


def slowly(label, confidence, ids, spec, classes) -> list[int]:
    """The formula image by image."""
    groups = {"class": range(classes.num), "bin": classes.bins, "all": [0] * classes.num}[spec.per]
    size = {
        "balanced": [1] * classes.num,
        "predicted": [sum(label == c) for c in range(classes.num)],
        "train": classes.counts,
    }[spec.prior]
    kept = []
    for g in set(groups):
        part = sum(size[c] for c in range(classes.num) if groups[c] == g) / sum(size)
        limit = int(np.ceil(round(spec.share * len(label) * part, 6)))
        inside = [i for i in range(len(label)) if groups[label[i]] == g]
        inside.sort(key=lambda i: (-confidence[i], ids[i]))
        kept += [i for i in inside[:limit] if confidence[i] >= spec.min_confidence]
    return sorted(kept)


@pytest.mark.parametrize("prior", ["balanced", "predicted", "train"])
@pytest.mark.parametrize("per", ["class", "bin", "all"])
def test_the_surest_of_each_group_are_taken(per, prior):
    classes = some_classes(6, counts=np.array(COUNTS))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        label = rng.choice(6, 60, p=[0.5, 0.3, 0.1, 0.06, 0.04, 0])  # one class is never predicted
        confidence = rng.integers(3, 10, 60) / 10  # with many ties
        ids = rng.permutation([f"i{i:02d}" for i in range(60)])
        keys = {"experiment": "a", "per": per, "share": 0.4, "min_confidence": 0.45}
        spec = Pseudo(**keys | ({} if per == "all" else {"prior": prior}))
        found = select(label, confidence, ids, spec, classes)
        assert found.tolist() == slowly(label, confidence, ids, spec, classes)
        order = rng.permutation(60)
        again = select(label[order], confidence[order], ids[order], spec, classes)
        assert set(ids[order][again]) == set(ids[found])


def test_balanced_keeps_the_rare_and_caps_the_frequent():
    classes = some_classes(6, counts=np.array(COUNTS))
    label = np.repeat(np.arange(6), [40, 10, 4, 3, 2, 1])
    confidence = np.linspace(0.99, 0.6, 60)  # frequent ones are the surest
    ids = np.array([f"i{i:02d}" for i in range(60)])

    def counts(**keys):
        spec = Pseudo(experiment="a", share=0.5, **keys)
        return np.bincount(label[select(label, confidence, ids, spec, classes)], minlength=6)

    assert counts().tolist() == [5, 5, 4, 3, 2, 1]
    assert counts(prior="predicted").tolist() == [20, 5, 2, 2, 1, 1]
    assert counts(per="all").tolist() == [30, 0, 0, 0, 0, 0]


# ---- what they count as ------------------------------------------------------------------------


def test_soft_labels_are_the_sharpened_probabilities_of_the_likeliest():
    z = np.array([[2.0, 5.0, 1.0, 4.0]], np.float32)
    spec = Pseudo(experiment="a", labels="soft", classes=3, temperature=0.5, weight=0.4)
    labels, shares = soft_labels(z, spec)
    assert labels.tolist() == [[1, 3, 0]]
    expected = np.exp([10.0, 8.0, 4.0])
    np.testing.assert_allclose(shares[0], 0.4 * expected / expected.sum(), rtol=1e-6)
    labels, shares = soft_labels(z, Pseudo(experiment="a", weight=0.4))
    assert (labels.tolist(), shares.tolist()) == ([[1]], [[0.4]])


@pytest.mark.parametrize("name", ["cross_entropy", "balanced_softmax"])
def test_the_gradient_of_soft_targets_is_softmax_less_target(name):
    """d/dz of the mean of -ω Σ_c q_c log softmax(z + prior)_c is ω (softmax(z + prior) - q) / N."""
    classes = some_classes(6, counts=np.array(COUNTS))
    criterion = build_criterion(parse_config({"train": {"criterion": {"name": name}}}), classes)
    rng = np.random.default_rng(0)
    z = torch.tensor(rng.normal(size=(4, 6)), dtype=torch.float32, requires_grad=True)
    spec = Pseudo(experiment="a", labels="soft", classes=6, weight=0.7)
    labels, shares = soft_labels(rng.normal(size=(4, 6)).astype(np.float32), spec)
    shares[0], labels[0] = [1, 0, 0, 0, 0, 0], 2  # a true label, as a row of the training table
    targets = Targets(torch.tensor(labels), torch.tensor(shares).float())
    batch = Batch(torch.zeros(4, 3, 1, 1), targets.labels[:, 0], targets=targets)
    mixed(criterion, z, batch).backward()
    q = np.zeros((4, 6))
    np.add.at(q, (np.arange(4)[:, None], labels), shares)
    prior = np.log(COUNTS) if name == "balanced_softmax" else np.zeros(6)
    p = torch.softmax(z.detach().double() + torch.tensor(prior), 1).numpy()
    np.testing.assert_allclose(z.grad.numpy(), (q.sum(1, keepdims=True) * p - q) / 4, atol=1e-6)


def test_mixing_mixes_the_targets_of_both():
    targets = Targets(torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0.6, 0.2], [1.0, 0.0]]))
    batch = Batch(torch.randn(2, 3, 4, 4), torch.tensor([0, 2]), rows=torch.arange(2))
    config = tiny_config(train={"mixing": {"mixup": 1.0}}).train.mixing
    mixer, z = Mixer(config, np.array(COUNTS), 0), torch.randn(2, 6)
    for seed in range(4):
        found = mixer(batch.with_targets(targets), np.random.default_rng(seed))
        order = [0, 1] if torch.equal(found.partner, batch.labels) else [1, 0]
        q = torch.zeros(2, 6).index_put(
            (torch.arange(2)[:, None], targets.labels), targets.shares, accumulate=True
        )
        q = found.share * q + (1 - found.share) * q[order]
        expected = -(q * torch.log_softmax(z, 1)).sum(1).mean()
        loss = mixed(
            lambda z, y, share=1.0: (share * F.cross_entropy(z, y, reduction="none")).mean(),
            z, found,
        )  # fmt: skip
        torch.testing.assert_close(loss, expected)


# ---- which network says it ---------------------------------------------------------------------


def test_each_fold_hears_its_own_network_and_full_hears_all(data):
    for fold, shift in ((0, 0), (1, 1), (None, 5)):
        rows = rows_of(second(share=1.0), data, fold)
        number = rows.table["image_id"].str[1:].astype(int)
        expected = (LABELS[number] + shift) % 6
        assert len(rows.table) == TEST and rows.table["label"].tolist() == expected.tolist()
        assert rows.facts["network"] == ("all" if fold is None else f"fold{fold}")


def test_no_other_file_can_change_a_folds_rows(data):
    """Whatever the other networks and their mean say: fold 0's rows stay."""
    before = rows_of(second(), data, 0)
    says(3, 1).save(FIRST / "predict" / "networks" / "fold1" / "posthoc.npz")
    says(2, -1).save(FIRST / "predict" / "posthoc.npz")
    sealed()
    after = rows_of(second(), data, 0)
    pd.testing.assert_frame_equal(before.table, after.table)
    says(1, 1).save(FIRST / "predict" / "networks" / "fold0" / "posthoc.npz")
    sealed()
    with pytest.raises(UserError, match="not made by the network of fold 0"):
        rows_of(second(), data, 0)


def test_several_first_rounds_label_together(data):
    """The mean of their log-probabilities, for a fold that of its networks."""
    again = FIRST.with_name("again")
    copytree(FIRST, again)
    other = says(0, 0, scale=6.5)
    other = replace(other, logits=other.logits[:, ::-1] + np.arange(TEST)[:, None])
    other.save(again / "predict/networks/fold0/posthoc.npz")
    facts = read_json(again / "predict/manifest.json")
    facts["outputs"]["networks/fold0/posthoc.npz"] = sha256(
        again / "predict/networks/fold0/posthoc.npz"
    )
    write_json(again / "predict/manifest.json", facts)
    keys = {"share": 1.0, "min_confidence": 0.0}
    rows = rows_of(second(experiment=["first", "again"], **keys), data, 0)
    mean = sum(log_softmax(z.logits, 1) for z in (says(0, 0), other)) / 2
    assert rows.table["label"].tolist() == mean.argmax(1).tolist()
    np.testing.assert_allclose(rows.table["confidence"], softmax(mean, 1).max(1), rtol=1e-5)
    assert rows.table["label"].tolist() != rows_of(second(**keys), data, 0).table["label"].tolist()
    with pytest.raises(UserError, match="each can label once"):
        second(experiment=["first", "first"])


def test_counts_are_the_mass_that_the_loss_sees(data):
    known = data.classes_of(data.training(0))
    rows = rows_of(second(share=1.0), data, 0)
    counts = rows.counted(known)
    assert counts.dtype.kind == "i" and rows.targets(data.training(0)) is None
    assert counts.tolist() == (known.counts + 3).tolist()
    soft = rows_of(second(share=1.0, labels="soft", weight=0.5, classes=6), data, 0)
    targets = soft.targets(data.training(0))
    every = np.bincount(targets.labels.flatten(), targets.shares.flatten(), minlength=6)
    np.testing.assert_allclose(soft.counted(known), every, rtol=1e-5)
    assert every.sum() == pytest.approx(len(data.training(0)) + 0.5 * TEST)


# ---- training ----------------------------------------------------------------------------------


def test_a_second_round_is_trained_marked_and_resumed_exactly(data, monkeypatch):
    train = {"sampler": "class_balanced", "mixing": {"cutmix": 1.0, "probability": 0.5}}
    config = second(train=train, share=1.0, labels="soft", weight=0.5)
    where = resumes_exactly(config, monkeypatch)
    facts = read_json(where / "manifest.json")
    assert (facts["pseudo"]["images"], facts["pseudo"]["of"]) == (TEST, TEST)
    assert facts["inputs"]["pseudo/first"] == sha256(FIRST / "predict/networks/fold0/posthoc.npz")
    chosen = read_table(where / "pseudo.csv")
    assert len(chosen) == TEST and "pseudo.csv" in facts["outputs"]
    home = where.parents[1]
    assert pseudo_labelled(home).startswith("Trained with 18 pseudo-labelled test images")
    assert marked("x", home) == "x (pseudo-labels)" and marked("x", FIRST) == "x"
    held_out = np.load(where / "oof.npz")["image_id"]
    assert set(held_out) == set(data.held_out(0)["image_id"]) and not set(held_out) & set(
        chosen["image_id"]
    )


def test_hard_and_soft_and_none_are_three_trainings(data):
    epochs = {"epochs": 1, "warmup_epochs": 0}
    configs = {
        "none": tiny_config(train=epochs),
        "hard": second(train=epochs),
        "light": second(train=epochs, weight=0.5),
        "soft": second(train=epochs, labels="soft"),
    }
    weights = {
        n: (train_tiny(c, n) / "weights.safetensors").read_bytes() for n, c in configs.items()
    }
    assert len(set(weights.values())) == 4


def test_rows_are_trained_on_as_a_table_with_these_labels_would_be(data, monkeypatch):
    """Hard labels of weight 1 are bit for bit what further rows of folds.csv are."""
    config = second(share=1.0, train={"epochs": 1, "warmup_epochs": 0})
    one = train_tiny(config, "one")
    rows = rows_of(config, data, 0).table
    more = data.images.iloc[: len(rows)].assign(
        image_id=rows["image_id"], path=rows["path"], label=rows["label"], fold=-1
    )
    images = pd.concat([data.images, more]).assign(class_id=lambda t: t["label"].astype(str))
    write_table(data.directory / "folds.csv", images)  # ids with t come last, as in the table
    seal(data.directory)
    two = train_tiny(tiny_config(train={"epochs": 1, "warmup_epochs": 0}), "two")
    name = "weights.safetensors"
    assert (one / name).stat().st_size == (two / name).stat().st_size
    assert np.array_equal(np.load(one / "oof.npz")["logits"], np.load(two / "oof.npz")["logits"])


def test_paco_weighs_its_views(data):
    model = {"network": "paco"}
    train = {
        "second_sampler": "same", "criterion": {"name": "balanced_softmax"}, "epochs": 1,
        "warmup_epochs": 0,
    }  # fmt: skip
    found = [
        (train_tiny(second(model, train, weight=w), f"w{w}") / "weights.safetensors").read_bytes()
        for w in (1.0, 0.25)
    ]
    assert found[0] != found[1]


def test_a_full_network_and_a_warm_start_from_the_first_round(data):
    epochs = {"epochs": 1, "warmup_epochs": 0}
    train_tiny(tiny_config(train=epochs), "zero")
    weights = read_json("runs/tiny/zero/stage1/fold0/manifest.json")["outputs"]
    assert weights
    config = second({"pretrained": "experiment:zero"}, epochs)
    where = train_tiny(config, "warm")
    assert read_json(where / "manifest.json")["warm_start"]
    job = stage1.Fold(
        config.model_copy(update={"model": tiny_config().model}), data, None,
        Path("runs/tiny/warm2/stage1/full"), start("fp32"),
    )  # fmt: skip
    stage1.train_fold(job, overwrite=False)
    facts = read_json(job.directory / "manifest.json")
    assert facts["pseudo"]["network"] == "all"
    assert facts["inputs"]["pseudo/first"] == sha256(FIRST / "predict/posthoc.npz")


def test_another_first_round_is_refused(data, monkeypatch):
    config = second(train={"epochs": 2})
    train_tiny(config, "second")
    train_tiny(config, "killed", stop_after=1, monkeypatch=monkeypatch)
    says(4, 0).save(FIRST / "predict" / "networks" / "fold0" / "posthoc.npz")
    sealed()
    for name in ("second", "killed"):
        with pytest.raises(UserError, match="made from another 'pseudo/first'"):
            train_tiny(config, name)
    with pytest.raises(UserError, match="train.pseudo.share"):
        train_tiny(second(train={"epochs": 2}, share=0.25), "second")


def test_what_flatters_the_first_round_flatters_the_second(data):
    why = "Out-of-fold scores are optimistic."
    write_json(FIRST / "posthoc" / "posthoc.json", {"steps": [], "optimistic": why})
    where = train_tiny(second(train={"epochs": 1, "warmup_epochs": 0}), "second")
    (found,) = optimism([where.parent])
    assert found.endswith(why) and "pseudo-labels" in found


# ---- refusals ----------------------------------------------------------------------------------


def test_errors_say_what_is_missing_and_which_command_makes_it(data):
    config = second()
    sealed(lacking="networks")
    command = r"python 05_predict.py --config configs/first.yaml --set 'predict.keep_networks=\[pos"
    with pytest.raises(UserError, match=command):
        rows_of(config, data, 0)
    assert len(rows_of(config, data, None).table)  # the mean of all is there
    with pytest.raises(UserError, match="keep_networks"):
        rows_of(second(experiment="nowhere"), data, 0)
    with pytest.raises(UserError, match="name, of its own"):
        stage1.pseudo_files(config, "first", data, 0)
    sealed()
    with pytest.raises(UserError, match="the surest has 0.9"):
        rows_of(second(min_confidence=0.9999999), data, 0)


@pytest.mark.parametrize("changed", ["folds.csv", "classes.csv", "test.csv", "weights"])
def test_a_first_round_of_other_data_is_refused(data, changed):
    folder = FIRST / "stage1/fold1" if changed == "weights" else data.directory
    path = folder / ("weights.safetensors" if changed == "weights" else changed)
    path.write_bytes(path.read_bytes() + b"\n")
    seal(folder)
    with pytest.raises(UserError, match="different folds.csv" if changed[0] == "f" else changed):
        stage1.pseudo_files(second(), "second", data, 0)


def test_no_test_images(data):
    write_table(data.directory / "test.csv", data.test.iloc[:0])
    seal(data.directory)
    with pytest.raises(UserError, match="lists no images"):
        rows_of(second(), load_dataset("tiny"), 0)


CASES = {
    "lade": ({}, {"criterion": {"name": "lade"}}, {"labels": "soft"}),
    "class_balanced": ({}, {"criterion": {"name": "class_balanced"}}, {"labels": "soft"}),
    "deferred": ({}, {"deferred": {"weights": True}}, {"labels": "soft"}),
    "remix": ({}, {"mixing": {"mixup": 1.0, "remix": True}}, {"labels": "soft"}),
    "images of one class": ({"network": "kt"}, {}, {"labels": "soft"}),
    "does not know": ({"network": "kt"}, {}, {"weight": 0.5}),
    "of soft labels": ({}, {}, {"temperature": 0.5}),
    "remove it": ({}, {}, {"per": "all", "prior": "train"}),
    "name the first": ({}, {}, {"experiment": None, "share": 0.2}),
}


@pytest.mark.parametrize("why", CASES)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(why):
    model, train, keys = CASES[why]
    with pytest.raises(UserError, match=why):
        second(model, train, **keys)
    if keys.get("labels") == "soft":
        second(model, train)  # hard labels do
