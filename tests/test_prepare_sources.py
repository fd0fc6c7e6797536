"""What each source reads, and what a user is told when a directory is not as it should be."""

import os

import numpy as np
import pytest

from src.artifacts.files import read_table, write_table
from src.errors import UserError
from src.prepare.read import read_source
from tests.prepare_kit import config, folder_source, photo, write_csv


def read(root, **data):
    return read_source(config(root, data=data).data)


def test_folder_names_become_ids_and_names(tmp_path):
    root = folder_source(tmp_path / "c", {"007_Sea_Gull": 2, "NA_Owl": 1, "1e5": 1})
    source = read(root)
    assert source.train["image_id"].tolist() == [
        "007_Sea_Gull/a000",
        "007_Sea_Gull/a001",
        "1e5/a000",
        "NA_Owl/a000",
    ]
    assert source.train["class_id"].tolist() == ["007", "007", "1e5", "NA"]
    assert source.train["class_name"].tolist() == ["Sea_Gull", "Sea_Gull", "1e5", "Owl"]
    assert source.test["image_id"].tolist() == ["t0", "t1", "t2", "t3"]
    assert source.columns == ("image_id", "class_id") and source.solution is None


def test_the_sample_submission_fixes_ids_order_and_columns(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 2})
    write_csv(root / "sample_submission.csv", Id=["t2", "t0.jpg"], Category=["1", "1"])
    source = read(root)
    assert source.test["image_id"].tolist() == ["t2", "t0.jpg"]
    assert [path.rsplit("/")[-1] for path in source.test["path"]] == ["t2.jpg", "t0.jpg"]
    assert source.columns == ("Id", "Category")
    assert "2 images" in source.notes[0] and "t1.jpg" in source.notes[0]


def test_paths_are_relative_below_the_current_directory(tmp_path, monkeypatch):
    root = folder_source(tmp_path / "here" / "c", {"1_a": 1, "2_b": 1})
    monkeypatch.chdir(tmp_path / "here")
    assert read(root).train["path"][0] == "c/train/1_a/a000.jpg"
    monkeypatch.chdir(root / "test")
    assert read(root).train["path"][0] == f"{root.as_posix()}/train/1_a/a000.jpg"


def test_hidden_and_other_files_are_passed_over(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 1, "2_b": 1})
    (root / "train" / ".DS_Store").write_text("x")
    (root / "train" / "__MACOSX").mkdir()
    (root / "train" / "1_a" / "._a000.jpg").write_text("x")
    (root / "train" / "1_a" / "notes.txt").write_text("x")
    source = read(root)
    assert len(source.train) == 2 and "1_a/notes.txt" in source.notes[0]


def test_two_files_with_one_stem_keep_their_endings(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 1, "2_b": 1})
    photo(5).save(root / "train" / "1_a" / "a000.png")
    assert read(root).train["image_id"].tolist() == ["1_a/a000.jpg", "1_a/a000.png", "2_b/a000"]


def spoil_no_train(root):
    (root / "train").rename(root / "elsewhere")


def spoil_id(root):
    (root / "train" / "1_a").rename(root / "train" / "_Sparrow")


def spoil_twins(root):
    (root / "train" / "1_a").rename(root / "train" / "2_a")


def spoil_empty_class(root):
    (root / "train" / "3_c").mkdir()


def spoil_no_test(root):
    (root / "test").rename(root / "elsewhere")


def spoil_missing_test_image(root):
    write_csv(root / "sample_submission.csv", image_id=["t0", "00123"], class_id=["1", "1"])


def spoil_columns(root):
    write_csv(root / "sample_submission.csv", image_id=["t0"], a=["1"], b=["1"])


def spoil_repeated_id(root):
    write_csv(root / "sample_submission.csv", image_id=["t0", "t0"], class_id=["1", "1"])


def spoil_test_stems(root):
    photo(5).save(root / "test" / "t1.png")


def spoil_solution_ids(root):
    write_csv(root / "solution.csv", image_id=["t0", "t99"], class_id=["1", "1"])


def spoil_solution_classes(root):
    write_csv(root / "solution.csv", image_id=["t0", "t1"], class_id=["1", "77"])


def spoil_solution_columns(root):
    write_csv(root / "solution.csv", image_id=["t0"], clas_id=["1"])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_no_train, r"train: no such directory; .*Did you unpack"),
        (spoil_id, r"1 class folders without an id: '_Sparrow'. Expected <classID>_<className>"),
        (spoil_twins, r"'2_a' and '2_b' have one class id, '2'.*merge them or rename"),
        (spoil_empty_class, r"3_c: no images in this class folder.*remove the folder"),
        (spoil_no_test, r"test: no such directory; .*data.test=null"),
        (spoil_missing_test_image, r"sample_submission.csv: 1 of 2 ids have no image.*'00123'"),
        (spoil_columns, r"in no known format. (.|\n)*image_id,a,b\n  t0,1,1\n(.|\n)*label_column"),
        (spoil_repeated_id, r"sample_submission.csv: 1 image ids occur more than once: 't0'"),
        (spoil_test_stems, r"test: 1 ids belong to more than one file: 't1.jpg', 't1.png'"),
        (spoil_solution_ids, r"solution.csv: 1 values of 'image_id' .*test images: 't99'"),
        (spoil_solution_classes, r"solution.csv: 1 values of 'class_id' .*train classes: '77'"),
        (spoil_solution_columns, r"solution.csv: column 'class_id' .*did you mean 'clas_id'"),
    ],
)
def test_folder_errors_say_what_to_do(tmp_path, spoil, message):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 2})
    spoil(root)
    with pytest.raises(UserError, match=message):
        read(root)


def spoil_latin1_class(root):
    os.rename(os.fsencode(root / "train" / "1_a"), os.fsencode(root / "train") + b"/1_\xe9")


def spoil_latin1_train(root):
    os.rename(root / "train" / "1_a" / "a000.jpg", os.fsencode(root / "train/1_a") + b"/\xe9.jpg")


def spoil_latin1_test(root):
    os.rename(root / "test" / "t0.jpg", os.fsencode(root / "test") + b"/\xe9.jpg")


def spoil_line_breaks(root):
    (root / "train" / "1_a").rename(root / "train" / "1_a\rb")


def spoil_test_line_breaks(root):
    (root / "test" / "t0.jpg").rename(root / "test" / "t\n0.jpg")


def spoil_broken_link(root):
    (root / "train" / "9_x").symlink_to("nowhere")


def spoil_self_link(root):
    (root / "train" / "9_x").symlink_to("9_x")


def spoil_parent_link(root):
    (root / "train" / "9_x").symlink_to("..")


def spoil_circle(root):
    (root / "train" / "9_x").symlink_to(".")


def spoil_two_links(root):
    (root / "train" / "9_x").symlink_to("1_a")


def spoil_empty_test(root):
    for path in (root / "test").iterdir():
        path.rename(path.with_suffix(".txt"))


def spoil_sample_rows(root):
    write_csv(root / "sample_submission.csv", image_id=[], class_id=[])


def spoil_solution_rows(root):
    write_csv(root / "solution.csv", image_id=[], class_id=[])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_latin1_class, r"train: 1 names .* not UTF-8 .*'1_.udce9'. Rename them"),
        (spoil_latin1_train, r"train/1_a: 1 names .* not UTF-8 .*'.udce9.jpg'. Rename them"),
        (spoil_latin1_test, r"test: 1 names .* not UTF-8 .*'.udce9.jpg'. Rename them"),
        (spoil_line_breaks, r"train: 1 names .* have a line break: '1_a.rb'. Rename them"),
        (spoil_test_line_breaks, r"test: 1 names .* have a line break: 't.n0.jpg'. Rename them"),
        (spoil_broken_link, r"train: 1 links lead nowhere or to themselves: '9_x'. Put back"),
        (spoil_self_link, r"train: 1 links lead nowhere or to themselves: '9_x'. Put back"),
        (spoil_parent_link, r"9_x: a link back to .*c, above it; remove it"),
        (spoil_circle, r"9_x: a link back to .*train, above it; remove it"),
        (spoil_two_links, r"train: '1_a' and '9_x' are links to one directory"),
        (spoil_empty_test, r"test: no test images in it, only 't0.txt', .* set data.test=null"),
        (spoil_sample_rows, r"sample_submission.csv: no rows below .*data.sample_submission=null"),
        (spoil_solution_rows, r"solution.csv: no rows below the header .*data.solution=null"),
    ],
)
def test_odd_names_links_and_empty_tables_say_what_to_do(tmp_path, spoil, message):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 2})
    spoil(root)
    with pytest.raises(UserError, match=message):
        read(root)


def test_commas_tabs_and_quotes_in_names_are_kept(tmp_path):
    root = folder_source(tmp_path / "c", {'1_wren, "small"\tbrown': 2, "2_b": 2})
    (root / "test" / "t0.jpg").rename(root / "test" / "t, 0\t'.jpg")
    source = read(root)
    table = read_table(write_table(tmp_path / "t.csv", source.train))
    assert table["class_name"][0] == 'wren, "small"\tbrown'
    assert table["path"].tolist() == source.train["path"].tolist()
    table = read_table(write_table(tmp_path / "t.csv", source.test))
    assert table["image_id"][0] == "t, 0\t'"


def test_linked_directories_are_followed_once_and_never_in_a_circle(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 2})
    (root / "train" / "1_a").rename(tmp_path / "elsewhere")
    (root / "train" / "1_a").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "2_b" / "up").symlink_to("..")
    (root / "test" / "up").symlink_to("..")
    source = read(root)
    assert (len(source.train), len(source.test)) == (4, 4)
    assert "1 links to directories in" in source.notes[0] and "'2_b/up/'" in source.notes[0]
    assert "1 links to directories in" in source.notes[1] and "'up/'" in source.notes[1]


def test_a_directory_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 2})
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("2_b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError):  # `cli.run` says it in words
        read(root)


@pytest.mark.parametrize("name", ["t.csv", "u.csv"])
def test_csv_tables_without_rows_are_named(tmp_path, name):
    root = folder_source(tmp_path / "c", {"1_a": 2, "2_b": 2})
    ids = ["1_a/a000", "1_a/a001", "2_b/a000", "2_b/a001"]
    write_csv(root / "t.csv", image_id=ids, class_id=list("1122"))
    write_csv(root / "u.csv", image_id=["t0"])
    keys = {"source": "csv", "train": "t.csv", "test": "u.csv", "suffix": ".jpg"}
    keys |= {"train_images": "train", "test_images": "test"}
    assert len(read(root, **keys).train) == 4
    write_csv(root / name, image_id=[], class_id=[])
    with pytest.raises(UserError, match=f"{name}: no rows below the header .*; expected one row"):
        read(root, **keys)


def test_a_file_that_is_named_must_exist_a_default_need_not(tmp_path):
    root = folder_source(tmp_path / "c", {"1_a": 1, "2_b": 1})
    write_csv(root / "sample.csv", image_id=["t0"], class_id=["1"])
    assert read(root).sample_submission is None
    with pytest.raises(UserError, match="sampel.csv: no such file; did you mean 'sample.csv'"):
        read(root, sample_submission="sampel.csv")


def csv_source(root):
    (root / "photos").mkdir(parents=True)
    for i, name in enumerate(["00123", "1e5", "NA", "x", "y"]):
        photo(i).save(root / "photos" / f"{name}.jpg")
    columns = {"image": ["NA", "00123", "1e5"], "species": ["NA", "1e5", "00123"]}
    write_csv(root / "train.csv", **columns, common=["owl", "wren", "gull"], bird=["a", "a", "b"])
    write_csv(root / "test.csv", image=["x", "y"])
    keys = {"train": "train.csv", "test": "test.csv", "suffix": ".jpg", "source": "csv"}
    return keys | {"train_images": "photos", "test_images": "photos", "image_column": "image"}


def test_csv_ids_stay_text(tmp_path):
    keys = csv_source(tmp_path / "c")
    columns = {"label_column": "species", "name_column": "common", "group_column": "bird"}
    source = read(tmp_path / "c", **keys, **columns)
    assert source.train["image_id"].tolist() == ["00123", "1e5", "NA"]
    assert source.train["class_id"].tolist() == ["1e5", "00123", "NA"]
    assert source.train["class_name"].tolist() == ["wren", "gull", "owl"]
    assert source.train["group"].tolist() == ["a", "b", "a"]
    assert source.test["image_id"].tolist() == ["x", "y"]
    assert set(source.tables) == {"train", "test"}


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"label_column": "specie"}, r"'specie' \(data.label_column\).*did you mean 'species'"),
        ({"suffix": ".png"}, r"train.csv: 3 of 3 rows have no file: .*NA.png.*data.suffix"),
        ({"train": "trian.csv"}, r"trian.csv: no such table; did you mean 'train.csv'"),
        ({"test": "none.csv"}, r"data.test=null"),
    ],
)
def test_csv_errors_say_what_to_do(tmp_path, keys, message):
    found = csv_source(tmp_path / "c") | {"label_column": "species"} | keys
    with pytest.raises(UserError, match=message):
        read(tmp_path / "c", **found)


def test_a_root_one_level_too_high_is_told(tmp_path):
    keys = csv_source(tmp_path / "c" / "stamps") | {"label_column": "species"}
    with pytest.raises(
        UserError, match=r"no such table; there is one in \S*/c/stamps. Correct data"
    ):
        read(tmp_path / "c", **keys)
    folder_source(tmp_path / "d" / "stamps", {"1_a": 2, "2_b": 2})
    with pytest.raises(UserError, match=r"no such directory; there is one in \S*/d/stamps; expect"):
        read(tmp_path / "d")


def test_csv_rejects_repeated_and_empty_ids(tmp_path):
    keys = csv_source(tmp_path / "c") | {"label_column": "species"}
    write_csv(tmp_path / "c" / "train.csv", image=["x", "x"], species=["1", "2"])
    with pytest.raises(UserError, match="train.csv: 1 image ids occur more than once: 'x'"):
        read(tmp_path / "c", **keys)
    write_csv(tmp_path / "c" / "train.csv", image=["x", "y"], species=["1", ""])
    with pytest.raises(UserError, match=r"'species' is empty in 1 lines: 3"):
        read(tmp_path / "c", **keys)


def test_digits_are_a_long_tailed_folder_written_once(tmp_path):
    root = tmp_path / "digits"
    source = read(root, source="digits")
    counts = source.train["class_name"].value_counts()
    assert (counts["zero"], counts["nine"]) == (122, 2) and len(counts) == 10
    assert "4780" in set(source.train["class_id"])
    truth = read_table(root / "solution.csv")
    assert truth["image_id"].tolist() == source.test["image_id"].tolist()
    assert np.ptp(truth["class_id"].value_counts()) < 5
    assert not set(source.test["image_id"]) & {i[-5:] for i in source.train["image_id"]}
    written = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    read(root, source="digits")
    assert written == {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]
    again = tmp_path / "again" / "digits"
    read(again, source="digits")
    for path in root.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(root)).read_bytes()


def one_hot(root, **columns):
    """A competition whose train.csv has these columns beside four images."""
    for i in range(4):
        (root / "images").mkdir(parents=True, exist_ok=True)
        photo(i).save(root / "images" / f"i{i}.jpg")
    write_csv(root / "train.csv", image_id=[f"i{i}" for i in range(4)], **columns)
    more = {"train": "train.csv", "train_images": "images", "suffix": ".jpg", "test": None}
    return more | {"source": "csv", "one_hot": True}


def test_a_column_for_each_class(tmp_path):
    """What get_dummies of pandas writes, too; a column that is kept is no class."""
    columns = {"cat": ["True", "False", "False", "False"], "0": ["0.0", "1.0", "1.0", "0.0"],
               "dog": [0, 0, 0, 1], "flag": [1, 1, 0, 0],
               "one": 1, "age": [3, 1, 0, 1]}  # fmt: skip
    source = read(tmp_path, **one_hot(tmp_path, **columns), columns=["flag"])
    assert source.train["class_id"].tolist() == ["cat", "0", "0", "dog"]
    assert source.train["class_name"].tolist() == ["cat", "0", "0", "dog"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": [1, 0, 0, 0], "b": [0, 1, 1, 0]}, r"1 of 4 rows have no 1, or several.*lines 5"),
        ({"a": [1, 0, 0, 1], "b": [0, 1, 1, 0], "flag": [0, 1, 0, 0]}, "lines 3.*data.columns"),
        ({"a": [1, 0, 0, 1], "b": 2}, "1 columns hold 0 and 1.*data.label_column"),
    ],
)
def test_rows_of_no_class_or_several(tmp_path, columns, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, **one_hot(tmp_path, **columns))


def test_a_column_for_each_class_goes_with_no_other_column_of_classes(tmp_path):
    keys = one_hot(tmp_path, a=[1, 0, 0, 1], b=[0, 1, 1, 0])
    with pytest.raises(UserError, match="one_hot says .* 'label_column'"):
        read(tmp_path, **keys, label_column="a")
    with pytest.raises(UserError, match="one_hot is of source csv"):
        read(tmp_path, **keys | {"source": "folder"})


def test_a_table_with_tabs_keeps_its_ids_and_commas(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("id\tname\n00123\tgull, common\n1e5\tNA\n")
    assert read_table(path).to_numpy().tolist() == [["00123", "gull, common"], ["1e5", "NA"]]
    path.write_text("id\tname\n1\t2\t3\t4\n")
    with pytest.raises(UserError, match="more cells than the header.*tabs at the ends"):
        read_table(path)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["owl/1", "kite/1"], None),
        (["birds/owl/1.png", "birds/kite/1.png"], None),
        (["x/owl/1.jpg", "x/gull/1.jpg"], "1 of 2 ids have no image below .*x/gull/1.jpg"),
        (["x/1.jpg", "y/1.jpg"], "2 of 2 ids have several images"),
        (["owl/1", "owl/1.jpg"], "1 images below .* have several ids, such as 'owl/1'"),
    ],
)
def test_ids_are_found_all_in_one_way_or_not_at_all(tmp_path, capsys, ids, message):
    """No image of another directory in place of one that is missing among others."""
    for name in ("owl", "kite"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        photo(1).save(tmp_path / "photos" / name / "1.jpg")
    write_csv(tmp_path / "train.csv", image_id=ids, class_id=["a", "b"])
    keys = {"train": "train.csv", "source": "csv", "suffix": "*", "test": None}
    keys["train_images"] = "photos"
    if message is None:
        found = read(tmp_path, **keys).train
        assert found["path"].str[-9:].tolist() == ["ite/1.jpg", "owl/1.jpg"]
        assert found["class_id"].tolist() == ["b", "a"]
        as_written = set(ids) <= {"owl/1", "kite/1", "owl/1.jpg", "kite/1.jpg"}
        assert ("as it is written, so" in capsys.readouterr().out) != as_written
        return
    with pytest.raises(UserError, match=message):
        read(tmp_path, **keys)


def test_a_csv_source_may_have_its_test_images_in_a_directory(tmp_path):
    keys = csv_source(tmp_path / "c") | {"label_column": "species", "test": "photos"}
    assert read(tmp_path / "c", **keys).test["image_id"].tolist() == [
        "00123",
        "1e5",
        "NA",
        "x",
        "y",
    ]
    (tmp_path / "c" / "sample_submission.csv").write_text("id,label\ny.jpg,NA\nx.jpg,NA\n")
    assert read(tmp_path / "c", **keys).test["image_id"].tolist() == ["y.jpg", "x.jpg"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_with_other_marks_between_its_cells(tmp_path, mark):
    path = tmp_path / "train.csv"
    path.write_text(f"id{mark}name\n00123{mark}gull, common\n1e5{mark}NA\n")
    assert read_table(path).to_numpy().tolist() == [["00123", "gull, common"], ["1e5", "NA"]]
    assert read_table(path, only=["id"]).to_numpy().tolist() == [["00123"], ["1e5"]]
    path.write_bytes("id,name\n1,M\xfcll\n".encode("latin1"))
    with pytest.raises(UserError, match="in UTF-8: .*Save it as UTF-8"):
        read_table(path)
