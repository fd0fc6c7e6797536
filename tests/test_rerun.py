"""python -m src.rerun: what a manifest says was made is made again, elsewhere, and compared."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from src.artifacts.files import (
    read_json,
    sha256,
    write_arrays,
    write_bytes,
    write_json,
    write_table,
)
from src.artifacts.trained import write_config
from src.config.read import parse_config
from src.errors import UserError
from src.posthoc.calibrate import posthoc
from src.rerun.__main__ import main
from src.rerun.compare import DIFFERING, IDENTICAL, WITHIN, compare
from src.rerun.made import made_by
from tests import fabricate
from tests.conftest import ROOT
from tests.training_kit import tiny_config, tiny_dataset, train_tiny


def everything(directory: Path) -> dict[str, bytes]:
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and ".rerun" not in p.parts)
    return {str(p): p.read_bytes() for p in files if not p.name.endswith(".lock")}


def test_calibration_is_made_again_from_what_was_resolved(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fabricate.digits_runs(mine=0.3)
    config = fabricate.config(posthoc={"steps": ["logit_adjustment"]}, stage2=["crt", "ncm"])
    home = write_config(Path("runs/digits/mine"), config, {}).parent
    later = fabricate.config(posthoc={"steps": ["temperature"]}, stage2=["crt", "ncm"])
    posthoc(later, "mine")  # --set since 02
    before = everything(Path("runs"))
    main([str(home / "posthoc" / "manifest.json")])
    said = capfd.readouterr().out
    assert "4 identical, 0 within tolerance, 0 differing" in said
    again = next(Path("runs/.rerun").glob("*/runs/digits/mine/posthoc"))
    assert read_json(again / "manifest.json")["settings"]["posthoc"]["steps"][0]["name"] == (
        "temperature"
    )
    assert everything(Path("runs")) == before  # nothing that is there is touched
    manifest = home / "posthoc" / "manifest.json"
    facts = read_json(manifest)
    write_json(manifest, facts | {"inputs": facts["inputs"] | {"folds.csv": "0" * 64}})
    with pytest.raises(UserError, match="other files than there are now.*folds.csv"):
        main([str(manifest)])


def test_a_network_is_trained_again(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    tiny_dataset()
    directory = train_tiny(tiny_config(train={"epochs": 1, "warmup_epochs": 0}), "mine")
    (directory / "metrics.csv").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([str(directory / "manifest.json"), "--tolerance", "1e-4"])
    said = capfd.readouterr().out
    assert stopped.value.code == 1
    assert "1 differing" in said and "the earlier one is missing" in said  # metrics.csv alone
    for name in ("head.safetensors", "oof.npz", "weights.safetensors"):
        assert f"{name} identical" in " ".join(said.split()) or f"{name} within" in said


def pair(tmp_path: Path, then: dict, now: dict):
    """Manifests of two directories of files, which are given as functions that write them."""
    made = []
    for root, files in (("then", then), ("now", now)):
        directory = tmp_path / root / "runs" / "some" / "mine" / "posthoc"
        for name, write in files.items():
            write(directory / name)
        outputs = {name: sha256(directory / name) for name in files}
        facts = {"settings": {}, "inputs": {}, "outputs": outputs}
        made.append(write_json(directory / "manifest.json", facts))
    return made_by(made[0]), made[1]


WRITERS = {
    "a.npz": lambda z: lambda path: write_arrays(path, z=np.array([1.0, z]), n=np.arange(3)),
    "a.safetensors": lambda z: (
        lambda path: write_bytes(path, safetensors.numpy.save({"z": np.array([1.0, z])}))
    ),
    "a.csv": lambda z: (
        lambda path: write_table(
            path, pd.DataFrame({"id": ["007", "x"], "z": [1.0, z], "seconds": [z, z]})
        )
    ),
    "a.csv.gz": lambda z: (
        lambda path: write_bytes(path, gzip.compress(f"id,z\n7,1.5\n8,{z}\n".encode()))
    ),
    "a.json": lambda z: lambda path: write_json(path, {"a": [{"z": z, "t": "x"}], "b": 2}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_values_are_compared_whatever_the_file(name, tmp_path):
    for z, kind in ((2.5, IDENTICAL), (2.5000001, WITHIN), (2.6, DIFFERING)):
        made, new = pair(tmp_path / str(z), {name: WRITERS[name](2.5)}, {name: WRITERS[name](z)})
        (verdict,) = compare(made, new, 1e-5)
        assert verdict.kind == kind and (kind == IDENTICAL or "z" in verdict.says)


def test_ids_and_whole_numbers_are_the_same_or_not(tmp_path):
    def table(number):
        return lambda path: write_table(path, pd.DataFrame({"id": [number], "z": ["0.5"]}))

    def labels(number):
        return lambda path: write_arrays(path, label=np.array([number]))

    then = {"a.csv": table("10000001"), "b.npz": labels(10**7), "c.png": table("1"), "d": table(1)}
    now = {"a.csv": table("10000002"), "b.npz": labels(10**7 + 1), "c.png": table("2")}
    found = {v.artifact: v for v in compare(*pair(tmp_path, then, now), 1e-3)}
    assert {v.kind for v in found.values()} == {DIFFERING}
    assert "cannot be compared" in found["c.png"].says and found["d"].says == "only then"


def test_every_stage_has_its_config_and_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = fabricate.config(stage2=["crt"], search={"use": True}, train={"lr": 0.5})
    for name in ("a", "b"):
        write_config(Path("runs/digits") / name, config, {})

    def made(place: str, **settings):
        facts = {"settings": settings, "inputs": {"stage2/ncm/fold0/oof.npz": ""}, "outputs": {}}
        return made_by(write_json(f"runs/digits/{place}", facts))

    ncm = {"head": "ncm", "features": "un"}
    head = made("a/stage2/ncm/fold1/manifest.json", head=ncm, seed=3)
    made("b/stage2/ncm/fold0/manifest.json", head=ncm, seed=3)
    assert [h.title for h in parse_config(head.trees()["a"]).stage2] == ["crt", "ncm"]
    first = made("a/stage1/full/manifest.json", train={"epochs": 7}, seed=3)
    told = parse_config(first.trees()["a"])
    assert (told.train.epochs, told.train.lr, told.seed, told.search.use) == (7, 0.5, 3, False)
    assert first.arguments == ["--folds", "full"] and head.arguments == ["--folds", "1"]
    fourth = made("a/posthoc/manifest.json", metric="top5")
    argv = ["04.py", "--folds", "0", "2", "--set", "x=1"]
    some = replace(fourth, facts=fourth.facts | {"argv": argv})
    assert some.arguments == ["--folds", "0", "2"] and not fourth.arguments
    fourth = parse_config(fourth.trees()["a"])
    assert fourth.metric == "top5" and [h.title for h in fourth.stage2] == ["ncm"]  # as it read
    assert parse_config(made("a/predict/manifest.json", tta={"crops": 5}).trees()["a"]).predict
    members = {"a": ["posthoc"], "b": ["ncm"]}
    last = made("submissions/a+b.manifest.json", members=members, decision="plain", metric="top5")
    trees = {name: parse_config(tree) for name, tree in last.trees().items()}
    assert list(trees["b"].ensemble.members) == ["ncm"] and trees["a"].ensemble.decision == "plain"
    first = made("folds/manifest.json", data={"root": "x"}, folds={"k": 4})
    assert parse_config(first.trees()["digits"]).folds.k == 4
    for place in ("a/search/manifest.json", "a/stage2/ncm/search/manifest.json", "x.json"):
        with pytest.raises(UserError, match="not a manifest that can be made again"):
            made(place)
