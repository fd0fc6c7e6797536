"""benchmarks/cifar_lt.py on twenty-odd images: it trains, tabulates, skips, lists failures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import cifar_lt, cifar_methods, cifar_table, label_text
from benchmarks.cifar_jobs import Job, job_config
from benchmarks.cifar_methods import ABLATIONS, BUDGETS, HEADS, METHODS, POSTHOC, PUBLISHED, Method
from benchmarks.cifar_table import Section
from benchmarks.label_text import others, text_settings, write_shuffled
from src.artifacts.files import read_arrays, read_json
from src.config.read import parse_config
from src.config.text import Precomputed, Text
from src.errors import UserError
from src.language.text import text_file
from tests.benchmark_kit import row, tiny
from tests.training_kit import tiny_dataset, tiny_text

TINY = ["train.epochs=2", "train.batch_size=8", "train.milestones=[0.5]", "train.precision=fp32"]
CIFAR = Path(__file__).parents[1] / "configs" / "cifar10_lt.yaml"


@pytest.fixture
def results(tmp_path, monkeypatch):
    return tiny(tmp_path, monkeypatch)


def run(out, *args, budget="cpu"):
    common = ["--config", "tiny.yaml", "--budget", budget, "--ratios", "4", "--out", str(out)]
    common += ["--set", *TINY]
    cifar_lt.main([*args, *common])
    return out.read_text()


def times() -> dict[Path, int]:
    """When each file below runs was written; a lock is taken at every start."""
    files = [p for p in Path("runs").rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {path: path.stat().st_mtime_ns for path in files}


def test_two_methods_give_a_table_and_a_second_call_skips(results, capsys, monkeypatch):
    impossible = Method("focal", "focal", {"train.criterion": {"name": "no_such_criterion"}})
    monkeypatch.setitem(cifar_methods.METHODS, "focal", impossible)
    methods = ("--methods", "ce", "balanced_softmax", "focal")
    text = run(results, *methods)
    said = capsys.readouterr().out
    assert "by hand, above" in text
    assert text.count("<!-- tiny cpu -->") == text.count("<!-- /tiny cpu -->") == 1
    assert row(text, "method")[1] == "exp4"
    for title in ("cross-entropy", "balanced softmax", *(f"CE + {HEADS[h][0]}" for h in HEADS)):
        accuracy, seeds = row(text, title)[1].split()
        assert 0 <= float(accuracy) <= 100 and seeds == "(1)"
    assert all(row(text, f"CE + {title}")[1] for title in POSTHOC.values())
    assert "- focal: tiny.yaml: `train.criterion`: found" in text
    assert "stage 1 / stage 2" in text and row(text, "CE + cRT with an adapter")
    home = Path("runs/tiny_exp4/cpu-ce-s0")
    chosen = home.with_name("cpu-ce-s0-selected")
    for each in (home, chosen):  # one training, all but fold 0: its last epoch and its best
        assert [p.name for p in (each / "stage1").iterdir() if p.is_dir()] == ["fold0"]
    assert (
        said.count("epoch 2/2") == 2 and "/cpu-ce-s0-selected/stage1/fold0: continuing" not in said
    )
    kept = [read_json(h / "stage1/fold0/manifest.json")["select"] for h in (home, chosen)]
    assert kept == ["last", "best"]
    assert (
        "trained on four fifths of the images" in text and "all training images, last" not in text
    )
    scores = read_json(home / "score" / "scores.json")
    assert 0 <= scores["chosen"]["tau"] <= 2 and "- cross-entropy, exp4, seed 0: tau " in text
    assert scores["rows"]["ce"]["accuracy"] <= 1

    results.write_text(text + "\nby hand, below\n")
    written = times()
    capsys.readouterr()
    again = run(results, *methods)
    said = capsys.readouterr().out
    assert "score: finished already, skipped" in said and "epoch 1/2" not in said
    assert written == times()
    assert "by hand, above" in again and again.endswith("by hand, below\n")


def test_seeds_are_averaged_and_the_selected_epoch_stands_beside_the_last(results):
    run(results, "--methods", "balanced_softmax", "--seeds", "1", budget="gpu")
    args = ("--methods", "logit_adjusted", "--selected")  # the same loss, trained once
    text = run(results, *args, budget="gpu")
    selected = text.partition("**the epoch selected on fold 0 instead of the last**")[2]
    for title in ("balanced softmax", "logit adjustment, τ = 1 (balanced softmax)"):
        cells = row(text, title)
        assert "±" in cells[1] and cells[1].endswith("(2)")
        accuracy, seeds = row(selected, title)[1].split()
        assert 0 <= float(accuracy) <= 100 and seeds == "(1)"
    assert row(selected, "method") == ["method", "exp4"]
    assert "all training images, last epoch" in text and "on four fifths" not in text
    home = Path("runs/tiny_exp4")
    homes = sorted(p.name for p in home.glob("gpu-*"))
    assert homes == [f"gpu-balanced_softmax-s{end}" for end in ("0", "0-selected", "1")]
    assert not (home / "gpu-balanced_softmax-s0-selected/stage1/full").exists()
    assert not (home / "gpu-balanced_softmax-s0/stage1/fold0").exists()
    commands = run(results, "--methods", "focal", budget="gpu").splitlines()
    for asked in ("balanced_softmax logit_adjusted --seeds 0 1 --selected", "focal --seeds 0"):
        assert any(line.endswith(f"--methods {asked}") for line in commands)


def test_a_job_that_breaks_ends_neither_the_others_nor_the_table(results, monkeypatch):
    broken = Method("focal", "focal", {"train.lr": 1e30})
    monkeypatch.setitem(cifar_methods.METHODS, "focal", broken)
    with pytest.raises(UserError, match="1 of 2 jobs failed: cpu-focal-s0, exp4"):
        run(results, "--methods", "focal", "balanced_softmax")
    text = results.read_text()
    assert "- cpu-focal-s0, exp4: the loss became" in text and row(text, "balanced softmax")[1]


def test_every_method_is_one_that_the_product_takes():
    for budget in ("cpu", "gpu"):
        for name in METHODS:
            config = job_config(Job(str(CIFAR), budget, name, "exp100", 1))
            assert (config.longtail.profile, config.longtail.ratio, config.seed) == ("exp", 100, 1)
            assert config.dataset == "cifar10_lt_exp100"
    assert job_config(Job(str(CIFAR), "gpu", "ce", "step100", 0)).longtail.profile == "step"


def test_shuffled_names_are_those_of_other_classes(tmp_path, monkeypatch):
    """The same vectors, none at its own class; where an encoder has made them once, or not yet."""
    for seed in range(50):
        count = 2 + seed % 9
        found = others(count, seed)
        assert sorted(found) == list(range(count)) and (found != np.arange(count)).all()
    monkeypatch.chdir(tmp_path)
    data, encoder = tiny_dataset(), tiny_text()["encoder"]
    monkeypatch.setattr(label_text, "minilm", lambda: Precomputed(**encoder))
    settings = text_settings("shuffled", "tiny", 3)
    config = parse_config(
        {"data": {"root": "tiny"}, "seed": 3, "text": {"encoder": settings["text.encoder"]}}
    )
    own = read_arrays(text_file(data, config.model_copy(update={"text": Text(encoder=encoder)})))
    write_shuffled(data, config)
    found = read_arrays(text_file(data, config))["embeddings"]
    np.testing.assert_allclose(found, own["embeddings"][others(6, 3)], rtol=1e-6)


def test_the_published_schedule_is_that_of_the_config():
    train = job_config(Job(str(CIFAR), "gpu", "ce", "exp100", 0)).train
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (200, 128, 0.1, 2e-4)
    assert (train.milestones, train.gamma, train.warmup_epochs) == ((0.8, 0.9), 0.01, 5)
    assert train.decay_all and not train.nesterov


def test_some_methods_have_a_schedule_of_their_own():
    assert all(set(budget.adapted) <= set(METHODS) for budget in BUDGETS.values())
    short, long = (job_config(Job(str(CIFAR), b, "mixup", "exp100", 0)) for b in ("cpu", "gpu"))
    assert (short.train.mixing.off_epochs, long.train.mixing.off_epochs) == (4, 0)
    assert short.train.mixing.mixup == long.train.mixing.mixup == 1.0
    short, long = (job_config(Job(str(CIFAR), b, "bbn", "exp100", 0)) for b in ("cpu", "gpu"))
    assert short.model.network.t_max > short.train.epochs and long.model.network.t_max is None
    others = job_config(Job(str(CIFAR), "cpu", "ce", "exp100", 0))
    assert short.train.milestones == others.train.milestones
    assert long.train.milestones == (0.6, 0.8)  # of the authors' 200 epochs


def test_what_is_published_and_was_not_run_is_said():
    section = Section("configs/cifar10_lt.yaml", "published")
    rows = [row for row in PUBLISHED["cifar10_lt"] if row != "bbn"]
    table = pd.DataFrame({"split": "exp100", "row": rows})
    (said,) = cifar_table._not_run(section, table)
    assert said.endswith("exp100: BBN; exp50: every row; exp10: every row.")
    assert not cifar_table._not_run(replace(section, budget="cpu"), table)


def test_every_row_that_is_named_exists():
    rows = {m.name for m in METHODS.values()}
    rows |= {f"{m.name}/{x}" for m in METHODS.values() for x in (*m.heads, *m.posthoc)}
    assert {r for names in ABLATIONS.values() for r in names} <= rows
    for published in PUBLISHED.values():
        assert set(published) <= rows
        assert all(30 < a < 90 for triple in published.values() for a in triple.values())
