"""What a short schedule may say of a method, in every page that says it."""

import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from benchmarks import birds_methods, findings, longer, reference
from benchmarks.birds_methods import scores_of
from benchmarks.cifar_methods import METHODS, PUBLISHED
from benchmarks.cifar_table import Section, render
from benchmarks.judged import TOO_SHORT, baseline, difference, is_short, judged
from benchmarks.results import RESULTS, markdown, write_section
from src.config.read import load_config
from tests.benchmark_kit import row

CONFIGS = RESULTS.parents[1] / "configs"
CIFAR = str(CONFIGS / "cifar10_lt.yaml")
FACTS = {"device": "cpu", "git": "abc"}


def test_short_is_fewer_epochs_or_smaller_images_than_the_config_asks_for():
    whole = load_config(CONFIGS / "birds_lt_plain.yaml")
    for items, short in (
        ([], False),
        (["train.epochs=24"], False),
        (["train.epochs=11"], True),
        (["train.epochs=24", "model.image_size=128"], True),
    ):
        assert is_short(load_config(CONFIGS / "birds_lt_plain.yaml", items), whole) is short
    digits = load_config(CONFIGS / "digits.yaml")  # from random weights, as published in 200
    assert is_short(digits, digits)
    assert not is_short(load_config(CONFIGS / "digits.yaml", ["train.epochs=200"]), digits)
    for name in ("birds_lt_plain", "digits"):
        assert birds_methods.too_short(birds_methods.Job(str(CONFIGS / f"{name}.yaml"), "ce", ()))


def test_a_baseline_is_the_method_without_what_it_brings():
    found = {name: baseline(name, METHODS) for name in METHODS}
    assert found["paco"] == "balanced_softmax" and found["ride"] == "ldam_drw"
    assert found["bbn"] == found["kt"] == found["mixup"] == found["ce"] == "ce"
    assert found["bbn_anti_alias"] == "anti_alias"
    assert baseline("ce/crt", METHODS) == "ce" and baseline("multi_task/crt", METHODS) == "ce/crt"


def test_a_loss_is_no_verdict_at_a_short_schedule_and_one_at_a_long():
    gains = {"balanced_softmax": 10.0, "paco": 9.0, "bbn": 5.0, "focal": -1.0}
    for name, ahead in (("balanced_softmax", True), ("paco", False), ("focal", False)):
        assert judged(name, gains, METHODS, short=True) is ahead
        assert judged(name, gains, METHODS, short=False)
    assert judged("bbn", gains, METHODS, True, published=6.4)
    assert not judged("bbn", gains, METHODS, True, published=6.6)
    assert difference(-0.02, 0.01, True) == TOO_SHORT and difference(float("nan"), 0, True) == ""
    assert difference(-0.02, 0.01, False) == "-2.0 ± 1.0"
    assert difference(0.02, 0.01, True) == "+2.0 ± 1.0"


def cifar_lines(**accuracies: float) -> list[dict]:
    return [
        {"split": "exp100", "row": name.replace("__", "/"), "seed": "0", "epoch": epoch,
         "accuracy": value, "head": value, "tail": value, "chosen": ""} | FACTS
        for name, value in accuracies.items()
        for epoch in ("last", "selected")
    ]  # fmt: skip


@pytest.mark.parametrize(("budget", "short"), [("cpu", True), ("published", False)])
def test_cifars_tables_judge_by_their_schedule(tmp_path, budget, short):
    section = Section(CIFAR, budget)
    lines = cifar_lines(ce=0.54, mixup=0.49, balanced_softmax=0.67, paco=0.66, bbn=0.6)
    table = section.scores.keep(lines, tmp_path / "RESULTS.md")
    text = render(section, table, {})
    selected = text.partition("**the epoch selected")[2]
    ablation = text.partition("**experts and contrast**")[2]
    assert row(text, "balanced softmax")[2] == "+13.0"
    assert row(text, "mixup")[2] == (TOO_SHORT if short else "-5.0")
    assert row(text, "BBN")[2] == (TOO_SHORT if short else "+6.0")  # published: +9.5
    assert row(selected, "mixup")[1].endswith(TOO_SHORT) is short
    # 400 epochs are asked of GPaCo, and balanced softmax is what it is held against
    assert row(ablation, "GPaCo")[-1] == TOO_SHORT and row(ablation, "balanced softmax")[-1] == ""
    assert ("20 of 200 epochs, GPaCo 20 of 400" if short else "(GPaCo 200 of 400)") in text


def test_the_reference_takes_the_longest_schedule_that_there_is(tmp_path):
    out = tmp_path / "RESULTS.md"
    sections = [Section(CIFAR, budget) for budget in ("published", "cpu")]
    long = sections[0].scores.keep(cifar_lines(ce=0.70, mixup=0.69), out)
    short = sections[1].scores.keep(cifar_lines(ce=0.54, mixup=0.49, kt=0.4, focal=0.56), out)
    cifar = dict(zip(sections, (long, short), strict=True))
    effects = {name: reference.cifar_effect(cifar, name) for name in ("mixup", "kt", "focal")}
    assert effects == {"mixup": "-1.0 (200)", "kt": TOO_SHORT, "focal": "+2.0 (20)"}
    columns = ["row", "folds", "gain", "noise", "judged"]
    birds = pd.DataFrame([("kt", "0 1", -0.02, 0.01, False)], columns=columns)
    assert reference.birds_effect(birds, "kt") == TOO_SHORT
    birds.loc[1] = ("longer/kt", "0 1", -0.01, 0.01, True)  # from the weights of plain training
    assert reference.birds_effect(birds, "kt") == "-1.0 ± 1.0 (18)"


def test_findings_show_published_figures_once_there_are_any(tmp_path):
    out = tmp_path / "RESULTS.md"
    assert findings.published(out) is None and findings.repeated(out) == []
    lines = cifar_lines(ce=0.70, balanced_softmax=0.74, kt=0.65)  # of KT none is published
    Section(CIFAR, "published").scores.keep(lines, out)
    assert (tmp_path / "scores" / "cifar10_lt-published.csv").is_file()
    (said,) = findings.repeated(out)
    assert "200 epochs): 1 of 2 are met within 1.5 points" in said
    assert f"cross-entropy 70.0 ({PUBLISHED['cifar10_lt']['ce']['exp100']:.1f})" in said
    ax = Figure().subplots()
    findings.published(out)(ax)
    (points,) = ax.collections
    assert sorted(points.get_offsets().tolist()) == [[70.36, 70.0], [77.54, 74.0]]


def test_findings_tell_what_methods_gain_with_time(tmp_path):
    out = tmp_path / "RESULTS.md"
    assert findings.with_time(out) == []
    none = float("nan")
    lines = [
        {"row": row, "folds": "0 1", "gain": gain, "noise": 0.01} | FACTS
        for row, gain in (("plain", none), ("ce", none), ("kt", -0.021), ("kt/prior", 0.3))
    ]
    longer.scores_of("birds_lt").keep(lines, out)
    (said,) = findings.with_time(out)
    assert "): knowledge transfer (KT) -2.1 [-4.1, -0.1] (section" in said


def test_findings_tell_what_one_network_is_and_what_the_rest_adds(tmp_path):
    out = tmp_path / "RESULTS.md"
    assert findings.like_with_like(out) == []
    rows = [
        {"test images": name, "accuracy": 0.9, "balanced_accuracy": share, "few": share - 0.1}
        for name, share in (("timm's loop", 0.6), ("+ folds", 0.8))
    ]
    write_section(findings.ALIKE, "birds_lt, like with like", markdown(rows), out)
    (said,) = findings.like_with_like(out)
    assert "few-shot classes): timm's loop 0.600 (0.500); + folds 0.800 (0.700) (section" in said


def test_findings_draw_no_loss_at_a_short_schedule(tmp_path):
    out = tmp_path / "RESULTS.md"
    for dataset in ("birds_lt", "digits"):
        scores_of(dataset).keep(
            [
                {"row": name, "folds": "0 1", "balanced_accuracy": 0.5 + gain, "gain": gain,
                 "noise": 0.01} | FACTS
                for name, gain in (("ce", 0.0), ("kt", -0.2), ("ldam_drw", 0.1))
            ],
            out,
        )  # fmt: skip
    ax = Figure().subplots()
    findings.forest(out)(ax)
    drawn = {
        text.get_text(): dict(zip(ax.get_yticks(), line.lines[0].get_xdata(), strict=True))
        for text, line in zip(ax.get_legend().get_texts(), ax.containers, strict=True)
    }
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows == [METHODS["ldam_drw"].title]
    assert drawn == {
        "birds_lt, 8 epochs": {0: pytest.approx(10)}, "digits, 40 epochs": {0: pytest.approx(10)}
    }  # fmt: skip


def test_no_page_holds_a_loss_at_a_short_schedule_against_a_method():
    """The committed ones: gains of the tables that are short, wherever they stand."""
    text = RESULTS.read_text(encoding="utf-8")
    for name in ("birds_lt methods", "birds_lt fine-grained", "semantic cls"):
        section = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
        cells = [c.strip() for line in section.splitlines() if line[:1] == "|"
                 for c in line.split("|")]  # fmt: skip
        assert TOO_SHORT in cells and not [c for c in cells if re.match(r"-\d.* ± ", c)]
    cpu = text.partition("<!-- cifar10_lt cpu -->")[2].partition("<!-- /cifar10_lt cpu -->")[0]
    main = cpu.partition("**the epoch selected")[0]
    assert TOO_SHORT in main and not re.search(r"\| -\d+\.\d \|", main)
    methods = (CONFIGS / "METHODS.md").read_text(encoding="utf-8")
    losses = re.findall(r"\| (-\d[^|]*) \|", methods)
    long_enough = tuple(f"({epochs})" for epochs in (reference.WITH_TIME, 200))
    assert TOO_SHORT in methods and all(loss.endswith(long_enough) for loss in losses)
