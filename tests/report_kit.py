"""A small finished run of real digits, with class and file names that are HTML: what the report is
made of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

from src.artifacts.files import sha256, write_json, write_table
from src.artifacts.predictions import Predictions
from src.config.judge import Judge
from src.config.read import parse_config
from src.fusion.store import save_recipe
from src.metrics import rule_text
from src.report.context import gather
from src.report.page import write_report
from tests.fabricate import seal, write_evidence

# each sets window.pwned where it is taken for HTML
EVIL = (
    '"><img src=x onerror=pwned=1>',
    "--></script><script>pwned=1</script>",
    "'&amp;<svg onload=pwned=1>",
)
COUNTS = [40, 30, 22, 16, 12, 9, 7, 5, 4, 3]  # images of digit 0 … 9
FOLDS, K, EPOCHS = 3, len(COUNTS), 4
CONFIG = {
    "data": {"name": "digits"},
    "bins": {"many": 15, "few": 6},
    "folds": {"k": FOLDS},
    "stage2": [{"head": "ncm"}],
}


def fill(home: Path, images: pd.DataFrame, pixels: np.ndarray) -> None:
    """What 02, 03, 04 and 06 write."""
    for stage, sharpness in (("stage1", 3.0), ("stage2/ncm", 12.0)):
        for fold in range(FOLDS):
            save(home / stage / f"fold{fold}", images, pixels, fold, sharpness)
    posthoc(home, images, pixels)
    predicted(home, images, pixels)
    write_evidence(home, images[::7], np.arange(len(images[::7])) % K)
    submission(home.parent / "submissions")
    searched(home / "search", "train.lr", {})
    searched(home / "stage2/ncm/search", "ncm.x<y", {"fold": 0, "gain": 0.0125, "noise": 0.005})


def prepare(root: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """What 01 writes, from real digits; classes have names that are HTML."""
    digits = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == c)[:n] for c, n in enumerate(COUNTS)])
    (root / "images").mkdir()
    names = [f"{i:05d}{EVIL[0] if i % 9 == 0 else ''}" for i in range(len(rows))]
    for name, row in zip(names, rows, strict=True):
        grey = (digits.images[row] * 15.9).astype(np.uint8)
        Image.fromarray(grey).save(root / "images" / f"{name}.png")
    label = digits.target[rows]
    images = pd.DataFrame(
        {
            "image_id": names,
            "path": [f"images/{name}.png" for name in names],
            "class_id": [f"0{4780 + 3 * c}" for c in label],
            "label": label,
            "fold": np.arange(len(rows)) % FOLDS,
            "group_id": names,
            "width": 8,
            "height": 8,
        }
    )
    classes = images.drop_duplicates("label")[["label", "class_id"]]
    classes["class_name"] = [EVIL[c % 3] + f"<b>x{c}</b>" for c in range(K)]
    classes["count"] = COUNTS
    classes["bin"] = ["many" if n > 15 else "few" if n < 6 else "medium" for n in COUNTS]
    folder = root / "runs/digits/folds"
    write_table(folder / "folds.csv", images)
    write_table(folder / "classes.csv", classes)
    test = images[["image_id", "path"]].iloc[::3]
    write_table(folder / "test.csv", test)
    truth = {"id": test["image_id"], "class": images["class_id"].iloc[::3]}
    solution = write_table(root / "solution.csv", pd.DataFrame(truth))
    pair = {"image_id_a": names[0], "image_id_b": names[3], "split_a": "train", "split_b": "train"}
    pair |= {"kind": "exact", "distance": 0, "class_id_a": "04780", "class_id_b": "04780"}
    write_table(folder / "duplicates.csv", pd.DataFrame([pair | {"conflict": "no"}]))
    columns = {"id_column": "id", "label_column": "class"}
    pair = images[["image_id", "class_id"]].head(2).assign(scene=names[0])
    write_table(folder / "scenes.csv", pair)
    seen = {"looked_at": 148, "features": "pixels", "mates": 0.1, "apart": 0.9, "neighbours": 50}
    seen |= {"closer": 0.9, "scenes": 1, "images": 2, "largest": 2, "split_without": 0.0135}
    manifest(folder, submission=columns, solution=str(solution.relative_to(root)), scenes=seen)
    return images, digits.data[rows]


def manifest(directory: Path, **facts) -> None:
    folds = Path("runs/digits/folds/folds.csv")
    tree = {"git": "0123456789ab", "inputs": {"folds.csv": sha256(folds)}, "seconds": 61.5}
    tree |= {"settings": {}, "versions": {"python": "3.11"}, "machine": "x86_64, 2 cores"}
    seal(directory, **tree | facts)


def logits_of(images: pd.DataFrame, pixels: np.ndarray, fold: int, sharpness: float) -> np.ndarray:
    """Cosine to the class means of the other folds, times `sharpness`, for all images, which are
    made noisy so that there is something to confuse."""
    pixels = pixels + np.random.default_rng(0).normal(scale=9, size=pixels.shape)
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    train = (images["fold"] != fold).to_numpy()
    label = images["label"].to_numpy()
    means = np.stack([unit[train & (label == c)].mean(0) for c in range(K)])
    prior = np.log(np.bincount(label[train], minlength=K)) if sharpness < 10 else 0
    return (sharpness * unit @ means.T + 0.3 * prior).astype(np.float32)


def save(
    directory: Path, images: pd.DataFrame, pixels: np.ndarray, fold: int, sharpness: float
) -> None:
    out = (images["fold"] == fold).to_numpy()
    logits = logits_of(images, pixels, fold, sharpness)[out]
    ids, label = images["image_id"][out].to_numpy(), images["label"][out].to_numpy()
    oof = Predictions(ids, logits, label, np.full(len(ids), fold))
    oof.save(directory / "oof.npz")
    metrics_table(fold).to_csv(directory / "metrics.csv", index=False)
    manifest(directory, select="last", device="cpu")


def metrics_table(fold: int) -> pd.DataFrame:
    """As 02 writes it: validation on even epochs only."""
    epoch = np.arange(1, EPOCHS + 1)
    score = np.where(epoch % 2, np.nan, 0.5 + 0.1 * epoch + 0.01 * fold)
    columns = ("accuracy", "balanced_accuracy", "many", "medium", "few")
    losses = {"loss": 3 / epoch, "loss_class": 2 / epoch, "loss_bin": 1 / epoch}
    frame = {"epoch": epoch, "lr": 0.1 / epoch} | losses
    return pd.DataFrame(frame | {name: score - 0.02 * i for i, name in enumerate(columns)})


def posthoc(home: Path, images: pd.DataFrame, pixels: np.ndarray) -> None:
    parts = [logits_of(images, pixels, fold, 15.0) for fold in range(FOLDS)]
    fold = images["fold"].to_numpy()
    logits = np.choose(fold[:, None], parts)
    directory = home / "posthoc"
    ids, label = images["image_id"].to_numpy(), images["label"].to_numpy()
    Predictions(ids, logits, label, fold).save(directory / "oof.npz")
    steps = [{"step": "tau_norm", "params": {"tau": 0.7}}]
    steps += [{"step": "shift", "params": {"b": np.zeros(10)}}]
    recipe = {"head": "stage1", "steps": steps, "rule": rule_text(Judge(standard_errors=2.5))}
    save_recipe(directory, recipe)
    tried = ("stage1", "tau_norm", "yes", 0.0416, 0.0066, 0.0766, 0.8512345, "{}", "it's better")
    rows = [("stage1", "", "", "", "", "", 0.81, "", ""), tried]
    gains = ["gain", "gain_low", "gain_high"]
    columns = ["start", "step", "kept", *gains, "accuracy", "params", "reason"]
    write_table(directory / "table.csv", pd.DataFrame(rows, columns=columns))
    manifest(directory)


def predicted(home: Path, images: pd.DataFrame, pixels: np.ndarray) -> None:
    """Of 05: the test images are some of the others, seen by the first fold's network."""
    ids, unknown = images["image_id"].to_numpy()[::3], np.full(len(images[::3]), -1)
    for head, sharpness in (("stage1", 3.0), ("ncm", 12.0), ("posthoc", 15.0)):
        logits = logits_of(images, pixels, 0, sharpness)[::3]
        Predictions(ids, logits, unknown, unknown).save(home / "predict" / f"{head}.npz")
    manifest(home / "predict")


def searched(directory: Path, key: str, judged: dict) -> None:
    """What a search of three trials leaves, one of them pruned."""
    rows = {"trial": range(3), "state": ["complete", "complete", "pruned"]}
    rows |= {"score": [0.5, 0.7, np.nan], key: [0.01, 0.02, 0.08]}
    write_table(directory / "trials.csv", pd.DataFrame(rows))
    best = {"values": {key: 0.02}, "metric": "accuracy", "score": 0.7, "trial": 1, "trials": 3}
    write_json(directory / "best.json", best | judged)
    span = {"low": 0.01, "high": 0.1, "log": True, "choices": None}
    manifest(directory, settings={"search": {"keys": {key: span}, "fold": 1}})


def submission(directory: Path) -> None:
    """As 06 writes its manifest; the scores are made up, the report only shows them."""
    scores = {name: 0.9125 for name in ("accuracy", "balanced_accuracy", "macro_f1", "top5")}
    scores |= {"many": 0.95, "medium": 0.9, "few": 0.6125, "nll": 0.4, "ece": 0.05}
    weights = {"exp/posthoc": 0.75, "exp/stage1": 0.25}
    oof = directory.parent / "exp/posthoc/oof.npz"
    manifest(
        directory,
        settings={"members": {"exp": ["posthoc", "stage1"]}, "metric": "balanced_accuracy"},
        inputs={"exp/posthoc/oof.npz": sha256(oof)},
        weights=weights,
        metrics={"oof": scores, "solution": scores | {"images": 12345}},
        members_oof={name: scores for name in weights},
        method="greedy",
        reason="better than the mean & more",
    )
    (directory / "manifest.json").rename(directory / "exp.manifest.json")


def write(experiments: Sequence[str] = ("exp",)) -> str:
    configs = [parse_config(CONFIG)] * len(experiments)
    report = gather("digits", list(experiments), configs)
    return write_report(report).read_text(encoding="utf-8")
