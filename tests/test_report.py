"""The report: right numbers, nothing left out, nothing fetched, nothing injected."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

import src.report.stages as stages_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table, write_json, write_table
from src.artifacts.predictions import load_predictions
from src.artifacts.trained import write_config
from src.config.read import parse_config
from src.errors import UserError
from src.metrics import Gain, Outcomes
from src.plots.curves import curve_panels, draw_curves
from src.report.board import _words as leaderboard_words
from src.report.board import minutes
from src.report.confusions import worst_pairs
from src.report.context import gather
from src.report.held import Point, points_of
from src.report.held import _correlation as correlation
from src.report.held import test_labels as labels_of_the_test
from src.report.overview import header
from src.report.page import SECTIONS, write_report
from src.report.results import _scores
from src.report.stages import format_table, gains, score_rows, score_stages, table_of
from tests.fabricate import count, seal
from tests.report_kit import (
    CONFIG,
    COUNTS,
    EPOCHS,
    EVIL,
    FOLDS,
    K,
    fill,
    manifest,
    metrics_table,
    prepare,
    write,
)


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


def stage_table() -> pd.DataFrame:
    data = load_dataset("digits")
    return table_of(data, score_rows(data, "exp", score_stages(data, "exp")))


def test_what_a_stage_gains_over_the_first_has_an_interval(run):
    data, table = load_dataset("digits"), stage_table()
    stages = score_stages(data, "exp")
    for metric in ("balanced_accuracy", "accuracy"):
        found = gains(stages, metric, K)
        assert list(found) == list(stages)[1:]
        for name, told in found.items():
            gain, low, high = map(float, re.findall(r"[-+]\d\.\d{3}", str(told)))
            change = table.loc[name, metric] - table[metric].iloc[0]
            assert gain == pytest.approx(change, abs=6e-4) and low <= gain <= high
    same = gains({"a": stages["stage1"], "b": stages["stage1"]}, "top5", K)
    assert str(same["b"]) == "+0.000 [+0.000, +0.000]"


def test_the_page_shows_the_interval_of_each_stages_gain(run, page):
    found = gains(score_stages(load_dataset("digits"), "exp"), "balanced_accuracy", K)
    for told in found.values():
        assert str(told).partition(" ")[2].replace("-", "−") in page


def test_page_has_every_section_and_is_one_file(page):
    for anchor, title, _ in SECTIONS:
        assert f'<section id="{anchor}">' in page, title
    assert not re.search(r"https?:|@import|<iframe", page)
    assert re.findall("<script[^>]*>", page) == ['<script type="application/json">', "<script>"]
    inside = re.findall(r'<[a-z][^>]*?\s(?:src|href)=["\']?([^"\'>]+)', page)
    for reference in [*inside, *re.findall(r"url\(([^)]+)", page)]:
        assert reference.startswith(("#", "data:")), reference
    for fact in (
        "tau_norm",
        "exp/posthoc",
        "0.750",
        "0123456789ab",
        "&gt; 15",
        "exact",
        "0.851",
        "+0.042<small>[+0.007, +0.077]</small>",
        "b = array [10]",
        "more than 2.5 standard errors of the gain",
        "12\u202f345",
        "2 images show 1 scene,",
        "1 pair of files shows one photo",
        "The first 1 of 1 pair<",
        "The largest 1 scene<",
    ):
        assert fact in page, fact
    assert page.count("data:image/jpeg;base64,") > 8 and "loading=" not in page  # also in print
    assert "missing" not in page.split("</style>")[1], "a complete run lacks nothing"


def test_every_section_says_what_it_is_before_it_shows_anything(page):
    for anchor, title, _ in SECTIONS:
        body = page.split(f'<section id="{anchor}">')[1].split("</h2>\n", 1)[1]
        assert body.startswith('<p class="note">'), title


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
    assert not re.search(r"<b>x\d</b>", page) and not any(evil in page for evil in EVIL)
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


def test_what_reads_as_the_best_is_bold():
    """Scores of one head, once as it is and once through 06, differ in their last bits."""
    scores = pd.DataFrame({"images": 9, "ece": [0.0401, 0.02004, 0.01996]}, index=["a", "b", "c"])
    own = SimpleNamespace(stages={"a": None}, gains={}, config=parse_config({}))
    assert re.findall(r"<b>([0-9.]+)</b>", _scores(scores, own)) == ["0.020", "0.020"]


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


def test_all_curves_of_an_experiment_have_the_same_epochs():
    """Scores begin where the first validation is."""
    seen = set()
    for panel in curve_panels({"fold0": metrics_table(0), "fold1": metrics_table(1)}).values():
        ax = Figure().add_subplot()
        panel(ax)
        seen.add(ax.get_xlim())
    ((low, high),) = seen
    assert low < 1 and high > EPOCHS


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


def test_the_leaderboard_is_sorted_and_knows_costs_and_others(page, run):
    part = page.split('<section id="leaderboard">')[1].split("</section>")[0]
    scores = [float(text) for text in re.findall(r"<td><b>([0-9.]+)</b>", part)]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert part.count("95 %: not known") == 2  # as title and label: an earlier submission has none
    report = gather("digits", ["exp"], [parse_config(CONFIG)])
    own = report.experiments[0]
    noise = 1.96 * own.stages["posthoc"].noise["balanced_accuracy"]
    assert f"95 %: {own.score('balanced_accuracy') - noise:.3f} to" in part
    assert minutes([{"cpu_seconds": 90, "seconds": 10}, {"seconds": 30}, {}]) == 2
    assert f"{minutes(own.manifests.values()):.1f}" in part
    shutil.copytree(run / "exp", run / "other")
    told = read_json(run / "other/posthoc/posthoc.json")
    told |= {"metric": "balanced_accuracy", "scores": {"after": 0.123}}
    write_json(run / "other/posthoc/posthoc.json", told)
    again = write()
    assert re.search(r"other<small>not in this report</small>.*?<b>0.123</b>", again, re.S)
    assert "<th scope=col>95 %<small>0.123 … 0.912</small></th>" in again  # of what is drawn
    assert "less is better" in leaderboard_words("log_loss")
    assert "less is better" not in leaderboard_words("accuracy")
    changed = header(replace(report, commit="0123456789ab+changes"))
    assert "<code>0123456789ab<wbr>+changes</code>" in changed  # breaks there and not in a word


def test_gains_out_of_fold_are_held_against_the_test(page):
    data = load_dataset("digits")
    truth = labels_of_the_test(data)
    every = data.images.set_index("image_id")["label"]
    assert len(truth) == len(data.test) and (truth == every[truth.index]).all()
    report = gather("digits", ["exp"], [parse_config(CONFIG)])
    points = points_of(report.experiments[0], data, truth)
    assert [p.head for p in points] == ["ncm", "posthoc"]
    before, after = (
        load_predictions(Path(f"runs/digits/exp/predict/{head}.npz"), K).logits.argmax(1)
        for head in ("stage1", "ncm")
    )
    gain = balanced_accuracy_score(truth, after) - balanced_accuracy_score(truth, before)
    assert points[0].test.value == pytest.approx(gain)
    assert str(points[0].test).replace("-", "−") in page
    figure = page.split('<section id="transfer">')[1].split("</svg>")[0]
    assert all(head in figure for head in ("ncm", "posthoc"))


def test_what_is_one_point_of_the_scatter_counts_once():
    """A head that 04 took as it was is there twice."""
    values = [(0.1, 0.2), (0.1, 0.2), (0.3, -0.1), (0.2, 0.1)]
    points = [Point("a", f"h{i}", Gain(x, 0.1), Gain(y, 0.1)) for i, (x, y) in enumerate(values)]
    assert correlation(points).startswith("Too few")
    points.append(Point("b", "h", Gain(0.4, 0.1), Gain(0.5, 0.1)))
    x, y = [0.1, 0.3, 0.2, 0.4], [0.2, -0.1, 0.1, 0.5]
    r = np.corrcoef(x, y)[0, 1]
    assert correlation(points) == (
        f"Of 4 different ones 3 have the same sign; correlation {r:.2f}."
    )


def test_times_of_files_are_no_facts_and_a_damaged_image_is_refused(
    finished, tmp_path, monkeypatch
):
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for path in Path("runs").rglob("manifest.json"):
        os.utime(path, (2e9 - path.stat().st_size,) * 2)
    assert write() == finished[1]
    shown = next(p for p in map(Path, load_dataset("digits").images["path"]) if p.is_file())
    assert not shown.is_absolute()  # these are the copy's
    for path in shown.parent.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="not a readable image"):
        write()
