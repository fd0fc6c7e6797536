"""`--smoke`: every section of a config runs as it is, small, beside no real run."""

import argparse
from pathlib import Path

import pandas as pd
import pytest

from src import cli
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json
from src.config.data import Data
from src.config.read import load_config, parse_config
from src.config.shorter import shortened_to
from src.config.smoke import IMAGES, smoked
from src.config.tree import dump_config, flatten
from src.prepare.few import few_images, few_rows, few_test_images
from src.prepare.prepare import prepare
from src.prepare.sources import Source
from src.submission.format import Sheet
from tests.conftest import ROOT


def differing(a, b) -> set[str]:
    one, two = flatten(dump_config(a)), flatten(dump_config(b))
    return {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_config_can_be_smoked_and_keeps_its_methods(path):
    if path.stem == "folder_template":
        pytest.skip("the reference, no experiment")
    config = load_config(path)
    small = smoked(config, str(path))
    assert small.dataset == f"{config.dataset}-smoke" and small.data.limit == IMAGES
    assert small.train.epochs <= 3 and (small.train.epochs == 0) == (config.train.epochs == 0)
    allowed = ("data.name", "data.limit", "folds.k", "search.", "posthoc.search.trials")
    allowed += ("train.epochs", "train.warmup_epochs", "train.tracker", "train.average_last")
    allowed += ("train.mixing.off_epochs", "train.freeze", "model.network")
    others = [key for key in differing(config, small) if not key.startswith(allowed)]
    assert all(key.startswith("stage2.") and key.endswith((".epochs", ".views")) for key in others)
    assert [h.head for h in small.stage2] == [h.head for h in config.stage2]


def test_as_many_epochs_as_what_changes_between_them_needs():
    train = {"epochs": 20, "resizing": [{"size": 16, "share": 0.5}]}
    train |= {"freeze": [{"name": "backbone.*", "until": 5}]}
    small = smoked(parse_config({"train": train}), "test")
    assert small.train.epochs == 2 and small.train.freeze[0].until == 1
    assert small.train.resized(0) == 16 and small.train.resized(1) is None
    probe = smoked(
        parse_config({"train": {"epochs": 0}, "model": {"head_init": "class_means"}}), "test"
    )
    assert probe.train.epochs == 0


def test_what_ends_before_the_training_still_does():
    mixing = {"mixup": 0.2, "off_epochs": 10}
    config = parse_config({"train": {"epochs": 30, "mixing": mixing}})
    assert shortened_to(config, 3)["train.mixing.off_epochs"] == 1
    assert smoked(config, "test").train.mixing.off_epochs == 0  # one epoch, and it mixes


def test_few_images_keep_classes_and_tail():
    counts = {"a": 500, "b": 100, "c": 3, "d": 1}
    rows = [(f"{c}{i:03d}", c) for c, n in counts.items() for i in range(n)]
    table = pd.DataFrame(rows, columns=["image_id", "class_id"])
    few = few_images(table, 40)
    found = few["class_id"].value_counts()
    assert few.index.tolist() == list(range(len(few)))
    assert found["c"] == 2 and found["d"] == 1 and found.sum() <= 40
    assert found["a"] == pytest.approx(2 + 500 * 32 / 604, abs=1)
    ids = few_images(table, 40).query("class_id == 'b'")["image_id"]
    assert ids.tolist() == [f"b{100 * i // len(ids):03d}" for i in range(len(ids))]
    assert len(ids) == 2 + 100 * 32 // 604
    assert few_images(table, 8)["image_id"].tolist() == [
        "a000", "a250", "b000", "b050", "c000", "c001", "d000"
    ]  # fmt: skip
    for limit, most in {7: ["a000", "a166", "a333"], 3: ["a000"]}.items():
        found = few_images(table, limit)["image_id"].tolist()
        assert found == [*most, "b000", "c000", "d000"]  # never a class without an image
    assert len(few_images(table, 10_000)) == len(table)
    assert len(few_images(table[:500], 1)) == 1
    again = few_images(table.sample(frac=1, random_state=0), 40)
    pd.testing.assert_frame_equal(again, few_images(table, 40))


@pytest.mark.parametrize("observation", [None, "plant"])
def test_few_test_images_are_spread_and_their_tables_cut(observation, tmp_path):
    ids = [f"t{i}" for i in range(7)]
    plants = pd.DataFrame({"plant": [f"p{i // 2}" for i in range(7)]}, index=ids)
    asked = sorted(set(plants["plant"])) if observation else ids
    sample = pd.DataFrame({"id": asked, "label": "x"})
    sample.to_csv(tmp_path / "asked.csv", index=False)
    sheet = Sheet("label", "id", "label", "")
    table = pd.DataFrame({"image_id": ids, "path": ids})
    fields = {"test": plants} if observation else {}
    source = Source(
        table.iloc[:0],
        table,
        tmp_path / "asked.csv",
        None,
        truth=sample,
        fields=fields,
        sheet=sheet,
    )
    data = Data(root="here", limit=14, columns=["plant"], observation=observation)
    few = few_rows(few_test_images(source, data), data, tmp_path)
    assert few.test["image_id"].tolist() == ["t0", "t2", "t4"] and few.solution is None
    assert list(few.test) == ["image_id", "path"]
    stay = ["p0", "p1", "p2"] if observation else ["t0", "t2", "t4"]
    assert few.truth["id"].tolist() == few.truth.index.map(dict(enumerate(stay))).tolist() == stay
    assert few.sample_submission == tmp_path / "sample_submission.csv"
    assert pd.read_csv(few.sample_submission)["id"].tolist() == stay
    one = few_test_images(source, data.model_copy(update={"limit": 3}))
    assert one.test["image_id"].tolist() == ["t0"]


def test_options_of_a_smoke_run_touch_nothing_real(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {root: data/raw/digits}\n")
    parser = cli.parser("", many_configs=True)
    parser.add_argument("--out")
    args = parser.parse_args(["--config", str(path), "--smoke", "--out", "submission.csv"])
    (config,) = cli.configs_of(args)
    assert args.overwrite and args.out is None and config.dataset == "digits-smoke"
    plain = cli.parser("").parse_args(["--config", str(path)])
    assert cli.configs_of(plain)[0].dataset == "digits" and not plain.overwrite
    assert isinstance(plain, argparse.Namespace)


def test_a_limited_dataset_asks_for_its_own_test_images(digits):
    config = load_config(ROOT / "configs" / "digits.yaml", ["data.limit=60"])
    config = smoked(config, "test")
    before = {p: p.stat().st_mtime_ns for p in Path("runs/digits").rglob("*")}
    prepare(config)
    data = load_dataset("digits-smoke")
    assert data.num_classes == 10 and len(data.images) <= 60 and len(data.test) == 15
    facts = read_json(data.directory / "manifest.json")
    for key in ("sample_submission", "solution"):
        table = pd.read_csv(facts[key], dtype=str)
        assert set(table.iloc[:, 0]) == set(data.test["image_id"])
        assert Path(facts[key]).parent == data.directory
        assert Path(facts[key]).name in facts["outputs"]
    whole = pd.read_csv("data/raw/digits/sample_submission.csv", dtype=str)
    assert len(whole) > len(data.test)
    prepare(config, overwrite=True)  # again, as every smoke run does
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs/digits").rglob("*")}
