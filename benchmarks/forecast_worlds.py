"""Simulated competitions with known truth, for benchmarks/forecast.py.

Images are real: CIFAR-10's as features of a MobileNetV2 that ImageNet trained, and as bare pixels;
scikit-learn's digits as pixels. Each competition draws training and test images anew, cuts a tail,
makes folds, trains a network per fold (all of them at once: batched matrices), and predicts the
test images with the mean of their log-probabilities. So folds, tails and ensembles have the effects
they really have, and the score on the test images is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from src.artifacts.files import read_arrays, write_arrays
from src.forecast import Evidence
from src.prepare.longtail import tail_counts

K, WIDTH, PER_CLASS = 10, 64, 700
RAW, WEIGHTS = Path("data/raw"), Path("data/weights/mobilenetv2_100.same.in1k.safetensors")
SOURCES = {"cifar10, features": (300, 3000), "cifar10, pixels": (300, 3000), "digits": (90, 700)}
RATIOS, PRIORS, FOLDS = (1, 10, 100), ("balanced", "train", "random"), (3, 5, 10)
SHOTS, STEPS = 3, 150
LEARNERS, KINDS = ("linear", "mlp", "trees"), ("plain", "plain", "plain", "bursts", "another day")


@dataclass(frozen=True)
class Setting:
    """source: of images · ratio: of the tail · prior: of the test images · folds: k"""

    source: str
    ratio: int
    prior: str
    folds: int


def settings() -> list[Setting]:
    return [Setting(s, r, p, k) for s in SOURCES for r in RATIOS for p in PRIORS for k in FOLDS]


# ---- images --------------------------------------------------------------------------------------


def load_sources(cache: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features [N, 64] of unit variance and labels [N] of each source; made once."""
    if not cache.is_file():
        pixels, digit = load_digits(return_X_y=True)
        images, labels = _cifar()
        found = {
            "cifar10, features": (_whitened(_mobilenet(images)), labels),
            "cifar10, pixels": (_whitened(images[:, ::2, ::2].reshape(len(images), -1)), labels),
            "digits": (_whitened(pixels), digit),
        }
        arrays = {
            f"{n}|{part}": a for n, two in found.items() for part, a in zip("xy", two, strict=True)
        }
        write_arrays(cache, **arrays)
    arrays = read_arrays(cache)
    return {n: (arrays[f"{n}|x"], arrays[f"{n}|y"].astype(int)) for n in SOURCES}


def _cifar() -> tuple[np.ndarray, np.ndarray]:
    """The first 700 images of each class, [N, 32, 32, 3] in 0 … 255."""
    images, labels = [], []
    for label, directory in enumerate(sorted((RAW / "cifar10" / "train").iterdir())):
        for path in sorted(directory.iterdir())[:PER_CLASS]:
            images.append(np.asarray(Image.open(path).convert("RGB"), np.float32))
            labels.append(label)
    return np.stack(images), np.array(labels)


@torch.inference_mode()
def _mobilenet(images: np.ndarray) -> np.ndarray:
    """Features [N, 1280] at 96 pixels."""
    network = timm.create_model("mobilenetv2_100", checkpoint_path=str(WEIGHTS)).eval()
    norm = [torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
    out = []
    for start in range(0, len(images), 100):
        x = torch.from_numpy(images[start : start + 100]).permute(0, 3, 1, 2) / 255
        x = torch.nn.functional.interpolate(x, size=96, mode="bicubic")
        features = network.forward_features((x - norm[0]) / norm[1])
        out.append(network.forward_head(features, pre_logits=True))
    return torch.cat(out).numpy()


def _whitened(x: np.ndarray) -> np.ndarray:
    """Leading principal components, scaled so that the mean variance is 1."""
    x = x - x.mean(0)
    _, _, v = np.linalg.svd(x[:: max(1, len(x) // 2000)], full_matrices=False)
    z = x @ v[:WIDTH].T
    return (z / np.sqrt((z**2).mean())).astype(np.float32)


# ---- competitions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Competition:
    """evidence: what 06 has, with no metric yet · truth: labels of the test images, [M] · learner,
    kind: see `compete`"""

    evidence: Evidence
    truth: np.ndarray
    learner: str
    kind: str


def competitions(
    cache: Path, seeds: tuple[range, ...]
) -> Iterator[tuple[int, Setting, int, Competition]]:
    """Number of the setting, the setting, seed and competition; from `cache` what is there.

    seeds: of every setting, in turn
    """
    sources = load_sources(cache / "sources.npz")
    for number, setting in enumerate(settings()):
        for seed in seeds[number % len(seeds)]:
            path = cache / f"{number}-{seed}.npz"
            if not path.is_file():
                _save(path, compete(setting, sources, seed))
            yield number, setting, seed, _load(path)


def _save(path: Path, found: Competition) -> None:
    e = vars(found.evidence)
    arrays = {name: np.asarray(e[name]) for name in KEPT}
    arrays |= {name: np.asarray(getattr(found, name)) for name in ("truth", "learner", "kind")}
    write_arrays(path, **arrays)


def _load(path: Path) -> Competition:
    a = read_arrays(path)
    facts = {name: a[name] for name in KEPT} | {"networks": float(a["networks"])}
    evidence = Evidence(**facts, experiments=1.0, metric="")
    return Competition(evidence, a["truth"], str(a["learner"]), str(a["kind"]))


KEPT = ("oof", "labels", "seen", "counts", "test", "networks")


def compete(setting: Setting, sources: dict, seed: int) -> Competition:
    """A competition of this setting. Random in it: the images, the size of the test set, the
    learner, whether logits are adjusted for the tail, and its kind: plain; bursts, where
    training images come in threes that folds tear apart; another day, where all test images
    are moved in one direction and are noisier."""
    rng = np.random.default_rng([seed, settings().index(setting)])
    learner, kind = LEARNERS[rng.integers(len(LEARNERS))], KINDS[rng.integers(len(KINDS))]
    train, test = _drawn(setting, sources[setting.source][1], kind, rng)
    x, y = sources[setting.source]
    images, labels, seen_at = x[train], y[train], x[test]
    if kind == "bursts":
        images, labels = _shots(images, labels, x, y, rng)
    if kind == "another day":
        direction = rng.normal(size=x.shape[1])
        direction *= rng.uniform(0.5, 3) / np.linalg.norm(direction)
        seen_at = seen_at + direction + rng.normal(0, rng.uniform(0, 0.5), seen_at.shape)
    fold = _folds(labels, setting.folds, rng)
    logits = _fit(learner, images.astype(np.float32), labels, fold, seen_at.astype(np.float32), rng)
    counts = np.bincount(labels, minlength=K)
    if rng.random() < 0.5:
        logits = [z - np.log(np.maximum(counts, 1)) for z in logits]
    at_home, away = (log_softmax(z, axis=-1).astype(np.float32) for z in logits)
    held = np.zeros((setting.folds, K), int)
    np.add.at(held, (fold, labels), 1)
    evidence = Evidence(
        oof=at_home[fold, np.arange(len(fold))],
        labels=labels,
        seen=(counts - held)[fold, labels],
        counts=counts,
        test=log_softmax(away.mean(0), axis=-1),
        networks=setting.folds,
        experiments=1.0,
        metric="",
    )
    return Competition(evidence, y[test], learner, kind)


def _drawn(setting: Setting, y: np.ndarray, kind: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rows of training images with their tail, and of test images by their prior."""
    largest, most = SOURCES[setting.source]
    wanted = np.maximum(tail_counts("exp", largest, K, setting.ratio), 2)
    share = {
        "balanced": np.ones(K),
        "train": wanted.astype(float),
        "random": rng.dirichlet(np.ones(K)) + 0.01,
    }[setting.prior]
    share /= share.sum()
    if kind == "bursts":
        wanted = -(-wanted // SHOTS)
    left = np.bincount(y) - wanted
    size = min(int(most * np.exp(rng.uniform(-2.5, 0))), int((left / share).min()))
    train, test = [], []
    for c, of_test in enumerate(np.floor(size * share).astype(int)):
        rows = rng.permutation(np.flatnonzero(y == c))
        train.append(rows[: wanted[c]])
        test.append(rows[wanted[c] :][:of_test])
    return np.concatenate(train), np.concatenate(test)


def _shots(images, labels, x, y, rng) -> tuple[np.ndarray, np.ndarray]:
    """SHOTS images of each, that share ρ of what tells images of a class apart and take the rest
    from images of the class that are not related."""
    labels, rho = np.repeat(labels, SHOTS), rng.uniform(0.5, 0.95)
    mean = np.stack([x[y == c].mean(0) for c in range(K)])[labels]
    others = x[[rng.choice(np.flatnonzero(y == c)) for c in labels]]
    shared = np.repeat(images, SHOTS, axis=0) - mean
    return mean + rho * shared + np.sqrt(1 - rho**2) * (others - mean), labels


def _folds(labels: np.ndarray, k: int, rng) -> np.ndarray:
    """Stratified, [N]."""
    fold = np.empty(len(labels), int)
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        fold[rows] = (np.arange(len(rows)) + rng.integers(k)) % k
    return fold


def _fit(learner: str, x, y, fold, test, rng) -> tuple[np.ndarray, np.ndarray]:
    """Logits of each fold's network for all training and all test images, [k, N, K], [k, M, K]."""
    if learner != "trees":
        return _networks(64 if learner == "mlp" else 0, x, y, fold, test, rng)
    at_home, away = [], []
    for k in range(fold.max() + 1):
        model = ExtraTreesClassifier(30, max_depth=12, random_state=int(rng.integers(2**31)))
        model.fit(x[fold != k], y[fold != k])
        for out, images in ((at_home, x), (away, test)):
            p = np.zeros((len(images), K))
            p[:, model.classes_] = model.predict_proba(images)
            out.append(np.log(p + 0.01))
    return np.stack(at_home), np.stack(away)


def _networks(hidden: int, x, y, fold, test, rng) -> tuple[np.ndarray, np.ndarray]:
    """One network for each fold, all trained at once: Adam on batches of 64, cosine, 150 steps."""
    torch.manual_seed(int(rng.integers(2**31)))
    k, sizes = fold.max() + 1, [x.shape[1], *([hidden] if hidden else []), K]
    weights = [torch.randn(k, a, b) / a**0.5 for a, b in zip(sizes, sizes[1:], strict=False)]
    biases = [torch.zeros(k, 1, b) for b in sizes[1:]]
    params = [p.requires_grad_() for p in (*weights, *biases)]
    optimizer = torch.optim.AdamW(params, lr=0.02, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def logits(z):  # [k, n, D] → [k, n, K]
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = torch.baddbmm(b, torch.relu(z) if i else z, w)
        return z

    rows = [np.flatnonzero(fold != j) for j in range(k)]
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(STEPS):
        batch = torch.from_numpy(np.stack([rng.choice(r, 64) for r in rows]))
        loss = torch.nn.functional.cross_entropy(
            logits(images[batch]).flatten(0, 1), labels[batch].flatten(), reduction="sum"
        )
        optimizer.zero_grad()
        (loss / 64).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return tuple(
            logits(z.expand(k, *z.shape)).numpy() for z in (images, torch.from_numpy(test))
        )
