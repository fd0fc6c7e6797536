"""01 --inspect on competitions laid out as Kaggle's are: what it writes passes 01 as it is, and the
planted answers are found."""

import os
import runpy
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.artifacts.files import read_json, read_table
from src.config.model import Model
from src.config.read import load_config
from src.errors import UserError
from src.networks import cost
from src.networks.on_disk import OnDisk
from src.prepare import prepare as stage
from src.prepare.doctor import counts, machine, unpack
from src.prepare.doctor.inspect import inspect
from tests.doctor_kit import RAW, images, names, prepared
from tests.prepare_kit import write_csv

ROOT = Path(__file__).parents[1]
SPECIES = ["00012", "1e5", "NA"]  # ids that a careless reader loses
OF = [SPECIES[min(2, i // 8)] for i in range(20)]  # 8, 8 and 4 images


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """No probe, no weights of this machine, no figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "images_per_second", lambda *_: 100.0)
    monkeypatch.setattr(machine, "weights_on_disk", list)
    monkeypatch.setattr(machine, "hub_or_cache", lambda: False)
    monkeypatch.setattr(stage, "draw_figures", lambda *_: [])


def kaggle(root: Path, ending: str = "") -> Path:
    """train.csv, test.csv and sample_submission.csv beside two directories of images."""
    images(root / "train_images", names(20))
    images(root / "test_images", names(4), 100)  # the same names, as it happens
    family = ["f" if s == "1e5" else "g" for s in OF]
    more = {"taken": ["may", "june"] * 10, "serial": range(20), "source": "x"}
    write_csv(root / "train.csv", country=["de", "fr"] * 10, image=names(20, ending), family=family,
              species=OF, common=[f"bird {s}" for s in OF], **more)  # fmt: skip
    write_csv(root / "test.csv", image=names(4, ending), country="de", taken="may")
    write_csv(root / "sample_submission.csv", image=names(4, ending), species="1e5")
    return root


def test_train_csv_with_odd_ids_and_many_columns(capsys):
    config, folder = prepared(kaggle(RAW / "birds"))
    data = config.data
    columns = (data.image_column, data.label_column, data.name_column)
    assert columns == ("image", "species", "common") and data.suffix == ".jpg"
    assert (data.train_images, data.test_images) == ("train_images", "test_images")
    assert data.columns == ("country", "taken") and data.solution is None
    assert read_table(folder / "classes.csv")["class_id"].tolist() == ["00012", "1e5", "NA"]
    assert set(read_table(folder / "folds.csv")["path"].str.split("/").str[3]) == {"train_images"}
    text = Path("configs/birds.yaml").read_text()
    for said in ("family: coarser, 2 values", "country: test images have it", "serial: another"):
        assert said in " ".join(text.replace("#", "").split())
    assert read_json(folder / "manifest.json")["submission"]["format"] == "label"


def test_ids_with_extension_and_sample_submission_alone():
    root = kaggle(RAW / "birds", ".jpg")
    (root / "test.csv").unlink()
    config, folder = prepared(root)
    assert (config.data.suffix, config.data.test) == ("", "sample_submission.csv")
    assert len(read_table(folder / "test.csv")) == 4


def test_mixed_endings_and_directories_that_ids_do_not_name():
    root = RAW / "mixed"
    images(
        root / "train", [f"{i % 3}/{n}" for i, n in enumerate(names(10) + names(10, ".png", 10))]
    )
    images(root / "test", names(3, ".png", 90), 200)
    write_csv(root / "labels.csv", id=names(20, ""), breed=OF)
    write_csv(root / "sample_submission.csv", id=names(3, "", 90), **dict.fromkeys(SPECIES, 0.3))
    config, folder = prepared(root)
    assert (config.data.suffix, config.metric) == ("*", "log_loss")
    assert read_json(folder / "manifest.json")["submission"]["format"] == "probabilities"
    ends = read_table(folder / "folds.csv")["path"].str[-4:]
    assert sorted(ends.value_counts()) == [10, 10]


def test_ids_of_a_column_that_is_not_the_first_and_several_per_cell():
    root = kaggle(RAW / "birds")
    cells = {"row": range(4), "image": names(4, ""), "species": "1e5 NA"}
    write_csv(root / "sample_submission.csv", **cells)
    config, folder = prepared(root)
    assert (config.submission.id_column, config.metric) == ("image", "map2")
    assert read_table(folder / "test.csv")["image_id"].tolist() == names(4, "")


def test_a_class_that_only_the_sample_knows():
    root = kaggle(RAW / "birds")
    classes = dict.fromkeys([*SPECIES, "new_bird"], 0.25)
    write_csv(root / "sample_submission.csv", image=names(4, ""), **classes)
    assert prepared(root)[0].submission.unknown.id == "new_bird"


def test_a_sample_that_is_not_understood_is_left_out_with_the_options():
    root = kaggle(RAW / "birds")
    strange = {"a": 0.5, "b": 0.25}
    write_csv(root / "sample_submission.csv", image=names(4, ""), **strange)
    config, _ = prepared(root)
    assert config.data.sample_submission is None
    text = Path("configs/birds.yaml").read_text()
    assert "NOT SURE" in text and "# sample_submission: sample_submission.csv" in text


def test_a_solution_is_used_where_there_is_one():
    root = kaggle(RAW / "birds")
    write_csv(root / "public_solution.csv", image=names(2, ""), species=["1e5", "NA"])
    assert prepared(root)[0].data.solution == "public_solution.csv"


@pytest.mark.parametrize(
    ("folders", "way", "ids"),
    [
        (["red_fox", "red_kite", "owl"], "whole", ["owl", "red_fox", "red_kite"]),
        (["01_fox", "02_owl", "10_red_kite"], "id_name", ["01", "02", "10"]),
        (["001.Laysan_Albatross", "002.Crow"], "whole", ["001.Laysan_Albatross", "002.Crow"]),
        (["n02-Toy_terrier", "n03-Pug"], "whole", ["n02-Toy_terrier", "n03-Pug"]),
        (["n1/images", "n2/images"], "whole", ["n1", "n2"]),
        (["birds/owl", "birds/kite", "cats/lynx"], "leaf", ["kite", "lynx", "owl"]),
    ],
)
def test_folders_of_classes(folders, way, ids):
    for i, folder in enumerate(folders):
        images(RAW / "wild" / "train" / folder, names(4), 10 * i)
    images(RAW / "wild" / "test", names(3), 300)
    config, directory = prepared(RAW / "wild")
    assert (config.data.class_folders, config.data.test) == (way, "test")
    assert read_table(directory / "classes.csv")["class_id"].tolist() == ids


def test_class_folders_and_nothing_else_have_no_test_set():
    for i, folder in enumerate(["rose", "tulip", "test_tulip_hybrid"]):
        images(RAW / "flowers" / folder, names(4), 10 * i)
    config, directory = prepared(RAW / "flowers")
    assert (config.data.train, config.data.test) == (".", None)
    assert len(read_table(directory / "classes.csv")) == 3


def test_a_validation_directory_is_named_and_left_out():
    for split, first in (("train", 0), ("val", 500)):
        for i, folder in enumerate(["rose", "tulip"]):
            images(RAW / "flowers" / split / folder, names(4), first + 10 * i)
    config, directory = prepared(RAW / "flowers")
    assert config.data.train == "train" and len(read_table(directory / "folds.csv")) == 8
    assert "'val' (8 images) is left out" in Path("configs/flowers.yaml").read_text()


def test_a_zip_of_a_zip_in_one_directory(tmp_path):
    root = kaggle(tmp_path / "made" / "inner")
    with zipfile.ZipFile(root / "train_images.zip", "w") as inner:
        for path in sorted((root / "train_images").iterdir()):
            inner.write(path, f"train_images/{path.name}")
    shutil.rmtree(root / "train_images")
    packed = shutil.make_archive("downloads", "zip", root.parent)
    shutil.rmtree(root.parent)
    config, directory = prepared(Path(packed), out="configs/x.yaml")
    assert config.data.root == "data/raw/downloads/inner" and config.dataset == "downloads"
    assert len(read_table(directory / "folds.csv")) == 20
    assert not list(RAW.glob(".*"))
    inspect(packed, "configs/y.yaml")  # what is there already is taken


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/tmp/outside.jpg", "a/../../x.jpg", "C:/x.jpg"]
)
def test_a_zip_that_leads_outside_is_refused_before_anything_is_written(name):
    with zipfile.ZipFile("slip.zip", "w") as archive:
        archive.writestr("train/a/1.jpg", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="lead outside.*Nothing was extracted"):
        inspect("slip.zip")
    assert sorted(os.listdir()) == ["slip.zip"]


def test_links_and_damage_in_a_zip_are_refused():
    link = zipfile.ZipInfo("train/a")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile("link.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="or are links"):
        inspect("link.zip")
    with zipfile.ZipFile("bad.zip", "w") as archive:
        archive.writestr("train/a.jpg", bytes(1000))
    content = bytearray(Path("bad.zip").read_bytes())
    content[100] ^= 255
    Path("bad.zip").write_bytes(content)
    with pytest.raises(UserError, match="cannot be extracted.*nothing was kept"):
        inspect("bad.zip")
    assert not list(RAW.iterdir())


@pytest.mark.parametrize("same", [True, False])
def test_another_start_may_be_faster_with_a_zip(tmp_path, monkeypatch, same):
    """While one start extracts, a whole second one comes and goes."""
    kaggle(tmp_path / "made")
    packed = Path(shutil.make_archive("downloads", "zip", tmp_path / "made"))
    extract, starts = unpack._extract, []

    def slowly(archive, members, target, path):
        if not starts:
            starts.append(path)
            if same:
                assert unpack.unpacked(packed) == RAW / "downloads"
            else:
                images(RAW / "downloads", ["other.jpg"])
        extract(archive, members, target, path)

    monkeypatch.setattr(unpack, "_extract", slowly)
    if same:
        assert unpack.unpacked(packed) == RAW / "downloads"
        assert len(read_table(RAW / "downloads" / "train.csv")) == 20
    else:
        with pytest.raises(UserError, match="is there already and is not what"):
            unpack.unpacked(packed)
    assert not list(RAW.glob(".*"))


def test_a_config_that_is_there_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.yaml").write_text("{}")
    code = "import sys, runpy; sys.argv[1:] = ['--inspect', 'photos', '--out', 'mine.yaml']\ntry:\n"
    code += f"    runpy.run_path({str(ROOT / '01_prepare_folds.py')!r}, run_name='__main__')\n"
    code += "finally:\n    print('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "mine.yaml is there already" in done.stderr and done.stdout == "False\n"


def test_a_config_is_never_replaced_unasked():
    kaggle(RAW / "birds")
    Path("mine.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="mine.yaml is there already"):
        inspect(RAW / "birds", "mine.yaml")
    assert Path("mine.yaml").read_text() == "seed: 1\n"
    inspect(RAW / "birds", "mine.yaml", overwrite=True)
    assert load_config("mine.yaml").data.train == "train.csv"


def test_what_cannot_be_told_is_said_with_what_was_found():
    images(RAW / "flat", names(5))
    write_csv(RAW / "flat" / "notes.csv", author=["a"], text=["b"])
    with pytest.raises(UserError, match="(?s)Looked for a CSV.*5 images.*author, text"):
        inspect(RAW / "flat")
    with pytest.raises(UserError, match="no such file or directory"):
        inspect("nowhere")
    (RAW / "empty").mkdir()
    with pytest.raises(UserError, match="(?s)no images.*Is that the right directory"):
        inspect(RAW / "empty")
    assert not Path("configs").exists()


def a_column_per_class(count: int = 9, **more) -> dict:
    """Of three classes, those of whose cells are 1 in turn."""
    flags = np.eye(3, dtype=int)[np.arange(count) % 3].T
    return {"id": names(count, "")} | dict(zip(("scab", "7", "rust"), flags, strict=True)) | more


def test_a_column_of_0_and_1_for_each_class():
    root = RAW / "plants"
    images(root / "images", names(9))
    images(root / "images", names(2, start=100), 100)
    more = {"age": range(9), "place": [f"p{i // 4}" for i in range(9)], "all": 1}
    write_csv(root / "train.csv", **a_column_per_class(**more))
    write_csv(root / "sample_submission.csv", id=names(2, "", 100),
              **dict.fromkeys(("scab", "7", "rust"), [0.3, 0.4]))  # fmt: skip
    config, directory = prepared(root)
    assert config.data.one_hot and config.metric == "log_loss"
    table = read_table(directory / "folds.csv").sort_values("image_id")
    assert table["class_id"].tolist() == ["scab", "7", "rust"] * 3
    assert "place: 3 values" in Path("configs/plants.yaml").read_text()


def test_a_column_that_is_called_label_is_taken_before_columns_of_0_and_1():
    images(RAW / "plants", names(9))
    of = ["a", "b", "c"] * 3
    write_csv(RAW / "plants" / "train.csv", **a_column_per_class(label=of))
    config, _ = prepared(RAW / "plants")
    assert config.data.label_column == "label" and not config.data.one_hot


def test_several_classes_of_one_image_are_refused():
    images(RAW / "plants", names(9))
    table = a_column_per_class()
    table["scab"] = [1] * 8 + [0]
    write_csv(RAW / "plants" / "train.csv", **table)
    with pytest.raises(UserError, match="several classes of one image, or none.*sum to 1 … 2"):
        inspect(RAW / "plants")


def test_tables_with_tabs():
    root = kaggle(RAW / "birds")
    for name in ("train", "test"):
        table = read_table(root / f"{name}.csv").assign(said="one, two")
        table.to_csv(root / f"{name}.tsv", index=False, sep="\t")
        (root / f"{name}.csv").unlink()
    config, directory = prepared(root / "train.tsv", out="configs/birds.yaml")
    assert (config.data.train, config.data.test) == ("train.tsv", "test.tsv")
    assert read_table(directory / "folds.csv")["class_id"].tolist() == OF
    sample = read_table(root / "sample_submission.csv")
    sample.to_csv(root / "sample_submission.tsv", index=False, sep="\t")
    (root / "sample_submission.csv").unlink()
    inspect(root, "configs/sample.yaml")
    said = " ".join(Path("configs/sample.yaml").read_text().replace("#", " ").split())
    assert "sample submission in TSV, and submissions are written as CSV" in said


def test_a_parquet_table_is_named_with_the_way_to_a_csv():
    images(RAW / "plants", names(4))
    (RAW / "plants" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"train.parquet, not read: .*read_parquet\('.*to_csv\("):
        inspect(RAW / "plants")


def test_rows_without_an_image_are_named():
    kaggle(RAW / "birds")
    (RAW / "birds" / "train_images" / "00007.jpg").unlink()
    with pytest.raises(UserError, match=r"train.csv: 1 of 20 rows have no file.*00007"):
        inspect(RAW / "birds")


def test_text_of_others_stays_in_its_comment():
    """A column's name with a line break, or one that looks like YAML, is no key of ours."""
    root = kaggle(RAW / "birds")
    table = pd.read_csv(root / "train.csv", dtype=str, keep_default_na=False)
    table.insert(1, "a\nseed: 77\n# b: {", "x")
    table.to_csv(root / "train.csv", index=False)
    assert prepared(root)[0].seed == 0


def test_weights_here_come_with_the_keys_that_they_need(monkeypatch):
    file = "data/weights/m.safetensors"
    same = OnDisk("mobilenetv2_050", file, {"pad_type": "same"}, (0.5,) * 3, (0.5,) * 3, "header")
    others = [OnDisk("resnet18.tv_in1k", True, why="in the cache"), same]
    monkeypatch.setattr(machine, "weights_on_disk", lambda: others)
    config, _ = prepared(kaggle(RAW / "birds"))
    found = config.model
    assert (found.backbone, found.pretrained) == ("mobilenetv2_050", file)
    assert (found.kwargs, found.mean, found.std) == ({"pad_type": "same"}, (0.5,) * 3, (0.5,) * 3)
    assert "resnet18.tv_in1k" in Path("configs/birds.yaml").read_text()


@pytest.mark.parametrize(
    ("images_of", "many", "few", "k"),
    [
        ([500, 300, 90, 60, 40, 19, 5, 5], 100, 20, 5),
        ([30, 20, 10, 8, 4, 3], 10, 8, 3),
        ([10, 10, 4], 4, 4, 4),
        ([7, 7, 7], 7, 7, 5),
        ([9, 1, 1], 1, 1, 3),
    ],
)
def test_bins_and_folds_follow_the_counts(images_of, many, few, k):
    found = {c.key: c.value for c in counts.bins(np.array(images_of))}
    assert (found["bins.many"], found["bins.few"]) == (many, few)
    assert counts.folds(np.array(images_of)).value == k


def test_a_busy_machine_is_named_and_its_slow_steps_do_not_count(monkeypatch):
    root = kaggle(RAW / "birds")
    for load, busy in ((0.0, False), (99.0, True)):
        monkeypatch.setattr(machine.os, "getloadavg", lambda load=load: (load, 9.0, 9.0))
        inspect(root, overwrite=True)
        said = " ".join(Path("configs/birds.yaml").read_text().replace("#", "").split())
        assert ("which is busy (load 99, " in said) == busy
    monkeypatch.undo()
    seconds = iter([0, 0, 50, 50, 60, 60, 60, 64, 64])  # steps of 50 (warm-up), 10 and 4 s
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(seconds))
    model = Model(backbone="cifar_resnet20", pretrained=False, image_size=8)
    assert cost.images_per_second(model, 3, seconds=62) == cost.BATCH[cost.device()] / 4


def test_objects_that_are_cut_out_are_seen_whole_and_photographs_are_not():
    assert prepared(kaggle(RAW / "birds"))[0].model.resize == "short_side"
    root = kaggle(RAW / "stamps")
    for i, path in enumerate(sorted((root / "train_images").iterdir())):
        image = Image.new("RGBA", (90, 60))  # transparent, then a bar from the top to the bottom
        image.paste((20 + 9 * i, 90, 9), (40, 0, 48, 60))
        image.save(path.with_suffix(".png"))
        path.unlink()
    model = prepared(root)[0].model
    assert (model.resize, model.crop_pct) == ("exact", 1.0)
    said = " ".join(Path("configs/stamps.yaml").read_text().replace("#", "").split())
    assert "20 of 24 images opened have edges of one colour" in said and "51% of the area" in said


def test_a_probe_trains_nothing_and_needs_weights(monkeypatch):
    root = kaggle(RAW / "birds")
    config, _ = prepared(root, probe=True)
    assert Path("configs/birds_probe.yaml").is_file()
    assert (config.train.epochs, config.model.head_init.name) == (0, "class_means")
    assert config.head_names == ["stage1", "crt", "cosine", "ncm", "knn"]
    said = " ".join(Path("configs/birds_probe.yaml").read_text().replace("#", "").split())
    assert "epochs of" not in said and "--folds 0" not in said and "a probe: nothing" in said
    monkeypatch.setattr(machine, "TINY", 1000)
    with pytest.raises(UserError, match="leave out --probe"):
        inspect(root, "configs/tiny.yaml", probe=True)


def test_where_training_takes_long_cheaper_ways_are_on_the_screen(monkeypatch):
    monkeypatch.setattr(cost, "device", lambda: "cpu")
    root, probe = kaggle(RAW / "birds"), "--probe --out configs/a_probe.yaml"
    assert "Cheaper" not in inspect(root, "configs/a.yaml")
    monkeypatch.setattr(machine, "images_per_second", lambda *_: 0.01)
    said = inspect(root, "configs/a.yaml", overwrite=True)
    assert "--config configs/a.yaml --folds 0\n" in said and said.endswith(probe)
    monkeypatch.setattr(machine, "TINY", 1000)  # its network has no weights to probe
    assert "--probe" not in inspect(root, "configs/a.yaml", overwrite=True)


@pytest.mark.parametrize("words", [["c.zip"], ["--config", "c.zip"], ["--config", "images"]])
def test_files_where_a_config_stands_are_sent_to_inspect(words, monkeypatch):
    with zipfile.ZipFile("c.zip", "w") as file:
        file.writestr("train.csv", "id,species\n1,a\n")
    Path("images").mkdir()
    monkeypatch.setattr(sys, "argv", ["01_prepare_folds.py", *words])
    main = runpy.run_path(str(ROOT / "01_prepare_folds.py"))["main"]
    with pytest.raises(UserError, match=f"01_prepare_folds.py --inspect {words[-1]}`$"):
        main()
