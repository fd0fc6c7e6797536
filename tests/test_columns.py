"""Columns of the user's own: from 01's tables to the submission's logits, joined by image id."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_arrays, read_table
from src.artifacts.predictions import Predictions, from_arrays, load_predictions, stack
from src.config.read import parse_config
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.inference.predict import predict
from src.posthoc.calibrate import posthoc
from src.prepare import prepare as prepare_module
from src.prepare.prepare import prepare
from src.prepare.read import read_source
from src.rebalance.stage2 import stage2
from src.training.stage1 import stage1
from tests.prepare_kit import config, folder_source, photo, write_csv
from tests.training_kit import tiny_config

ODD = ["00123", "1e5", "NA", "", " Côte d’Ivoire", 'a,"b"', "two\nlines", "null", "3.0", "日本"]
KEYS = {
    "source": "csv", "train": "train.csv", "test": "test.csv", "suffix": ".jpg",
    "train_images": "photos", "test_images": "photos",
}  # fmt: skip
ASKED = KEYS | {"columns": ["country", "month"]}


def read(root, **data):
    return read_source(config(root, data=data).data)


@pytest.fixture
def birds(tmp_path, monkeypatch) -> Path:
    """24 train images of three classes and 5 test images, with countries and months."""
    monkeypatch.chdir(tmp_path)
    root = Path("raw/birds")
    (root / "photos").mkdir(parents=True)
    for number in range(29):
        photo(number, (16, 16)).save(root / "photos" / f"{_id(number)}.jpg")
    train, test = list(range(24))[::-1], [26, 24, 28, 25, 27]
    write_csv(root / "train.csv", class_id=[f"c{i % 3}" for i in train], **_said(train))
    write_csv(root / "test.csv", **_said(test))
    return root


def _id(number: int) -> str:
    return ["00123", "1e5", "NA"][number] if number < 3 else f"im{number}"


def _said(numbers: list[int]) -> dict:
    return {
        "image_id": [_id(i) for i in numbers],
        "country": [ODD[i % len(ODD)] for i in numbers],
        "month": [f"{i % 12 + 1:02d}" for i in numbers],
    }


def test_columns_come_through_all_six_stages(birds, monkeypatch):
    monkeypatch.setattr(prepare_module, "draw_figures", lambda *args: [])
    tree = tiny_config(train={"epochs": 1, "warmup_epochs": 0}).model_dump(mode="json")
    tree |= {"data": ASKED | {"root": str(birds), "workers": 0}, "folds": {"k": 2}}
    tree |= {"stage2": [{"head": "ncm"}], "ensemble": {"members": ["posthoc", "ncm"]}}
    settings = parse_config(tree)
    directory = prepare(settings)
    ours = "image_id,path,class_id,label,fold,group_id,width,height,sha1,phash"
    assert (directory / "folds.csv").read_text().startswith(ours + ",country,month\n")
    header = "image_id,path,width,height,sha1,phash,country,month\n"
    assert (directory / "test.csv").read_text().startswith(header)
    assert load_dataset("birds").test["image_id"].tolist()[:2] == ["im26", "im24"]
    stage1(settings, "exp", [], False)
    stage2(settings, "exp", False)
    posthoc(settings, "exp")
    predict(settings, "exp", False)
    ensemble([settings], ["exp"])
    tables = [read_table(birds / name).set_index("image_id") for name in ("train.csv", "test.csv")]
    files = [p for p in sorted(Path("runs").rglob("*.npz")) if "logits" in read_arrays(p)]
    # stage 1 and ncm of two folds, 04; stage1, ncm and posthoc of 05, two networks' caches, 06
    assert len(files) == 2 * 2 + 1 + 3 + 2 + 1
    for path in files:
        found = load_predictions(path, 3)
        table = tables[found.image_id[0] not in tables[0].index].loc[found.image_id]
        assert set(found.columns) == {"country", "month"}, path
        for name, values in found.columns.items():
            assert values.tolist() == table[name].tolist(), path
    assert len(found.image_id) == 5  # the last is 06's


def test_without_columns_nothing_is_carried(birds, monkeypatch):
    monkeypatch.setattr(prepare_module, "draw_figures", lambda *args: [])
    directory = prepare(config(birds, data=KEYS))
    assert (directory / "folds.csv").read_text().split("\n")[0].endswith("sha1,phash")
    assert (directory / "test.csv").read_text().split("\n")[0].endswith("sha1,phash")
    with pytest.raises(UserError, match=r"data.columns: \[\] there, \['country', 'month'\] now"):
        prepare(config(birds, data=ASKED))


def test_a_changed_column_or_metadata_is_noticed(birds, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module, "draw_figures", lambda *args: [])
    ids = [_id(i) for i in range(29)]
    write_csv(birds / "more.csv", image_id=ids, site=["a"] * 29)
    settings = config(birds, data=ASKED | {"columns": ["site"], "metadata": "more.csv"})
    directory = prepare(settings)
    write_csv(birds / "more.csv", image_id=ids, site=["b"] * 29)
    prepare(settings)
    assert "'metadata' changed since" in capsys.readouterr().out
    assert set(read_table(directory / "folds.csv")["site"]) == {"b"}


# ---- where columns are looked for ---------------------------------------------------------------


def test_metadata_gives_columns_to_any_source(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 1}, test=2)
    said = {"t1": "NA", "1_a/a000": "00123", "1_a/a001": "", "2_b/a000": "x", "t0": "y"}
    write_csv(root / "m.csv", photo=[*said, "else"], site=[*said.values(), "z"])
    source = read(root, columns=["site"], metadata="m.csv", image_column="photo")
    for split, ids in (("train", source.train["image_id"]), ("test", source.test["image_id"])):
        assert source.fields[split]["site"].to_dict() == {i: said[i] for i in ids}
    assert source.tables["metadata"] == root / "m.csv"


def test_metadata_fills_what_one_table_lacks(birds):
    test = _said([26, 24, 28, 25, 27])
    write_csv(birds / "test.csv", image_id=test["image_id"])
    write_csv(birds / "more.csv", **_said([24, 25, 26, 27, 28]))
    source = read(birds, **ASKED, metadata="more.csv")
    assert source.fields["test"]["month"].tolist() == test["month"]
    assert source.fields["train"].loc["1e5", "country"] == "1e5"
    write_csv(birds / "sample_submission.csv", image_id=test["image_id"], class_id=["c0"] * 5)
    again = read(birds, **ASKED | {"test": "sample_submission.csv"}, metadata="more.csv")
    assert again.fields["test"].equals(source.fields["test"])
    assert read(birds, **ASKED | {"test": None}).fields["test"].empty


def test_fields_of_a_json_become_text(tmp_path):
    root = tmp_path / "inat"
    (root / "p").mkdir(parents=True)
    for i in range(3):
        photo(i).save(root / "p" / f"{i}.jpg")
    said = ({"latitude": -41.25, "date": "2017-08-13 06:12:55+00:00"}, {"latitude": None}, {})
    entries = [{"id": i, "file_name": f"p/{i}.jpg"} | fields for i, fields in enumerate(said)]
    tree = {"images": entries, "categories": [{"id": 0}, {"id": 1}]}
    tree["annotations"] = [{"image_id": i, "category_id": i % 2} for i in range(3)]
    (root / "train.json").write_text(json.dumps(tree))
    test = [{"id": 9, "file_name": "p/0.jpg", "latitude": 7, "date": "00123"}]
    (root / "test.json").write_text(json.dumps({"images": test}))
    keys = {"source": "coco", "train": "train.json", "test": "test.json"}
    source = read(root, **keys, columns=["latitude", "date"])
    assert source.fields["train"]["latitude"].tolist() == ["-41.25", "", ""]
    assert source.fields["train"]["date"].tolist() == ["2017-08-13 06:12:55+00:00", "", ""]
    assert source.fields["test"].values.tolist() == [["7", "00123"]]
    with pytest.raises(UserError, match="train.json: column 'latitud'.*did you mean 'latitude'"):
        read(root, **keys, columns=["latitud"])


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": ["mont"]}, r"train.csv: column 'mont' \(data.columns\) .*mean 'month'"),
        ({"columns": ["class_name"]}, r"column 'class_name' .*Correct data.columns, or add it"),
        ({"columns": ["bird"]}, r"test.csv: column 'bird' .* is missing, \S*train.csv has it; it"),
        ({"columns": ["bird"], "metadata": "m.csv"}, r"has it, raw/birds/m.csv lacks it, too"),
        (
            {"columns": ["odd"], "metadata": "m.csv"},
            r"m.csv: 27 of 29 images have no row: 'NA', 'i",
        ),
        ({"columns": ["odd"], "metadata": "n.csv"}, r"n.csv: no such table; did you mean 'm.csv'"),
        (
            {"columns": ["odd"], "metadata": "test.csv", "image_column": "im"},
            r"'im' \(data.image_c",
        ),
    ],
)
def test_what_is_missing_is_named(birds, changed, message):
    numbers = list(range(24))
    said = _said(numbers) | {"class_id": [f"c{i % 3}" for i in numbers], "bird": ["b"] * 24}
    write_csv(birds / "train.csv", **said)
    write_csv(birds / "m.csv", image_id=["1e5", "00123", "else"], odd=["a", "b", "c"])
    with pytest.raises(UserError, match=message):
        read(birds, **ASKED | changed)


def test_metadata_has_every_image_once_and_can_tell_them_apart(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 1, "2_b": 1}, test=1)
    with pytest.raises(UserError, match="source folder has no table with columns; set data.metad"):
        read(root, columns=["site"])
    ids = ["1_a/a000", "2_b/a000", "t0"]
    keys = {"columns": ["site"], "metadata": "m.csv"}
    write_csv(root / "m.csv", image_id=[*ids, "t0"], site=list("abcd"))
    with pytest.raises(UserError, match="m.csv: 1 image ids occur more than once: 't0'"):
        read(root, **keys)
    write_csv(root / "m.csv", image_id=[*ids, "t9", "t9"], site=list("abcde"))
    assert read(root, **keys).fields["test"].values.tolist() == [["c"]]
    (root / "test" / "1_a").mkdir()
    (root / "test" / "t0.jpg").rename(root / "test" / "1_a" / "a000.jpg")
    with pytest.raises(UserError, match="1 ids are those of a train and of a test image"):
        read(root, **keys)


def test_values_that_a_table_would_lose_are_refused(birds):
    ids = [_id(i) for i in range(29)]
    pd.DataFrame({"image_id": ids, "note": ["a\rb", *"x" * 28]}).to_csv(
        birds / "m.csv", index=False, quoting=1
    )
    with pytest.raises(UserError, match="'note' of 1 images holds a lone carriage .*'00123'"):
        read(birds, **ASKED | {"columns": ["note"]}, metadata="m.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"columns": ["country", "label"]}, "columns: 'label' is empty, named twice, or a column"),
        ({"columns": ["month", "month"]}, "columns: 'month' is empty, named twice"),
        ({"columns": [""]}, "columns: '' is empty"),
        ({"metadata": "m.csv"}, "metadata is read for data.columns, which names none"),
    ],
)
def test_columns_that_cannot_be_are_refused_by_the_config(data, message):
    with pytest.raises(UserError, match=message):
        parse_config({"data": data})


# ---- predictions ---------------------------------------------------------------------------------


def predictions(ids, **columns) -> Predictions:
    logits = np.arange(2.0 * len(ids), dtype=np.float32).reshape(-1, 2)
    columns = {name: np.array(values) for name, values in columns.items()}
    rows = np.zeros(len(ids), int)
    return Predictions(np.array(ids), logits, rows, rows, logits + 1, columns)


def test_columns_follow_their_images(tmp_path):
    one = predictions(["b", "a"], country=["NA", "00123"], **{"a/b ü.npy": ["", "x"]})
    path = one.save(tmp_path / "p.npz")
    found = load_predictions(path, 2)
    assert found.image_id.tolist() == ["a", "b"]
    assert found.columns["country"].tolist() == ["00123", "NA"]
    assert found.columns["a/b ü.npy"].tolist() == ["x", ""]
    assert found.take(["b", "a"]).columns["country"].tolist() == ["NA", "00123"]
    assert found.with_logits(-found.logits).columns is found.columns
    assert found.with_logits(-found.logits).features is None
    again = from_arrays(one.arrays())  # as processes hand them to each other
    assert again.columns.keys() == one.columns.keys() and again.features is one.features
    assert list(read_arrays(path))[4:] == ["features", "column.country", "column.a/b ü.npy"]


def test_folds_are_joined_with_their_columns():
    one, two = predictions(["d", "b"], month=["4", "2"]), predictions(["c"], month=["003"])
    assert stack([one, two]).columns["month"].tolist() == ["2", "003", "4"]
    found = stack([one, two])
    assert found.image_id.tolist() == ["b", "c", "d"] and found.features.shape == (3, 2)
    assert found.logits.tolist() == [[2, 3], [0, 1], [0, 1]]  # rows stay with their images
    made = stack([one, two], (-part.logits for part in (one, two)))
    assert made.logits.tolist() == [[-2, -3], [0, -1], [0, -1]] and made.features is None
    with pytest.raises(UserError, match=r"carry different columns: \['month'\], \[\]"):
        stack([one, predictions(["c"])])
