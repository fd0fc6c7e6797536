"""The report: right numbers, nothing left out, nothing fetched, nothing injected."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score

import src.report.stages as stages_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table, sha256, write_json, write_table
from src.artifacts.predictions import Predictions, load_predictions
from src.artifacts.trained import write_config
from src.config.judge import Judge
from src.config.read import parse_config
from src.fusion.store import save_recipe
from src.metrics import Outcomes, rule_text
from src.plots.curves import curve_panels, draw_curves
from src.report.confusions import worst_pairs
from src.report.context import gather
from src.report.page import SECTIONS, write_report
from src.report.stages import format_table, gains, score_rows, score_stages, table_of
from tests.fabricate import count, seal, write_evidence

COUNTS = [40, 30, 22, 16, 12, 9, 7, 5, 4, 3]  # images of digit 0 … 9
FOLDS, K, EPOCHS = 3, len(COUNTS), 4
CONFIG = {
    "data": {"name": "digits"},
    "bins": {"many": 15, "few": 6},
    "folds": {"k": FOLDS},
    "stage2": [{"head": "ncm"}],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A directory with a complete small run, runs/digits/exp, and its page."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        images, pixels = prepare(root)
        home = root / "runs/digits/exp"
        fill(home, images, pixels)
        return root, write()


@pytest.fixture
def page(finished, monkeypatch) -> str:
    monkeypatch.chdir(finished[0])
    return finished[1]


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """A copy of runs/digits that a test may break; the working directory is above."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/digits"


def fill(home: Path, images: pd.DataFrame, pixels: np.ndarray) -> None:
    """What 02, 03, 04 and 06 write."""
    for stage, sharpness in (("stage1", 3.0), ("stage2/ncm", 12.0)):
        for fold in range(FOLDS):
            save(home / stage / f"fold{fold}", images, pixels, fold, sharpness)
    posthoc(home, images, pixels)
    write_evidence(home, images[::7], np.arange(len(images[::7])) % K)
    submission(home.parent / "submissions")
    searched(home / "search", "train.lr", {})
    searched(home / "stage2/ncm/search", "ncm.x<y", {"fold": 0, "gain": 0.0125, "noise": 0.005})


def prepare(root: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """What 01 writes, from real digits; classes have names that are HTML."""
    digits = load_digits()
    rows = np.concatenate([np.flatnonzero(digits.target == c)[:n] for c, n in enumerate(COUNTS)])
    (root / "images").mkdir()
    names = [f"{i:05d}" for i in range(len(rows))]
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
    classes["class_name"] = [f"<b>x{c}</b>" for c in range(K)]
    classes["count"] = COUNTS
    classes["bin"] = ["many" if n > 15 else "few" if n < 6 else "medium" for n in COUNTS]
    folder = root / "runs/digits/folds"
    write_table(folder / "folds.csv", images)
    write_table(folder / "classes.csv", classes)
    write_table(folder / "test.csv", images[["image_id", "path"]].head(3))
    pair = {"image_id_a": names[0], "image_id_b": names[3], "split_a": "train", "split_b": "train"}
    pair |= {"kind": "exact", "distance": 0, "class_id_a": "04780", "class_id_b": "04780"}
    write_table(folder / "duplicates.csv", pd.DataFrame([pair | {"conflict": "no"}]))
    manifest(folder)
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


def write() -> str:
    report = gather("digits", ["exp"], [parse_config(CONFIG)])
    return write_report(report).read_text(encoding="utf-8")


def stage_table() -> pd.DataFrame:
    data = load_dataset("digits")
    return table_of(data, score_rows(data, "exp", score_stages(data, "exp")))


def test_what_a_stage_gains_over_the_first_has_an_interval(run):
    data, table = load_dataset("digits"), stage_table()
    stages = score_stages(data, "exp")
    for metric in ("balanced_accuracy", "accuracy"):
        found = gains(stages, metric, K)
        assert list(found) == list(stages)[1:]
        for name, text in found.items():
            gain, low, high = map(float, re.findall(r"[-+]\d\.\d{3}", text))
            change = table.loc[name, metric] - table[metric].iloc[0]
            assert gain == pytest.approx(change, abs=6e-4) and low <= gain <= high
    assert set(gains({"a": stages["stage1"], "b": stages["stage1"]}, "top5", K).values()) == {
        "+0.000 [+0.000, +0.000]"
    }


def test_the_page_shows_the_interval_of_each_stages_gain(run, page):
    found = gains(score_stages(load_dataset("digits"), "exp"), "balanced_accuracy", K)
    for text in found.values():
        assert text.partition(" ")[2].replace("-", "−") in page


def test_page_has_every_section_and_is_one_file(page):
    for anchor, title, _ in SECTIONS:
        assert f'<section id="{anchor}">' in page, title
    assert not re.search(r"https?:|<script|@import|<iframe", page)
    for reference in re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')>\s]+)', page):
        assert reference.startswith(("#", "data:")), reference
    for fact in (
        "tau_norm",
        "exp/posthoc",
        "0.750",
        "0123456789ab",
        "&gt; 15",
        "exact",
        "0.851",
        "+0.042 [+0.007, +0.077]",
        "b = array [10]",
        "more than 2.5 standard errors of the gain",
        "12\u202f345",
    ):
        assert fact in page, fact
    assert page.count("data:image/jpeg;base64,") > 8
    assert "missing" not in page.split("</style>")[1], "a complete run lacks nothing"


def test_searches_are_shown_where_there_are_any(page, run):
    part = page.split('<section id="search">')[1].split("</section>")[0]
    for name in ("search", "stage2/ncm/search"):
        assert f"<code>{name}</code>" in part
    assert part.count("<svg") == 4 and "ncm.x&lt;y" in part  # each the history and the one key
    assert "train.lr = 0.02; trial 1 of 3, accuracy 0.700" in part
    assert "+0.013 over the config" in part and "(95 %: +0.003 to +0.022)" in part
    (run / "exp/search/manifest.json").unlink()  # unfinished
    again = write()
    assert "<code>search</code>" not in again and "<code>stage2/ncm/search</code>" in again
    shutil.rmtree(run / "exp/stage2/ncm/search")
    assert "#search" not in write() and 'id="search"' not in write()


def test_figures_refer_to_parts_that_exist_once(page):
    for figure in re.findall(r"<svg.*?</svg>", page, re.S):
        ids = re.findall(r' id="([^"]+)"', figure)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', figure)) <= set(ids)


def test_class_names_are_escaped(page):
    assert not re.search(r"<b>x\d</b>", page)
    assert re.search(r"&lt;b&gt;x\d&lt;/b&gt;", page)


def test_stage_table_is_what_hand_computation_gives(page):
    table = stage_table()
    assert table.index.tolist() == ["stage1", "stage2/ncm", "posthoc", "ensemble"]
    assert table.loc["ensemble", "few"] == 0.6125
    parts = [np.load(f"runs/digits/exp/stage1/fold{k}/oof.npz") for k in range(FOLDS)]
    logits, label = (np.concatenate([p[name] for p in parts]) for name in ("logits", "label"))
    right, guess = logits.argmax(1) == label, logits.argmax(1)
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    row = table.loc["stage1"]
    assert row["images"] == sum(COUNTS)
    assert row["accuracy"] == pytest.approx(right.mean())
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, guess))
    assert row["few"] == pytest.approx(np.mean([right[label == c].mean() for c in (7, 8, 9)]))
    assert row["nll"] == pytest.approx(-np.log(p[np.arange(len(label)), label]).mean())
    assert f"{row['few']:.3f}" in page


def test_format_table_aligns_and_rounds():
    table = pd.DataFrame({"images": [148, 7], "balanced_accuracy": [0.12345, np.nan]})
    table.index = pd.Index(["stage1", "b"], name="stage")
    assert format_table(table).splitlines() == [
        "stage   images  balanced",
        "------------------------",
        "stage1     148     0.123",
        "b            7         –",
    ]


def test_worst_pairs_are_directed_shares_of_the_true_class(page):
    data = load_dataset("digits")
    stage = score_stages(data, "exp")["stage1"]
    pairs = worst_pairs(stage, data, pairs=5)
    rates = [pair.rate for pair in pairs]
    assert rates == sorted(rates, reverse=True) and len(pairs) > 1
    label = data.images.set_index("image_id")["label"]
    guess = dict(zip(stage.image_id, stage.outcomes.predicted, strict=True))
    for pair in pairs:
        same = (stage.label == pair.true) & (stage.outcomes.predicted == pair.taken_for)
        assert pair.rate == pytest.approx(same.sum() / (stage.label == pair.true).sum())
        assert all(label[i] == pair.true and guess[i] == pair.taken_for for i in pair.wrong_ids)
        assert all(label[i] == pair.taken_for for i in pair.typical_ids)


def test_missing_stages_name_their_script(run):
    for path in ("submissions", "exp/posthoc", "exp/stage2", "exp/stage1/fold1"):
        shutil.rmtree(run / path)
    page = write()
    for script in ("02_train_stage1", "03_train_stage2", "04_posthoc_calibrate", "06_ensemble"):
        assert f"{script}.py" in page
    assert stage_table()["images"].tolist() == [int(np.ceil(148 / 3)) + 49]
    for fold in (0, 2):
        (run / f"exp/stage1/fold{fold}/manifest.json").unlink()
    assert "No fold is finished" in write()
    assert stage_table().empty
    assert "stage" in format_table(stage_table())


def test_the_page_shows_what_was_trained_and_not_what_the_yaml_says_now(run, capsys):
    write_config(run / "exp", parse_config({"train": {"epochs": 7, "lr": 0.0321}}), {})
    page = write_report(gather("digits", ["exp"], [parse_config({})])).read_text()
    assert "lr: 0.0321" in page and "epochs: 7" in page
    assert "trained with train.epochs = 7 (now 30)" in capsys.readouterr().out


def test_an_ensemble_of_older_predictions_is_left_out(run):
    path = run / "exp/posthoc/oof.npz"
    old = load_predictions(path, K)
    replace(old, logits=2 * old.logits).save(path)
    manifest(path.parent)  # 04 was run again
    assert "ensemble" not in stage_table().index


def test_predictions_of_other_folds_are_not_scored(run):
    manifest(run / "exp/stage1/fold1", inputs={"folds.csv": "0" * 64})
    page = write()
    assert "made from a different folds.csv" in page


def test_images_that_are_gone_leave_a_gap(run):
    for path in Path("images").iterdir():
        path.unlink()
    assert "image not found" in write()


def test_best_epoch_is_marked_optimistic(page, run):
    assert "OOF optimistic" not in page
    manifest(run / "exp/stage1/fold0", select="best")
    page = write()
    assert "OOF optimistic" in page and "best on its held-out images (train.select: best)" in page


@pytest.mark.parametrize(
    "stage, key, where",
    [
        ("stage1", "train.lr", "fold 1&#x27;s training images"),
        ("stage2/ncm", "ncm.x<y", "the held-out images of all folds but fold 1"),
    ],
)
def test_searched_settings_are_marked_where_a_stage_has_them(page, run, stage, key, where):
    assert "slightly optimistic" not in page  # there are searches, but nothing used what they found
    manifest(run / "exp" / stage / "fold0", searched={key: 0.02})
    shown = write()
    badges = re.findall(r'title="Out-of-fold scores [^"]*searched on ([^"]*)[.]">', shown)
    below = re.findall(r">Out-of-fold scores [^<]*searched on ([^<]*)[.]</p>", shown)
    assert len(below) == 1 and set(badges) == set(below)
    assert below[0].startswith(where) and below[0].endswith(f"({key.replace('<', '&lt;')})")


def test_what_earlier_versions_wrote_is_still_shown(run):
    """No intervals, no rule, no parameters of the combiner."""
    path = run / "exp/posthoc/posthoc.json"
    write_json(path, {k: v for k, v in read_json(path).items() if k != "rule"})
    table = read_table(run / "exp/posthoc/table.csv")
    write_table(run / "exp/posthoc/table.csv", table.drop(columns=["gain_low", "gain_high"]))
    seal(path.parent)
    page = write()
    assert ">+0.042<" in page and "standard errors" not in page


def test_every_stage_is_scored_once(run, monkeypatch):
    """06 prints the table and writes the page: from the same scores."""
    loaded = count(monkeypatch, stages_module, "load_predictions")
    calibrated = count(monkeypatch, Outcomes, "calibration")
    report = gather("digits", ["exp"], [parse_config(CONFIG)])
    table_of(report.data, report.experiments[0].rows)
    write_report(report)
    assert len(loaded) == 2 * FOLDS + 1 and len(calibrated) == 3


def test_same_runs_give_the_same_bytes(page):
    assert write() == page


def test_curves_are_drawn_for_every_kind_of_run(tmp_path):
    full = metrics_table(0)[["epoch", "lr", "loss"]]
    assert list(curve_panels({"full": full})) == ["loss", "lr"]
    assert list(curve_panels({"fold0": metrics_table(0)})) == ["loss", "score", "bins", "lr"]
    for name, metrics in {
        "folds": {f"fold{k}": metrics_table(k) for k in range(3)} | {"full": full},
        "one": {"fold0": metrics_table(0).head(2)},
        "full": {"full": full.head(1)},
    }.items():
        path = draw_curves(metrics, tmp_path / f"{name}.png")
        first = path.read_bytes()
        assert Image.open(path).size[0] > 800
        assert draw_curves(metrics, path).read_bytes() == first


def test_report_does_not_import_torch():
    code = "import sys, src.report.page; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
    )
