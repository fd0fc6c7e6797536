"""01 as a whole: what it writes, what it refuses, and what a second run does."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from src import cli
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table
from src.artifacts.work import MANIFEST
from src.config.read import load_config
from src.errors import UserError
from src.prepare import prepare as module
from src.prepare.describe import describe
from src.prepare.prepare import prepare
from tests.prepare_kit import config, folder_source, photo, write_csv

REPOSITORY = Path(__file__).parents[1]
COUNTS = {"00123_wren": 9, "1e5_owl": 6, "NA_gull": 3, "7_rare": 1}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(module, "draw_figures", lambda *args: [])


@pytest.fixture
def root():
    return folder_source(Path("raw/birds"), COUNTS)


def test_the_tables_hold_together(root, capsys):
    write_csv(root / "sample_submission.csv", Id=["t2", "t0", "t3", "t1"], Class=["7"] * 4)
    write_csv(root / "solution.csv", Id=["t0"], Class=["7"], Usage=["Public"])
    directory = prepare(config(root))
    assert directory == Path("runs/birds/folds")
    dataset = load_dataset("birds")
    assert dataset.classes["class_id"].tolist() == ["7", "00123", "1e5", "NA"]
    assert dataset.classes["count"].tolist() == [1, 9, 6, 3]
    assert dataset.test["image_id"].tolist() == ["t2", "t0", "t3", "t1"]
    assert dataset.folds == [0, 1, 2]
    rare = dataset.images.set_index("image_id").loc["7_rare/a000"]
    assert (rare["fold"], rare["class_id"], rare["path"]) == (
        -1,
        "7",
        "raw/birds/train/7_rare/a000.jpg",
    )
    assert (rare["width"], rare["height"]) == (64, 48)
    manifest = read_json(directory / MANIFEST)
    why = "every cell of 'Class' is one class id"
    expected = {"format": "label", "id_column": "Id", "label_column": "Class", "why": why}
    assert manifest["submission"] == expected
    assert f"submission, label: {why}" in describe(directory)
    assert manifest["solution"] == "raw/birds/solution.csv"
    assert {"folds.csv", "figures/class_distribution.png", "figures/bins.png"} <= set(
        manifest["outputs"]
    )
    assert not (directory / "scan").exists()
    assert "always train" in describe(directory) and "'7'" in describe(directory)


def test_planted_leaks_stay_in_one_fold(root, no_figures):
    train = root / "train"
    first = train / "00123_wren" / "a000.jpg"
    shutil.copy(first, train / "00123_wren" / "zz_same_photo.jpg")
    shutil.copy(first, train / "1e5_owl" / "other_label.jpg")
    Image.open(first).resize((96, 72)).save(train / "00123_wren" / "larger.png")
    Image.open(first).save(train / "NA_gull" / "encoded_again.jpg", quality=40)
    shutil.copy(train / "NA_gull" / "a001.jpg", root / "test" / "leak.jpg")
    for seed in range(4):
        cfg = config(root, folds={"seed": seed}, data={"name": f"seed{seed}"})
        directory = prepare(cfg)
        images = load_dataset(f"seed{seed}").images.set_index("image_id")
        leak = ["zz_same_photo", "larger", "a000"]
        leak = [f"00123_wren/{name}" for name in leak]
        leak += ["1e5_owl/other_label", "NA_gull/encoded_again"]
        assert images.loc[leak, "fold"].nunique() == 1
        assert set(images.loc[leak, "group_id"]) == {"00123_wren/a000"}
        assert images["group_id"].nunique() == len(images) - 4
    pairs = read_table(directory / "duplicates.csv")
    conflicts = pairs[pairs["conflict"] == "yes"]
    assert ("1e5_owl/other_label") in set(conflicts["image_id_b"])
    across = pairs[pairs["split_a"] != pairs["split_b"]]
    assert across[["image_id_a", "image_id_b"]].values.tolist() == [["NA_gull/a001", "leak"]]
    text = describe(directory)
    assert "one in train, one in test, nothing to do: 1: " in text
    assert "two different labels" in text and "lower data.near_duplicates" in text


def test_duplicate_pairs_are_drawn(root):
    shutil.copy(root / "train/1e5_owl/a000.jpg", root / "train/NA_gull/copy_$1.jpg")
    assert (prepare(config(root)) / "figures" / "duplicates.png").stat().st_size > 10_000


def test_row_order_changes_no_byte(no_figures, tmp_path):
    root = Path("raw/table")
    (root / "photos").mkdir(parents=True)
    for i in range(30):
        photo(i).save(root / "photos" / f"{i}.jpg")
    keys = {"source": "csv", "train": "train.csv", "test": None, "suffix": ".jpg"}
    keys |= {"train_images": "photos", "group_column": "who"}
    found = []
    for step in (1, 7, 29):
        order = [i * step % 30 for i in range(30)]
        write_csv(
            root / "train.csv",
            image_id=order,
            class_id=[f"c{i % 4}" for i in order],
            who=[f"w{i // 3}" if i < 9 else "" for i in order],
        )
        directory = prepare(config(root, data=keys), overwrite=True)
        found.append([(directory / f).read_bytes() for f in ("folds.csv", "classes.csv")])
        images = load_dataset("table").images.set_index("image_id")
        assert images.loc[["0", "1", "2"], "fold"].nunique() == 1
    assert found[0] == found[1] == found[2]


def spoil(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_broken_images_stop_the_run_or_are_left_out(root, no_figures, capsys):
    wren = root / "train" / "00123_wren"
    spoil(wren / "a000.jpg", b"")
    spoil(wren / "a001.jpg", b"hello, I am text")
    photo(3, (300, 300)).save(wren / "a002.jpg")
    spoil(wren / "a002.jpg", (wren / "a002.jpg").read_bytes()[:-3000])
    with pytest.raises(UserError) as error:
        prepare(config(root))
    text = str(error.value)
    assert "3 images cannot be read" in text and "data.bad_images=skip" in text
    assert "a000.jpg: empty file, 0 bytes" in text
    assert "a001.jpg: not an image, it begins with b'hello, I am " in text
    assert "a002.jpg: OSError: image file is truncated" in text
    directory = prepare(config(root, data={"bad_images": "skip"}))
    assert "left out 3 train images" in capsys.readouterr().out
    listed = read_table(directory / "bad_images.csv")
    assert listed["image_id"].tolist() == [f"00123_wren/a00{i}" for i in range(3)]
    dataset = load_dataset("birds")
    assert len(dataset.images) == 16 and dataset.classes["count"].tolist() == [1, 6, 6, 3]


def test_links_that_lead_nowhere_and_pipes_are_broken_images(root, no_figures, capsys):
    folder = root / "train" / "00123_wren"
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "lost.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")  # reading it would wait for ever
    with pytest.raises(UserError, match="3 images cannot be read") as caught:
        prepare(config(root))
    text = str(caught.value)
    assert "self.jpg: a link that leads nowhere (Too many levels of symbolic links)" in text
    assert "lost.jpg: a link that leads nowhere (No such file" in text
    assert "pipe.jpg: not a file but a pipe" in text
    prepare(config(root, data={"bad_images": "skip"}))
    assert "left out 3 train images" in capsys.readouterr().out


def test_a_replaced_image_is_read_again(root, no_figures, capsys):
    path = root / "train" / "00123_wren" / "a000.jpg"
    spoil(path, b"")
    with pytest.raises(UserError, match="1 images cannot be read"):
        prepare(config(root))
    photo(77).save(path)
    prepare(config(root))
    assert "22 images were read before, 1 are left" in capsys.readouterr().out
    assert not Path("runs/birds/folds/bad_images.csv").exists()


def test_a_broken_test_image_is_never_skipped(root, no_figures):
    spoil(root / "test" / "t1.jpg", b"")
    with pytest.raises(UserError, match="test images. The submission needs every one"):
        prepare(config(root, data={"bad_images": "skip"}))


def test_a_class_without_readable_image_is_named(root, no_figures):
    spoil(root / "train" / "7_rare" / "a000.jpg", b"")
    with pytest.raises(UserError, match="classes '7' have no readable image left"):
        prepare(config(root, data={"bad_images": "skip"}))


def test_the_same_command_twice_skips(root, no_figures, capsys):
    directory = prepare(config(root))
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
    prepare(config(root))
    assert "finished already, skipped" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in directory.rglob("*")}


def test_another_config_stops_and_names_the_keys(root, no_figures):
    prepare(config(root))
    other = config(root, folds={"k": 2}, bins={"few": 3})
    with pytest.raises(UserError, match=r"bins.few: 20 there, 3 now\n  folds.k: 3 there, 2 now"):
        prepare(other)
    prepare(config(root, data={"workers": 2}))  # speed alone is no difference
    prepare(other, overwrite=True)
    assert load_dataset("birds").folds == [0, 1]


def test_new_images_are_noticed(root, no_figures):
    prepare(config(root))
    photo(99).save(root / "train" / "1e5_owl" / "new.jpg")
    with pytest.raises(UserError, match="made from other images.*--overwrite"):
        prepare(config(root))
    prepare(config(root), overwrite=True)
    assert len(load_dataset("birds").images) == 20


def test_the_resized_copy_is_what_later_stages_open(root, no_figures):
    prepare(config(root, data={"resize": 32}))
    for path in load_dataset("birds").images["path"]:
        with Image.open(path) as image:
            assert image.size == (43, 32) and path.startswith("runs/birds/folds/images/")
    images = prepare(config(root, data={"resize": 24}), overwrite=True) / "images"
    assert [p.name for p in images.iterdir()] == ["short24_q92"]
    assert prepare(config(root, data={"resize": 200}), overwrite=True)
    assert load_dataset("birds").images["path"].str.startswith("raw/birds/train/").all()


def test_an_overwrite_that_fails_loses_nothing_and_mends_a_damaged_copy(root, no_figures):
    directory = prepare(config(root, data={"resize": 32}))
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    copy = Path(load_dataset("birds").images["path"][0])
    copy.write_bytes(before[copy][:200])
    photo(99).save(root / "train" / "1e5_owl" / "new.jpg")
    (root / "train" / "1e5_owl" / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 images cannot be read"):
        prepare(config(root, data={"resize": 32}), overwrite=True)
    now = {p: p.read_bytes() for p in before}
    assert now == before and len(load_dataset("birds").images) == 19
    (root / "train" / "1e5_owl" / "bad.jpg").unlink()
    prepare(config(root, data={"resize": 32}), overwrite=True)
    assert len(load_dataset("birds").images) == 20 and not list(directory.glob("bad_images.csv"))


def test_an_artificial_tail_is_cut_before_anything_else(no_figures):
    root = folder_source(Path("raw/even"), {"1_a": 12, "2_b": 12, "3_c": 12})
    prepare(config(root, longtail={"profile": "exp", "ratio": 4}))
    assert load_dataset("even").classes["count"].tolist() == [12, 6, 3]


SCRIPT = [sys.executable, str(REPOSITORY / "01_prepare_folds.py"), "--config", "large.yaml"]


def test_killed_and_started_again_gives_the_same_bytes(tmp_path):
    root = folder_source(Path("raw/large"), {"1_a": 150, "2_b": 120, "3_c": 60}, test=100)
    for i, path in enumerate(sorted(root.rglob("*.jpg"))):
        with Image.open(path) as image:
            image.resize((480, 360)).save(path, quality=70 + i % 20)
    settings = "root: raw/large, workers: 2, resize: 64"
    Path("large.yaml").write_text(f"data: {{{settings}, name: killed}}\n")
    folds = Path("runs/killed/folds")
    process = subprocess.Popen(SCRIPT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 60
    while not list(folds.glob("scan/part-*.csv")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folds / ".folds.csv.1.tmp").write_text("half a ta")  # what a kill in a write leaves behind
    assert not (folds / MANIFEST).exists()
    again = subprocess.run(SCRIPT, check=True, capture_output=True, text=True).stdout
    assert "256 images were read before" in again
    Path("large.yaml").write_text(f"data: {{{settings}, name: whole}}\n")
    subprocess.run(SCRIPT, check=True, capture_output=True)
    whole = Path("runs/whole/folds")
    names = sorted(str(p.relative_to(whole)) for p in whole.rglob("*.*") if p.name != MANIFEST)
    killed = sorted(str(p.relative_to(folds)) for p in folds.rglob("*.*") if p.name != MANIFEST)
    assert killed == names and len(names) > 330
    for name in names:
        expected = (whole / name).read_bytes().replace(b"runs/whole", b"runs/killed")
        assert (folds / name).read_bytes() == expected


def test_errors_of_the_script_are_words_not_tracebacks(tmp_path):
    Path("large.yaml").write_text("data: {root: raw/nowhere}\n")
    done = subprocess.run(SCRIPT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "raw/nowhere/train: no such directory" in done.stderr


def test_what_may_not_be_read_and_odd_arguments_are_words_too(monkeypatch, capsys):
    def denied():
        raise PermissionError(13, "Permission denied", "raw/birds/train")

    for arguments, main, says in (
        (["01.py"], denied, "raw/birds/train: Permission denied; expected"),
        (["01.py", "--config", "caf\udce9.yaml"], print, "'caf\\udce9.yaml': not UTF-8"),
    ):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="2"):
            cli.run(main)
        assert says in capsys.readouterr().err


def test_birds_lt_has_its_bins_and_no_leak(monkeypatch):
    if not (REPOSITORY / "data/raw/birds_lt/train").is_dir():
        pytest.skip("data/raw/birds_lt is not here; it is not part of the repository")
    Path("data").symlink_to(REPOSITORY / "data")
    directory = prepare(load_config(REPOSITORY / "configs/birds_lt.yaml"))
    dataset = load_dataset("birds_lt")
    bins = dataset.classes["bin"].value_counts()
    assert (bins["many"], bins["medium"], bins["few"]) == (20, 37, 43)
    assert len(dataset.test) == 2903 and (dataset.images["fold"] >= 0).all()
    per_class = dataset.images.groupby("label")["fold"].value_counts().unstack(fill_value=0)
    assert (per_class.max(axis=1) - per_class.min(axis=1)).max() <= 1
    assert len(read_table(directory / "duplicates.csv")) == 0
