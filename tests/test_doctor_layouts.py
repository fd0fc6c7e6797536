"""01 --inspect on layouts of research data and of older competitions: the right choice, or a
sentence that says what to do."""

import json
import zipfile
from pathlib import Path

import pytest

from src.artifacts.files import read_json, read_table
from src.config.model import Model
from src.config.read import load_config
from src.errors import UserError
from src.prepare import prepare as stage
from src.prepare.doctor import machine
from src.prepare.doctor.inspect import inspect
from tests.doctor_kit import RAW, images, names, prepared
from tests.prepare_kit import write_csv

ROOT = RAW / "mine"
ABC = ["a", "b", "c"] * 4


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """Nothing is said of networks, and no figures are drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "network", lambda looks: ([], Model()))
    monkeypatch.setattr(machine, "training", lambda *_: ([], "", 1.0))
    monkeypatch.setattr(stage, "draw_figures", lambda *_: [])


def said(path: str = "configs/mine.yaml") -> str:
    """All comments and keys, without line ends."""
    return " ".join(Path(path).read_text().replace("#", " ").split())


def table(directory: str = "train", **more) -> Path:
    """Twelve images of three classes, and train.csv."""
    images(ROOT / directory, names(12))
    return write_csv(ROOT / "train.csv", **({"image": names(12), "label": ABC} | more))


def coco(path: str, files: dict[int, str], classes: list[int] | None = None) -> None:
    images(ROOT, [str(Path(path).parent / file) for file in files.values()], min(files))
    tree = {"images": [{"id": i, "file_name": file} for i, file in files.items()]}
    if classes:
        tree["annotations"] = [
            {"image_id": i, "category_id": c} for i, c in zip(files, classes, strict=True)
        ]
        tree["categories"] = [{"id": c, "name": f"taxon {c}"} for c in sorted(set(classes))]
    (ROOT / path).write_text(json.dumps(tree))


def test_coco_json_as_inaturalist_has_it():
    of = [3] * 6 + [17] * 4 + [20] * 2
    coco("train2018.json", {i: f"train_val2018/Aves/{c}/i{i}.jpg" for i, c in enumerate(of)}, of)
    coco("val2018.json", {50: "train_val2018/Aves/3/i50.jpg"}, [3])
    coco("test2018.json", {i: f"test2018/i{i}.jpg" for i in range(90, 94)})
    write_csv(ROOT / "kaggle_sample_submission.csv", id=range(90, 94), predicted="3 17 20")
    config, folder = prepared(ROOT)
    assert (config.data.source, config.data.test) == ("coco", "test2018.json")
    assert config.metric == "map3" and len(read_table(folder / "folds.csv")) == 12
    assert "Not taken: val2018.json (1 images)" in said()


def test_coco_json_beside_folders_that_are_no_classes():
    of = [0] * 6 + [60492] * 6
    coco("train/metadata.json", {i: f"images/{c % 9:03d}/{i}.jpg" for i, c in enumerate(of)}, of)
    coco("test/metadata.json", {i: f"images/000/{i}.jpg" for i in range(3)})
    write_csv(ROOT / "sample_submission.csv", Id=range(3), Predicted=0)
    config, folder = prepared(ROOT)
    assert (config.data.train_images, config.data.test_images) == ("train", "test")
    assert read_table(folder / "classes.csv")["class_id"].tolist() == ["0", "60492"]


def test_json_of_several_classes_an_image_gives_way_to_class_folders():
    files = {i: f"train/{c}/{i}.jpg" for i, c in enumerate(ABC)}
    coco("boxes.json", files, [1, 2, 3] * 4)
    tree = json.loads((ROOT / "boxes.json").read_text())
    tree["annotations"].append({"image_id": 0, "category_id": 2})
    (ROOT / "boxes.json").write_text(json.dumps(tree))
    config, _ = prepared(ROOT)
    assert config.data.source == "folder"
    assert "image '0' has the categories '1' and '2'; expected one per image" in said()


def test_lists_of_paths_and_labels():
    files = [f"train/n{i % 3}/{i}.JPEG" for i in range(12)]
    images(ROOT, files)
    images(ROOT, ["train/n0/unlisted.JPEG", "val/v1.JPEG", "val/v2.JPEG"], 50)
    lines = "".join(f"{f} {i % 3}\n" for i, f in enumerate(files))
    (ROOT / "birds.txt").write_text(lines)
    (ROOT / "val.txt").write_text(lines + "train/n0/unlisted.JPEG 0\n")
    (ROOT / "birds_test.txt").write_text("val/v1.JPEG 1\nval/v2.JPEG 2\n")
    config, folder = prepared(ROOT)
    assert (config.data.source, config.data.train) == ("list", "birds.txt") and len(
        read_table(folder / "folds.csv")
    ) == 12
    assert len(read_table(folder / "solution.csv")) == 2


def test_true_labels_that_test_folders_carry_are_used():
    for split, first in (("Training", 0), ("Testing", 500)):
        for i, folder in enumerate(["rose", "tulip"]):
            images(ROOT / split / folder, [f"{split}{j}.jpg" for j in range(3)], first + 10 * i)
    _, folder = prepared(ROOT)
    assert sorted(read_table(folder / "solution.csv")["class_id"]) == ["rose"] * 3 + ["tulip"] * 3


def test_a_label_that_test_images_have_too_is_taken_before_another_column():
    table(fold=[0, 1, 2, 3] * 3)
    images(ROOT / "test", names(2, start=50), 50)
    write_csv(ROOT / "test.csv", image=names(2, start=50), label=["a", "b"])
    assert prepared(ROOT)[0].data.label_column == "label"
    text = said()
    assert "NOT SURE. the class" in text and "label_column: fold" in text
    assert "It has 'label', too" in text
    asked = ["data.solution=test.csv", "submission.id_column=image"]
    config = load_config("configs/mine.yaml", [*asked, "submission.label_column=label"])
    assert read_json(stage.prepare(config, overwrite=True) / "manifest.json")["solution"]


def test_labels_that_are_missing_are_no_reason_to_take_another_column():
    images(ROOT, names(12))
    species = ["a", "b", "c", ""] * 3
    write_csv(ROOT / "train.csv", image=names(12), family=["F", "G"] * 6, species=species)
    with pytest.raises(UserError, match="'species' is empty in 3 lines: 5, 9, 13"):
        inspect(ROOT)


def test_whole_numbers_with_a_point_are_classes_where_nothing_else_is():
    table(label=[0.0, 1.0, 2.0] * 4)
    assert prepared(ROOT)[0].data.label_column == "label"
    table(**{"class id": [0.0, 1.0, 2.0] * 4, "label": ABC})
    inspect(ROOT, overwrite=True)
    assert "label_column: label" in said()


@pytest.mark.parametrize(
    ("cells", "several"),
    [
        (["1 2", "2 3", "1 3"] * 4, True),
        (["rust", "scab", "rust scab", "scab rust"] * 3, True),
        (["Turdus merula", "Turdus philomelos", "Parus major"] * 4, False),
    ],
)
def test_combinations_of_classes_are_named(cells, several):
    table(label=cells)
    inspect(ROOT)
    assert ("each combination is a class of its own here" in said()) == several


def test_spaces_around_labels_are_named():
    table(label=[f" {c}" for c in ABC])
    inspect(ROOT)
    assert "begin or end with spaces" in said()


def test_a_table_without_a_line_of_columns():
    table().write_text("".join(f"{n},{c}\n" for n, c in zip(names(12), ABC, strict=True)))
    with pytest.raises(UserError, match="train.csv: the first line names an image, '00000.jpg'"):
        inspect(ROOT)


def test_the_table_that_is_called_train_comes_before_a_longer_one():
    table()
    images(ROOT / "old", [f"o{i}.jpg" for i in range(20)], 50)
    write_csv(ROOT / "train_old.csv", image=[f"o{i}.jpg" for i in range(20)], label=["a", "b"] * 10)
    assert prepared(ROOT)[0].data.train == "train.csv"


def test_a_column_that_splits_the_rows_is_named():
    table(**{"data set": ["train"] * 8 + ["valid"] * 2 + ["test"] * 2})
    inspect(ROOT)
    assert "'data set' says (8 'train', 2 'valid', 2 'test')" in said()


def test_masks_of_the_same_names_are_no_photographs():
    table("photos", image=names(12, ""))
    images(ROOT / "annotations", names(12, ".png"), 50)
    data = prepared(ROOT)[0].data
    assert (data.train_images, data.suffix) == ("photos", ".jpg")


def test_a_list_of_classes_is_no_table_of_images():
    for i, folder in enumerate(["daisy", "rose", "tulip"]):
        images(ROOT / "train" / folder, [f"{folder}{j}.jpg" for j in range(3)], 10 * i)
    images(ROOT / "test", ["1.jpg", "2.jpg"], 90)
    write_csv(ROOT / "class_names.csv", index=[0, 1, 2], name=["daisy", "rose", "tulip"])
    write_csv(ROOT / "sample_submission.csv", id=["1.jpg", "2.jpg"], label=0)
    config, _ = prepared(ROOT)
    assert config.data.source == "folder"
    assert "NOT SURE. label: one word per cell of 'label', such as '0', though no" in said()


@pytest.mark.parametrize(
    "cell", ["/home/anna/leaves/{c}/{n}.jpg", "leaves\\{c}\\{n}.jpg", "photos/{c}/{n}.png"]
)
def test_ids_with_another_directory_or_ending_than_the_files(cell):
    files = [f"{c}/{i // 3}.jpg" for i, c in enumerate(ABC)]  # one name in several directories
    images(ROOT / "photos", files)
    ids = [cell.format(c=f[0], n=Path(f).stem) for f in files]
    write_csv(ROOT / "train.csv", file=ids, target=[10, 20, 30] * 4)
    config, folder = prepared(ROOT)
    assert (
        config.data.suffix == "*"
        and "NOT SURE. every cell that was looked up is an image's name, though not" in said()
    )
    rows = read_table(folder / "folds.csv").set_index("image_id").loc[ids, "path"]
    assert rows.tolist() == [f"{ROOT}/photos/{f}" for f in files]


def test_semicolons_between_cells():
    path = table(note="1,5; so to speak")
    read_table(path).to_csv(path, index=False, sep=";")
    images(ROOT / "test", ["t.jpg"], 50)
    (ROOT / "sample_submission.csv").write_text("image;label\nt.jpg;a\n")
    config, folder = prepared(ROOT)
    assert read_table(folder / "folds.csv")["class_id"].tolist() == ABC
    assert config.data.sample_submission is None
    assert "a sample submission with semicolons, and submissions are written as CSV" in said()


def test_test_images_that_no_table_lists():
    table()
    images(ROOT / "test", ["t1.jpg", "t2.jpg"], 50)
    config, folder = prepared(ROOT)
    assert config.data.test == "test"
    assert read_table(folder / "test.csv")["image_id"].tolist() == ["t1", "t2"]


def test_test_images_below_those_of_the_table_are_not_predicted():
    files = [f"{'test' if i > 8 else 'train'}/{name}" for i, name in enumerate(names(12))]
    images(ROOT, files)
    write_csv(ROOT / "birds.csv", file=files, label=ABC)
    assert prepared(ROOT)[0].data.test is None
    assert "There are images in 'test': to have them predicted, take them out of" in said()


@pytest.mark.parametrize("prefix", ["", "/home/anna/"])
def test_numbers_of_classes_are_no_names_of_images(prefix):
    images(ROOT / "train", [f"{i}.jpg" for i in range(12)])
    files = [f"{prefix}{i}.jpg" for i in range(12)]
    write_csv(ROOT / "train.csv", target=[0, 1, 2] * 4, file=files)
    data = prepared(ROOT)[0].data
    assert (data.image_column, data.label_column) == ("file", "target")


@pytest.mark.parametrize("column", ["image", "Id"])
def test_one_probability_for_two_classes(column):
    table(label=[0, 1] * 6)
    images(ROOT / "test", ["t1.jpg", "t2.jpg"], 50)
    write_csv(ROOT / "sample_submission.csv", **{column: ["t1.jpg", "t2.jpg"], "label": 0.5})
    config, folder = prepared(ROOT)
    assert (config.submission.format, config.metric) == ("probabilities", "log_loss")
    assert "as sample_submission.csv has it" in said() and "one class id per" not in said()
    assert config.submission.id_column == column and len(read_table(folder / "test.csv")) == 2
    assert read_json(folder / "manifest.json")["submission"]["format"] == "probabilities"


def test_archives_that_are_not_extracted_are_named():
    images(ROOT / "test", ["t1.jpg"])
    write_csv(ROOT / "train.csv", image=names(12), label=ABC)
    for name in ("train.zip", "more.zip"):
        with zipfile.ZipFile(ROOT / name, "w") as archive:
            archive.writestr("a.jpg", "")
    with pytest.raises(UserError, match="no column names images.\nExtract 'more.zip', 'train.zip'"):
        inspect(ROOT)
    table()
    (ROOT / "test" / "t1.jpg").rename(ROOT / "test" / "x1.jpg")
    write_csv(ROOT / "sample_submission.csv", image=["t1.jpg", "t2.jpg"], label="a")
    inspect(ROOT)
    assert "NOT SURE. no test images are predicted. sample_submission.csv: no column" in said()


def test_test_images_that_are_not_here_are_not_taken_from_the_training_images():
    table()
    write_csv(ROOT / "sample_submission.csv", image=names(2), label="a")
    config, folder = prepared(ROOT)
    assert config.data.test is None and not len(read_table(folder / "test.csv"))
    assert "100% of the cells of column 'image' name images that are here, in train" in said()


def test_few_images_of_a_table_are_counted_and_its_first_row_is_shown():
    table()
    for name in names(12)[4:]:
        (ROOT / "train" / name).unlink()
    with pytest.raises(UserError, match="first row 00000.jpg, a\ntrain.csv: only 33% of the "
                       "cells of column 'image' name images that are here"):  # fmt: skip
        inspect(ROOT)


def test_what_may_be_one_specimen_is_named():
    table(patient_id=[f"p{i // 2}" for i in range(12)])
    inspect(ROOT)
    assert "group_column: patient_id" in said()


def test_other_archives_and_those_of_windows_are_to_be_extracted_by_hand():
    Path("x.tgz").write_bytes(b"")
    with pytest.raises(UserError, match="an archive other than zip; extract it by hand"):
        inspect("x.tgz")
    info = zipfile.ZipInfo("x")
    info.filename = "train\\a\\1.jpg"
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.writestr(info, "")
    with pytest.raises(UserError, match=r"have \\ where / is expected.*Extract it by hand"):
        inspect("x.zip")
