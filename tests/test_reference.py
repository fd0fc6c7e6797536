"""configs/METHODS.md: its configs are taken, its effects are those of RESULTS.md."""

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.reference import GROUPS, OUT, effect, render
from benchmarks.results import RESULTS
from src.config import load_config

ROOT = Path(__file__).parents[1]
ENTRIES = [entry for entries in GROUPS.values() for entry in entries]
TABLES = """
<!-- one -->
| method | exp100 | gain over CE | exp50 | gain over CE |
| --- | ---: | ---: | ---: | ---: |
| cross-entropy | 60.0 (1) |  | 70.0 (1) |  |
| focal | 61.5 (1) | +1.5 | 69.0 (1) | -1.0 |

**samplers**, exp100

| method | all | head |
| --- | ---: | ---: |
| cross-entropy | 60.0 (1) | 80.0 (1) |
| reversed sampler alone | 58.8 (1) | 50.0 (1) |
<!-- /one -->
<!-- two -->
| method | exp100 | gain over CE |
| focal | 99.0 (1) | +39.0 |
<!-- /two -->
"""


def test_the_page_is_what_the_results_say():
    text = OUT.read_text(encoding="utf-8")
    assert text == render(RESULTS.read_text(encoding="utf-8")), "run benchmarks/reference.py"


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
    load_config(ROOT / "configs" / "cifar10_lt.yaml", items)


def test_effects_come_from_the_first_table_of_their_section():
    where = ("one", "exp100", "gain over CE")
    assert effect(TABLES, *where, "focal") == "+1.5"
    assert effect(TABLES, *where, "reversed") == "-1.2"
    assert effect(TABLES, *where, "bbn") == "–" and effect(TABLES, *where, None) == "–"
    assert effect(TABLES, "three", "exp100", "gain over CE", "focal") == "–"
