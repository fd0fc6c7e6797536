"""An experiment that trained on pseudo-labels is marked in what 04, 06 and the report say of it."""

from pathlib import Path

from src.artifacts.files import read_json
from src.artifacts.marks import pseudo_labelled
from src.ensemble.ensemble import ensemble
from src.posthoc.calibrate import posthoc
from src.report.context import gather
from src.report.page import write_report
from tests.fabricate import (
    DATASET,
    config,
    digits_runs,
    seal,
)

RUNS = Path("runs") / DATASET
SAYS = "Trained with 7 to 9 pseudo-labelled test images per network, labelled by one/posthoc"


def test_whoever_shows_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = config(ensemble={"members": ["crt"]})
    digits_runs(one=0.0, two=0.0)
    for fold in range(3):
        facts = {"experiment": "one", "head": "posthoc", "images": 7 + fold}
        seal(RUNS / "two" / "stage1" / f"fold{fold}", pseudo=facts)
    assert pseudo_labelled(RUNS / "one") is None
    assert pseudo_labelled(RUNS / "two").startswith(SAYS)
    for name in ("one", "two"):
        posthoc(config(posthoc={"steps": []}), name)
        found = read_json(RUNS / name / "posthoc" / "manifest.json")
        assert found.get("pseudo_labelled", "").startswith(SAYS) == (name == "two")
    ensemble([settings, settings], ["one", "two"])
    found = read_json(RUNS / "submissions" / "one+two.manifest.json")
    assert list(found["pseudo_labelled"]) == ["two"]
    page = write_report(gather(DATASET, ["one", "two"], [settings, settings])).read_text()
    assert SAYS in page and f'two <span class="badge" title="{SAYS}' in page
    assert 'one <span class="badge"' not in page
