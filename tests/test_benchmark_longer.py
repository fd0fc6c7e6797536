"""benchmarks/longer.py on a few images: methods go on from plain weights, beside plain training."""

import pytest

from benchmarks import longer
from benchmarks.birds_methods import BIRDS
from benchmarks.longer import CE, FIRST, MORE, TWICE, Job, job_config
from benchmarks.results import RESULTS
from src.artifacts.files import read_json
from src.config.read import load_config
from src.prepare.prepare import prepare
from tests.benchmark_kit import row, tiny
from tests.test_benchmark_fine_grained import SETTINGS


def test_every_method_goes_on_from_the_plain_training_of_the_config():
    config = str(RESULTS.parents[1] / "configs" / "birds_lt_plain.yaml")
    asked = load_config(config)
    first = job_config(Job(config, FIRST, ("0",)))
    assert (first.train, first.model) == (asked.train, asked.model)
    for name in BIRDS:
        settings = job_config(Job(config, name, ("0",)))
        assert settings.model.pretrained == f"experiment:longer-{FIRST}"
        assert settings.train.epochs == MORE
        assert settings.model.image_size == asked.model.image_size
    assert job_config(Job(config, TWICE, ("0",))).train.epochs == 2 * MORE


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    out = tiny(tmp_path, monkeypatch)
    prepare(load_config("tiny.yaml", SETTINGS))
    return out


def test_methods_stand_beside_plain_training_that_goes_on(prepared, monkeypatch):
    monkeypatch.setattr(longer, "MORE", 1)
    steps = {"mixup": 1.0, "bbn": 2.0, "focal": 20.0}
    monkeypatch.setattr(longer, "costs", lambda start, names: {n: steps[n] for n in names})

    def run(*args):
        common = ["--config", "tiny.yaml", "--folds", "0", "2", "--out", str(prepared)]
        longer.main([*common, *args, "--set", *SETTINGS])
        return prepared.read_text()

    text = run("--methods", "mixup", "bbn", "focal")
    assert "by hand, above" in text and "--methods focal mixup bbn`" in text
    assert " ± " in row(text, "focal")[-2] and row(text, "focal")[-1] == ""  # none takes as long
    assert text.count(f"| {longer.PLAIN[CE]} |") == 1
    for name in (FIRST, CE, TWICE):
        assert row(text, longer.PLAIN[name])[-2:] == ["", ""]
    assert " ± " in row(text, "mixup")[-2] and "(6 epochs more)" in row(text, "mixup")[-1]
    first = load_config("tiny.yaml").train.epochs
    assert row(text, "BBN")[-3] == f"{(first + 2) / (first + 1):.2f} ×"  # 1 epoch of 2 passes
    assert "(12 epochs more)" in row(text, "BBN")[-1]
    assert " ± " in row(text, "mixup + logit adjustment")[-2]
    again = run("--table")
    assert row(again, "BBN") == row(text, "BBN")
    manifest = read_json(Job("tiny.yaml", "bbn", ("2",), tuple(SETTINGS)).manifests()[0])
    assert manifest["inputs"], "the network that it starts from is among its inputs"
