"""Distillation: the loss against slow float64 formulae, who may teach, and what comes of it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import src.training.stage1 as stage1
import src.training.taught as taught_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_arrays, read_json, sha256, write_json, write_table
from src.artifacts.heads import load_head, save_head
from src.artifacts.oof import optimism
from src.config.distill import Distill
from src.data.dataset import Batch, Targets
from src.data.transforms import EvalTransform, Preprocessing
from src.errors import UserError
from src.logits import head_logits
from src.losses.distillation import Distillation
from src.networks.base import Progress
from src.networks.forward import run_network
from src.networks.weights import load_network
from src.runtime import start
from src.training.fit import fit
from src.training.fold import Fold
from src.training.job import build_trainer, listening
from src.training.loop import Objective
from src.training.mixing import Mixer
from src.training.pseudo import PseudoRows
from src.training.taught import LOWEST, FixedViews, as_seen, half
from src.training.teachers import teachers_of
from src.training.trials import _check
from tests.fabricate import count, seal, some_classes
from tests.training_kit import COUNTS, resumes_exactly, tiny_config, tiny_dataset, train_tiny

K = 6
HOME = Path("runs/tiny/teacher")
SHORT = {"epochs": 1, "warmup_epochs": 0}


def student(train: dict | None = None, model: dict | None = None, **keys):
    return tiny_config(model, (train or {}) | {"distill": {"experiment": "teacher"} | keys})


# ---- the loss ----------------------------------------------------------------------------------


def soft(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def slowly(z, v, spec: Distill, counts) -> float:
    """T² KL of one image, [K] each, in float64 and in the formula's own words."""
    T, prior = spec.temperature, np.maximum(counts, 1) / np.maximum(counts, 1).sum()
    p, q = soft(v / T), soft(z / T)
    if spec.balance == "prior":
        p = soft((v - spec.tau * np.log(prior)) / T)
    if spec.balance == "weights":
        w = [(1 - spec.beta) / (1 - spec.beta**n) if n else 0.0 for n in counts]
        p = w * p / (w * p).sum()
    return T**2 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


KEYS = {
    "none": {},
    "prior": {"balance": "prior", "tau": 0.7},
    "weights": {"balance": "weights", "beta": 0.99},
}


def numbers(seed: int, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(n, K)), 3 * rng.normal(size=(n, K))


def batch_of(labels, **more) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 1, 1), torch.as_tensor(labels), **more)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("balance", KEYS)
def test_the_terms_by_their_formulae(balance, temperature, double):
    counts = np.array([*COUNTS[:5], 0])  # a class without an image
    spec = Distill(experiment="a", temperature=temperature, weight=0.3, **KEYS[balance])
    loss, (z, v) = Distillation(spec, some_classes(K, counts=counts)), numbers(0)
    batch = batch_of([0] * 5, teacher=torch.tensor(v))
    expected = np.mean([slowly(a, b, spec, counts) for a, b in zip(z, v, strict=True)])
    logits = torch.tensor(z, requires_grad=True)
    found = loss(logits, batch)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(expected, rel=1e-7)
    assert torch.autograd.gradcheck(lambda one: loss(one, batch), (logits,))
    terms = loss.combined(
        {"criterion": logits.new_tensor(2.0), "b": logits.new_tensor(1.0)}, logits, batch
    )
    assert terms["criterion"].item() == pytest.approx(1.4) and terms["b"] == 0.7
    assert terms["distill"].item() == pytest.approx(0.3 * expected, rel=1e-5)
    last = loss.targets(torch.tensor(v))[:, -1]
    assert (last == 0).all() == (balance == "weights")


def test_nothing_is_left_to_learn_where_both_agree():
    loss = Distillation(Distill(experiment="a"), some_classes(K))
    z = torch.randn(3, K, requires_grad=True)
    found = loss(z, batch_of([0, 1, 2], teacher=z.detach() + 5))
    found.backward()
    assert abs(found.item()) < 1e-6 and z.grad.abs().max() < 1e-6


def test_prior_gives_the_posterior_of_balanced_classes():
    """Planted: a teacher that knows p(y | x) under the prior says p(x | y) / Σ p(x | y) without."""
    likelihood = np.random.default_rng(0).random((4, K))
    prior = np.array(COUNTS) / sum(COUNTS)
    spec = Distill(experiment="a", temperature=1.0, balance="prior")
    loss = Distillation(spec, some_classes(K, counts=np.array(COUNTS)))
    found = loss.targets(torch.tensor(np.log(likelihood * prior)))
    np.testing.assert_allclose(found, likelihood / likelihood.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_what_teachers_say_is_mixed_as_labels_are(kind, pseudo, double):
    spec = Distill(experiment="a", temperature=3.0)
    loss = Distillation(spec, some_classes(K))
    table, z = torch.tensor(numbers(1, 9)[0]), torch.tensor(numbers(2, 4)[0])
    rows = torch.tensor([7, 0, 3, 8])
    weights = np.where(rows > 6, 0.25, 1.0) if pseudo else np.ones(4)
    batch = Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), rows=rows)
    batch = batch.with_teacher(table)
    if pseudo:
        shares = torch.where(torch.arange(9) > 6, 0.25, 1.0)[:, None] * torch.tensor([[0.6, 0.4]])
        batch = batch.with_targets(Targets(torch.zeros(9, 2, dtype=torch.long), shares))
    config = tiny_config(train={"mixing": {kind: 1.0}}).train.mixing
    mixed = Mixer(config, np.ones(K), 0)(batch, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.random(), rng.integers(1), rng.beta(1, 1)
    order, share = rng.permutation(4), mixed.share
    assert 0 < share < 1 and sorted(order) != order.tolist()
    v, counts = table.numpy()[rows], np.ones(K)
    expected = np.mean([
        share * weights[i] * slowly(z[i].numpy(), v[i], spec, counts)
        + (1 - share) * weights[j] * slowly(z[i].numpy(), v[j], spec, counts)
        for i, j in enumerate(order)
    ])  # fmt: skip
    assert loss(z, mixed).item() == pytest.approx(expected, rel=1e-7)


def test_partners_of_a_second_sampler_bring_their_teacher():
    table = torch.randn(9, K)
    one, two = (
        Batch(torch.randn(2, 3, 4, 4), torch.tensor([0, 1]), rows=torch.tensor(rows))
        for rows in ([1, 2], [5, 6])
    )
    batch = replace(one, other=two).with_teacher(table)
    config = tiny_config(
        train={"mixing": {"mixup": 1.0}, "second_sampler": "class_balanced"}
    ).train.mixing
    mixed = Mixer(config, np.ones(K), 0)(batch, np.random.default_rng(0))
    assert torch.equal(mixed.teacher, table[1:3]) and torch.equal(mixed.partner_teacher, table[5:7])


def test_half_keeps_what_softmax_sees():
    z = 20 * np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    z[0, 0] = -1e9
    found = half(z)
    assert found.dtype == np.float16 and found.max(1).tolist() == [0] * 50
    assert found[0, 0] == np.float16(LOWEST)
    both = [np.array([soft(row / 2) for row in x.astype(float)]) for x in (z, found)]
    np.testing.assert_allclose(*both, atol=2e-3)


# ---- who teaches -------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two folds, and a teacher that was trained on both."""
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    for fold in (0, 1):
        train_fold(tiny_config(train={"epochs": 2}), fold)
    return data


def train_fold(config, fold: int | None, experiment: str = "teacher") -> Path:
    name = "full" if fold is None else f"fold{fold}"
    where = Path("runs/tiny") / experiment / "stage1" / name
    job = Fold(config, load_dataset("tiny"), fold, where, start("fp32"))
    stage1.train_fold(job, overwrite=False)
    return where


def job_of(config, data, fold: int | None = 0) -> Fold:
    job = Fold(config, data, fold, Path("runs/tiny/student/stage1/x"), start("fp32"))
    return listening(job, teachers_of(config, "student", data, fold))


def network_says(data, where: Path, table: pd.DataFrame) -> np.ndarray:
    """Logits [N, K] in the order of the table."""
    network, prep = load_network(where / "weights.safetensors", data)
    found = run_network(
        network, table, EvalTransform(prep), prep, start("fp32"), batch_size=128, workers=0
    )
    return found.take(table["image_id"]).logits


def test_each_fold_hears_its_own_network_and_full_hears_all(data):
    for fold in (0, 1, None):
        table, own = data.training(fold), (0, 1) if fold is None else (fold,)
        found = job_of(student(), data, fold).taught
        parts = [network_says(data, HOME / "stage1" / f"fold{k}", table) for k in own]
        expected = sum(parts) / len(own)
        expected = expected - expected.max(1, keepdims=True)
        np.testing.assert_allclose(found.views.logits, expected, atol=4e-3)
        assert found.facts["networks"] == [f"fold{k}" for k in own]
    train_fold(tiny_config(train=SHORT), None)
    facts = job_of(student(), data, None).taught.facts
    assert facts["networks"] == ["full"] and facts["teachers"] == ["teacher/stage1"]


def test_no_label_that_a_fold_holds_out_can_reach_its_targets(data):
    """With other labels on fold 0's images, fold 1's network is another one, and so are its out-of-
    fold logits; fold 0's is the same to the bit, and all that fold 0's student hears."""
    before = job_of(student(), data, 0).taught.views.logits
    oof = HOME / "stage1" / "fold1" / "oof.npz"
    leaking = read_arrays(oof)["logits"]
    table = data.images.copy()
    held_out = table["fold"] == 0
    table.loc[held_out, "label"] = (table.loc[held_out, "label"] + 1) % K
    write_table(data.directory / "folds.csv", table.assign(class_id=table["label"].astype(str)))
    seal(data.directory)
    for path in (HOME, Path("runs/tiny/student")):
        path.rename(path.with_name(f"old-{path.name}"))
    again = load_dataset("tiny")
    for fold in (0, 1):
        train_fold(tiny_config(train={"epochs": 2}), fold)
    after = job_of(student(), again, 0).taught.views.logits
    assert torch.equal(before, after)
    assert not np.array_equal(leaking, read_arrays(oof)["logits"])


def test_teachers_of_several_experiments_and_heads_count_alike(data):
    for name in ("other", "third"):
        train_fold(tiny_config(train=SHORT | {"lr": 0.01}), 0, name)
    kind, arrays = load_head(HOME / "stage1/fold0/head.safetensors")
    where = HOME / "stage2/crt/fold0"
    save_head(where / "head.safetensors", kind, arrays | {"bias": np.arange(6, dtype=np.float32)})
    inputs = {
        "folds.csv": sha256(data.directory / "folds.csv"),
        "weights.safetensors": sha256(HOME / "stage1/fold0/weights.safetensors"),
    }
    seal(where, inputs=inputs)
    table = data.training(0)
    found = job_of(student(experiment=["teacher/crt", "other"]), data).taught
    network, prep = load_network(HOME / "stage1/fold0/weights.safetensors", data)
    f = run_network(
        network, table, EvalTransform(prep), prep, start("fp32"), batch_size=128, workers=0
    ).take(table["image_id"]).features  # fmt: skip
    one = head_logits(f, *reversed(load_head(where / "head.safetensors")))
    two = network_says(data, Path("runs/tiny/other/stage1/fold0"), table)
    expected = (one + two) / 2
    np.testing.assert_allclose(
        found.views.logits, expected - expected.max(1, keepdims=True), atol=4e-3
    )
    assert found.facts["teachers"] == ["teacher/crt", "other/stage1"]
    seal(where, inputs=inputs | {"weights.safetensors": "another"})
    with pytest.raises(UserError, match="made from another network"):
        job_of(student(experiment="teacher/crt"), data)
    seal(where, inputs=inputs)
    with pytest.raises(UserError, match="heads of stage 2 are made to balance"):
        job_of(student(experiment="teacher/crt", balance="prior"), data)


def posthoc(data, head: str = "stage1", **more) -> None:
    """What 04 leaves: steps that differ by fold."""
    step = [{"step": "temperature", "params": {"T": t}} for t in (2.0, 3.0, 4.0)]
    recipe = {"head": head, "steps": step[:1], "per_fold": {"0": step[1:2], "1": step[2:]}}
    write_json(HOME / "posthoc/posthoc.json", recipe | more)
    inputs = {"folds.csv": sha256(data.directory / "folds.csv")}
    seal(HOME / "posthoc", inputs=inputs)


def test_posthoc_is_what_04_chose_on_the_other_folds(data):
    posthoc(data)
    own = job_of(student(), data).taught.views.logits.float()
    found = job_of(student(experiment="teacher/posthoc"), data).taught.views.logits.float()
    torch.testing.assert_close(found, own / 3, atol=4e-3, rtol=0)
    posthoc(data, per_fold={})
    with pytest.raises(UserError, match="does not say what was chosen without fold 0"):
        job_of(student(experiment="teacher/posthoc"), data)


def test_what_teachers_say_is_kept_and_made_anew_for_others(data, monkeypatch):
    calls = count(monkeypatch, taught_module, "half")
    first = job_of(student(), data).taught.views.logits
    again = job_of(student(temperature=5.0), data).taught.views.logits
    assert torch.equal(first, again) and len(calls) == 1
    train_fold(tiny_config(train=SHORT), 0, "other")
    job_of(student(experiment=["teacher", "other"]), data)
    assert len(calls) == 2


# ---- training ----------------------------------------------------------------------------------

MIXED = {"mixing": {"mixup": 1.0, "probability": 0.5}, "micro_batch": 4}


@pytest.mark.parametrize("views", ["fixed", "same"])
def test_a_student_is_trained_traced_and_resumed_exactly(data, monkeypatch, views):
    where = resumes_exactly(student(MIXED, views=views, temperature=3.0), monkeypatch)
    facts = read_json(where / "manifest.json")
    weights = HOME / "stage1/fold0/weights.safetensors"
    assert facts["inputs"]["teacher/teacher/fold0/weights.safetensors"] == sha256(weights)
    assert not any("fold1" in name for name in facts["inputs"])
    assert facts["distill"] == {
        "teachers": ["teacher/stage1"], "networks": ["fold0"], "views": views, "optimistic": [],
    }  # fmt: skip
    assert (pd.read_csv(where / "metrics.csv")["loss_distill"] > 0).all()
    assert optimism([where.parent]) == []


def test_labels_that_lie_are_forgotten_by_whom_the_teacher_alone_teaches(data):
    """Half of the labels are wrong, and a teacher says the truth and which colours are next to it:
    what it alone teaches comes nearer to what it says, and to the truth, than what labels teach."""
    table = data.images
    wrong = np.random.default_rng(0).random(len(table)) < 0.5
    lying = np.where(wrong, (table["label"] + 3) % K, table["label"])
    liar = replace(data, images=table.assign(label=lying))
    truth = data.training(0)["label"].to_numpy()
    said = -np.abs(np.arange(K) - truth[:, None]) * 2.0  # [N, K]
    taught = taught_module.Taught(FixedViews(half(said), torch.device("cpu")), {})
    away, right = {}, {}
    for weight in (None, 1.0):
        keys = {} if weight is None else {"experiment": "planted", "weight": weight}
        train = {"epochs": 12, "optimizer": "adamw", "lr": 3e-3, "batch_size": 5, "eval_every": 12}
        config = tiny_config(train=train | {"distill": keys, "augment": {"crop": "none"}})
        where = Path(f"runs/tiny/w{weight}/stage1/fold0")
        job = Fold(config, liar, 0, where, start("fp32"), taught=weight and taught)
        trainer, loader, epochs = build_trainer(job)
        fit(job, trainer, loader, epochs, {"settings": {}, "inputs": {}}, None)
        z = run_network(
            trainer.network, data.training(0), EvalTransform(trainer.prep), trainer.prep,
            start("fp32"), batch_size=128, workers=0,
        ).take(data.training(0)["image_id"]).logits  # fmt: skip
        spec = Distill(experiment="a")
        away[weight] = np.mean([slowly(a, b, spec, COUNTS) for a, b in zip(z, said, strict=True)])
        right[weight] = (z.argmax(1) == truth).mean()
    assert away[1.0] < 0.5 * away[None] and right[1.0] > right[None] + 0.2


def test_micro_batches_hear_the_same(data):
    grads = []
    for micro in (8, 4):
        config = student({"micro_batch": micro, "batch_size": 8})
        trainer, loader, _ = build_trainer(job_of(config, data))
        trainer.objective.eval()
        terms = trainer._backward(next(iter(loader)), Progress(0, 0, 0.0))
        grads.append(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
        assert terms["distill"] > 0
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def one_epoch(views: str):
    """Batch norm keeps its statistics, of which each process would see its half."""
    return student(SHORT | {"freeze_batchnorm": True}, views=views)


@pytest.mark.slow
def test_two_processes_hear_what_one_hears(data):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__]
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(launch, capture_output=True, text=True, env=os.environ | paths)
    assert found.returncode == 0, found.stderr
    for views in ("fixed", "same"):
        alone = train_fold(one_epoch(views), 0, f"alone-{views}")
        both = Path(f"runs/tiny/two-{views}/stage1/fold0")
        assert read_json(both / "manifest.json")["processes"] == 2
        one, two = (read_arrays(where / "oof.npz")["logits"] for where in (alone, both))
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def test_same_views_ask_the_teacher_about_the_mixed_images(data, monkeypatch):
    seen = []
    forward = Objective.forward

    def watch(self, batch, progress):
        seen.append(batch)
        return forward(self, batch, progress)

    monkeypatch.setattr(Objective, "forward", watch)
    config = student(SHORT | {"mixing": {"mixup": 1.0}}, views="same")
    trainer, loader, epochs = build_trainer(job_of(config, data))
    trainer.train_epoch(loader, 0)
    network, _ = load_network(HOME / "stage1/fold0/weights.safetensors", data)
    for batch in seen:
        assert batch.partner is not None and batch.partner_teacher is None
        with torch.no_grad():
            torch.testing.assert_close(batch.teacher, network(batch.images).logits)
        ((_, mass),) = batch.taught()
        assert mass == pytest.approx(1.0)
    assert not any(name.startswith("teacher") for name in trainer.objective.state_dict())


def test_images_are_renormalised_and_resized_for_a_teacher():
    own = Preprocessing(8, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    theirs = Preprocessing(8, 1.0, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    raw = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    found = as_seen(own.normalise(raw), own, theirs)
    torch.testing.assert_close(found, theirs.normalise(raw), atol=1e-5, rtol=1e-5)
    larger = as_seen(own.normalise(raw), own, replace(own, size=16))
    assert larger.shape == (3, 3, 16, 16)
    same = own.normalise(raw)
    assert as_seen(same, own, own) is same


def test_pseudo_labelled_images_are_taught_too(data):
    test = data.images.head(3).assign(image_id=["z2", "z0", "z1"])[["image_id", "path"]]
    more = replace(data, test=test)
    chosen = test.iloc[[1, 0]].assign(label=[0, 1])
    pseudo = PseudoRows(chosen, np.array([[0], [1]]), np.full((2, 1), 0.5), {"optimistic": []})
    config = student()
    job = Fold(config, more, 0, Path("runs/tiny/student/stage1/x"), start("fp32"), pseudo=pseudo)
    job = listening(job, teachers_of(config, "student", more, 0))
    rows = pseudo.added(more.training(0))
    expected = network_says(data, HOME / "stage1/fold0", rows[["image_id", "path"]])
    expected = expected - expected.max(1, keepdims=True)
    assert len(job.taught.views.logits) == len(rows) == len(data.training(0)) + 2
    np.testing.assert_allclose(job.taught.views.logits, expected, atol=4e-3)
    trainer, loader, _ = build_trainer(job)
    assert np.isfinite(trainer.train_epoch(loader, 0)["loss_distill"])


def test_what_flatters_a_teacher_flatters_whom_it_taught(data):
    manifest = HOME / "stage1/fold0/manifest.json"
    write_json(manifest, read_json(manifest) | {"select": "best"})
    where = train_tiny(student(SHORT), "student")
    (found,) = optimism([where.parent])
    assert found.startswith("The same holds for the networks that taught it") and "best" in found


# ---- refusals ----------------------------------------------------------------------------------


def test_another_teacher_is_refused(data, monkeypatch):
    config = student({"epochs": 2})
    train_tiny(config, "student")
    train_tiny(config, "killed", stop_after=1, monkeypatch=monkeypatch)
    (HOME / "stage1/fold0").rename(HOME / "stage1/was0")
    train_fold(tiny_config(train={"epochs": 1, "warmup_epochs": 0}), 0)
    for name in ("student", "killed"):
        with pytest.raises(UserError, match="made from another 'teacher/teacher/fold0/weights"):
            train_tiny(config, name)


def test_who_cannot_teach(data):
    (HOME / "stage1/fold0").rename(HOME / "stage1/was0")
    with pytest.raises(UserError, match="fold0 is taught by fold0 alone; fold1, was0 have seen wh"):
        job_of(student(), data, 0)
    with pytest.raises(UserError, match=r"fold0 is not finished, and full is taught by fold0 al"):
        job_of(student(), data, None)
    with pytest.raises(UserError, match="--config configs/nobody.yaml --folds 1"):
        job_of(student(experiment="nobody"), data, 1)
    with pytest.raises(UserError, match="it would teach itself"):
        teachers_of(student(), "teacher", data, 1)
    with pytest.raises(UserError, match=r"03_train_stage2.py \(of teacher, fold1\)"):
        job_of(student(experiment="teacher/crt"), data, 1)
    with pytest.raises(UserError, match=r"04_posthoc_calibrate.py \(of teacher\)"):
        job_of(student(experiment="teacher/posthoc"), data, 1)
    (HOME / "stage1/fold1/manifest.json").unlink()
    with pytest.raises(UserError, match="fold1 is not finished"):
        stage1.stage1(student(), "student", ["1"], False)


@pytest.mark.parametrize("changed", ["folds.csv", "classes.csv"])
def test_a_teacher_of_other_folds_or_classes_is_refused(data, changed):
    path = data.directory / changed
    path.write_bytes(path.read_bytes() + b"\n")
    seal(data.directory)
    match = "different folds.csv" if changed[0] == "f" else r"other classes \(6 of them\)"
    with pytest.raises(UserError, match=match):
        job_of(student(), data)


def test_neighbours_that_would_say_the_label_are_refused(data):
    where = HOME / "stage2/knn/fold0"
    bank = {
        "bank": np.ones((4, 64), np.float16), "labels": np.arange(4), "votes": np.ones(6),
        "k": np.int64(1), "temperature": np.float32(1), "smoothing": np.float32(0.1),
    }  # fmt: skip
    save_head(where / "head.safetensors", "knn", bank)
    seal(where, inputs={})
    with pytest.raises(UserError, match="each is its own nearest"):
        job_of(student(experiment="teacher/knn"), data)
    posthoc(data, head="knn")
    with pytest.raises(UserError, match="each is its own nearest"):
        job_of(student(experiment="teacher/posthoc"), data)


def test_what_is_balanced_already_is_not_balanced_again(data):
    train_fold(tiny_config(train=SHORT | {"criterion": {"name": "balanced_softmax"}}), 0, "fair")
    with pytest.raises(UserError, match=r"fair/stage1 has none in them \(train.criterion=bal"):
        job_of(student(experiment="fair", balance="weights"), data)
    posthoc(data, steps=[], per_fold={})
    job_of(student(experiment="teacher/posthoc", balance="prior"), data)
    steps = [{"step": "logit_adjustment", "params": {"tau": 1.0}}]
    posthoc(data, steps=steps, per_fold={"0": steps})
    with pytest.raises(UserError, match="04 adjusted its logits"):
        job_of(student(experiment="teacher/posthoc", balance="prior"), data)


def test_a_search_is_refused(data):
    with pytest.raises(UserError, match="train.distill: the teachers' networks have seen"):
        _check(student(), data)


BBN = {"network": "bbn"}
CASES = {
    "teaches in every step": ({"head_init": "class_means"}, {"epochs": 0}, {}),
    "name its teachers": ({}, {}, {"experiment": None, "weight": 0.2}),
    "each can teach once": ({}, {}, {"experiment": ["a", "a/stage1"]}),
    "tau is of balance=prior": ({}, {}, {"tau": 0.5}),
    "beta is of balance=weights": ({}, {}, {"balance": "prior", "beta": 0.5}),
    "views=same asks": ({}, {}, {"experiment": "a/posthoc", "views": "same"}),
    "manifold mixes inside": ({}, {"mixing": {"manifold": 1.0}}, {"views": "same"}),
    "no image of theirs": (BBN, {"second_sampler": "reversed"}, {}),
}


@pytest.mark.parametrize("why", CASES)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(why):
    model, train, keys = CASES[why]
    with pytest.raises(UserError, match=why):
        student(train, model, **keys)


if __name__ == "__main__":  # each process of test_two_processes_hear_what_one_hears
    for kind in ("fixed", "same"):
        train_fold(one_epoch(kind), 0, f"two-{kind}")
