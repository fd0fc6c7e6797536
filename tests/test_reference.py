"""configs/METHODS.md: its configs are taken, its effects are those of benchmarks/scores/."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from benchmarks.cifar_table import Section
from benchmarks.reference import OUT, birds_effect, cifar_effect, render, tables
from benchmarks.reference_entries import GROUPS
from src.config.read import load_config

ROOT = Path(__file__).parents[1]
ENTRIES = [entry for entries in GROUPS.values() for entry in entries]


def test_the_page_is_what_the_results_say():
    text = OUT.read_text(encoding="utf-8")
    assert text == render(*tables()), "run benchmarks/reference.py"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_config_is_one_that_the_product_takes(entry):
    assert (ROOT / entry.code).is_file()
    sections = yaml.safe_load(entry.config)
    items = [
        f"{section}.{key}={json.dumps(value)}"
        for section, keys in sections.items() if isinstance(keys, dict)
        for key, value in keys.items()
    ]  # fmt: skip
    items += [f"{k}={json.dumps(v)}" for k, v in sections.items() if not isinstance(v, dict)]
    items.append("data.cache=memory")  # `device` shifts and mirrors alone, and says so
    load_config(ROOT / "configs" / "cifar10_lt.yaml", items)


def test_effects_are_gains_over_cross_entropy(tmp_path):
    section = Section(str(ROOT / "configs" / "cifar10_lt.yaml"), "published")
    lines = [
        ("exp100", "ce", "last", "0", 0.58),
        ("exp100", "ce", "last", "1", 0.60),
        ("exp100", "focal", "last", "0", 0.605),
        ("exp100", "focal", "selected", "0", 0.9),
        ("exp100", "kt", "last", "0", 0.5),
        ("exp100", "kt", "last", "1", 0.52),
        ("exp10", "focal", "last", "0", 0.9),
        ("exp10", "bbn", "last", "0", 0.9),
    ]
    names = ("split", "row", "epoch", "seed", "accuracy")
    lines = [dict(zip(names, line, strict=True)) for line in lines]
    cifar = {section: section.scores.keep(lines, tmp_path / "RESULTS.md")}
    assert cifar_effect(cifar, "focal") == "+1.5 (200)"  # 60.5 − 59.0
    assert cifar_effect(cifar, "kt") == "-8.0 ± 1.4 (200)"
    assert cifar_effect(cifar, "bbn") == cifar_effect(cifar, None) == "–"
    columns = ["row", "folds", "gain", "noise", "judged"]
    birds = [("kt", "0 1", -0.02, 0.01, True), ("kt", "0", 0.3, 0.2, True)]
    birds = pd.DataFrame(birds, columns=columns)
    assert birds_effect(birds, "kt") == "-2.0 ± 1.0"
    assert birds_effect(birds, "ce/tau") == birds_effect(birds, None) == "–"
