"""benchmarks/fine_grained.py on a few images: what is compared with what."""

import re

import numpy as np
import pytest

from benchmarks import fine_grained
from benchmarks.fine_grained import Job, job_config
from benchmarks.fine_methods import BALANCED, EPOCHS, METHODS, Method
from benchmarks.results import RESULTS
from src.config.read import load_config
from src.prepare.prepare import prepare
from tests.benchmark_kit import row, tiny

SETTINGS = [
    "data.cache=memory",
    "longtail.profile=exp",
    "longtail.ratio=4",
    "bins={many: 10, few: 4}",
    "model.image_size=16",
    "train.batch_size=8",
    "train.warmup_epochs=0",
]


def test_every_method_is_one_that_the_product_takes():
    config = str(RESULTS.parents[1] / "configs" / "birds_lt_plain.yaml")
    for name, method in METHODS.items():
        settings = job_config(Job(config, name, ("0",)))
        assert settings.train.epochs == method.epochs
        assert (
            method.after is None or settings.model.pretrained == f"experiment:fine-{method.after}"
        )


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    out = tiny(tmp_path, monkeypatch)
    prepare(load_config("tiny.yaml", SETTINGS))
    few = {n: METHODS[n] for n in ("plain", "plain_12")}
    few["balanced"] = Method("balanced softmax", BALANCED)
    few["later"] = Method("after plain", epochs=2, after="plain")
    monkeypatch.setattr(fine_grained, "METHODS", few)
    return out


def run(out, *args) -> str:
    common = ["--config", "tiny.yaml", "--folds", "0", "2", "--out", str(out)]
    fine_grained.main([*common, *args, "--set", *SETTINGS])
    return out.read_text()


def test_methods_stand_beside_plain_of_as_many_epochs_and_of_as_many_seconds(prepared, monkeypatch):
    slower = {"plain": 1.0, "plain_12": 2.0, "balanced": 1.5, "later": 0.3}
    monkeypatch.setattr(fine_grained, "costs", lambda job, names: {n: slower[n] for n in names})
    text = run(prepared, "--methods", "plain_12", "balanced", "later")
    assert "by hand, above" in text and "--methods plain plain_12 balanced later`" in text
    assert row(text, "plain")[-2:] == ["", ""] and row(text, "plain, 12 epochs")[-1] == ""
    assert re.match(r"\+.* ± |too short", row(text, "balanced softmax")[-2])
    assert row(text, "balanced softmax")[-1].endswith("(12)")  # 1.5 is nearer to 2 than to 1
    assert row(text, "after plain")[-1].endswith(f"({EPOCHS})")  # 0.3 and plain's 1.0
    again = run(prepared, "--table")
    assert row(again, "balanced softmax") == row(text, "balanced softmax")


def test_a_method_that_makes_twice_the_work_costs_twice_the_seconds(prepared, monkeypatch):
    monkeypatch.setattr(fine_grained, "STEPS", 1)
    both = {"plain": METHODS["plain"], "twice": Method("twice", epochs=2 * EPOCHS)}
    monkeypatch.setattr(fine_grained, "METHODS", both)
    found = fine_grained.costs(Job("tiny.yaml", "plain", ("0",), tuple(SETTINGS)), list(both))
    np.testing.assert_allclose(found["twice"] / found["plain"], 2, rtol=0.5)
