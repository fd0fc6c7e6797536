"""Text lists, COCO-style JSON, torchvision's own files, and test folders that carry labels."""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from src.artifacts.files import read_json, read_table
from src.artifacts.work import MANIFEST
from src.config.read import load_config
from src.errors import UserError
from src.prepare import prepare as module
from src.prepare.longtail import tail_counts
from src.prepare.read import read_source
from tests.prepare_kit import config, folder_source, photo, write_csv


def read(root, **data):
    return read_source(config(root, data=data).data)


@pytest.fixture
def no_figures(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "draw_figures", lambda *args: [])


def images(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(root / name, "JPEG")


# ---- text lists, as ImageNet-LT and Places-LT ship them ------------------------------------------

TRAIN = ("train/n01440764/n01440764_190.JPEG", "train/n01440764/b.JPEG", "a/art gallery/0 1.jpg")
VAL = ("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")


@pytest.fixture
def lists(tmp_path):
    root = tmp_path / "imagenet"
    images(root, *TRAIN, *VAL)
    (root / "train.txt").write_text(f"{TRAIN[0]} 0\n{TRAIN[1]}\t0\r\n{TRAIN[2]} 12\n\n")
    (root / "test.txt").write_text(f"{VAL[1]} 12\n{VAL[0]} 0\n")
    return root


def read_lists(root, **data):
    return read(root, source="list", train="train.txt", **{"test": "test.txt"} | data)


def test_lists_are_read_as_they_are_written(lists):
    source = read_lists(lists)
    assert source.train["image_id"].tolist() == sorted(TRAIN)
    assert dict(zip(source.train["image_id"], source.train["class_id"], strict=True)) == {
        TRAIN[0]: "0",
        TRAIN[1]: "0",
        TRAIN[2]: "12",
    }
    assert all(Path(path).is_file() for path in [*source.train["path"], *source.test["path"]])
    assert source.test["image_id"].tolist() == [VAL[1], VAL[0]]
    assert source.truth.values.tolist() == [[VAL[1], "12"], [VAL[0], "0"]]
    assert set(source.tables) == {"train", "test"}


def test_a_test_list_may_have_no_labels(lists):
    (lists / "test.txt").write_text("\n".join(VAL))
    source = read_lists(lists)
    assert source.test["image_id"].tolist() == list(VAL) and source.truth is None
    assert read_lists(lists, test=None).test.empty


def test_lists_may_sit_in_another_directory_than_the_images(lists):
    shutil.move(lists / "a", lists / "pictures" / "a")
    (lists / "train.txt").write_text(f"{TRAIN[2]} x\n")
    source = read_lists(lists, train_images="pictures", test=None)
    assert source.train["path"][0].endswith("pictures/a/art gallery/0 1.jpg")


@pytest.mark.parametrize(
    "line, message",
    [
        (TRAIN[0], r"train.txt: 1 lines have no label: 5. Expected `path label` per line"),
        ("what is this 3", r"train.txt: 1 lines name no image: 'line 5: what is this 3'"),
        (f"{TRAIN[0]} 0", r"train.txt: 1 image ids occur more than once"),
        ("train/none.JPEG 0", r"train.txt: 1 of 4 rows have no file: .*none.JPEG'.*train_images"),
    ],
)
def test_list_errors_say_what_to_do(lists, line, message):
    with open(lists / "train.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        read_lists(lists)


def test_a_missing_list_and_unknown_test_classes_are_named(lists):
    with pytest.raises(UserError, match="no such list; did you mean 'test.txt'.*data.test=null"):
        read_lists(lists, test="tset.txt")
    (lists / "test.txt").write_text(f"{VAL[0]} 99\n")
    with pytest.raises(UserError, match="labelled test images .*not among the train classes: '99'"):
        read_lists(lists)
    assert read_lists(lists, solution=None).truth is None


# ---- COCO-style JSON, as iNaturalist ships it ----------------------------------------------------


def coco_tree():
    names = [f"train_val2018/Aves/{c}/{i}.jpg" for i, c in enumerate((2820, 2820, 17))]
    return {
        "info": {"year": 2018},
        "images": [
            {"id": 100 + i, "file_name": name, "width": 64, "height": 48, "license": 0}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": 9 - i, "image_id": 100 + i, "category_id": c}
            for i, c in reversed(list(enumerate((2820, 2820, 17))))
        ],
        "categories": [
            {"id": 17, "name": "Turdus merula", "supercategory": "Aves"},
            {"id": 2820, "name": "Motacilla alba", "supercategory": "Aves"},
        ],
    }


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "inat"
    images(root, *(image["file_name"] for image in coco_tree()["images"]), "test2018/a b.jpg")
    (root / "train.json").write_text(json.dumps(coco_tree()))
    test = {"images": [{"id": 7, "file_name": "test2018/a b.jpg"}]}
    (root / "test.json").write_text(json.dumps(test))
    return root


def read_coco(root, **data):
    return read(root, source="coco", train="train.json", **{"test": "test.json"} | data)


def test_json_ids_and_names_are_kept(coco):
    source = read_coco(coco)
    assert source.train["image_id"].tolist() == ["100", "101", "102"]
    assert source.train["class_id"].tolist() == ["2820", "2820", "17"]
    assert source.train["class_name"].tolist()[1:] == ["Motacilla alba", "Turdus merula"]
    assert source.train["path"][2].endswith("inat/train_val2018/Aves/17/2.jpg")
    assert source.test["image_id"].tolist() == ["7"] and source.truth is None


def test_an_annotated_test_json_is_a_solution_and_a_sample_fixes_its_order(coco):
    source = read_coco(coco, test="train.json")
    assert source.truth.values.tolist() == [["100", "2820"], ["101", "2820"], ["102", "17"]]
    write_csv(coco / "sample_submission.csv", id=["102", "100", "101"], predicted=["17"] * 3)
    source = read_coco(coco, test="train.json")
    assert source.test["image_id"].tolist() == ["102", "100", "101"]
    assert source.truth.columns.tolist() == ["id", "predicted"]


def no_annotation(tree):
    tree["annotations"].pop()


def two_categories(tree):
    tree["annotations"].append({"image_id": 100, "category_id": 17})


def unknown_category(tree):
    tree["categories"].pop()


def unknown_image(tree):
    tree["annotations"].append({"image_id": 5, "category_id": 17})


def no_file_name(tree):
    del tree["images"][0]["file_name"]


def twice(tree):
    tree["images"].append(tree["images"][0])


def no_images(tree):
    tree["pictures"] = tree.pop("images")


def no_file(tree):
    tree["images"][0]["file_name"] = "train_val2018/Aves/2820/9.jpg"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (no_annotation, r"train.json: 1 of 3 images have no annotation: '100'"),
        (two_categories, r"train.json: image '100' has the categories '2820' and '17'"),
        (unknown_category, r"annotations of categories that are not listed: '2820'"),
        (unknown_image, r"annotations of images that are not listed: '5'"),
        (no_file_name, r"an entry lacks 'file_name'; expected images with id and file_name"),
        (twice, r"train.json: 1 image ids occur more than once: '100'"),
        (no_images, r"'images' is missing, empty or no list; it has \['annotations'"),
        (no_file, r"1 of 3 rows have no file: .*9.jpg'; did you mean '[01].jpg'"),
    ],
)
def test_json_errors_say_what_to_do(coco, spoil, message):
    tree = coco_tree()
    spoil(tree)
    (coco / "train.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        read_coco(coco)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "not valid JSON"),
        (b'{"images": "caf\xe9"}', "not UTF-8"),
        (b"[" * 200000, "not valid JSON"),
        (b'{"images": ' + b"9" * 5000, "not valid JSON"),
        (b"[1, 2]", "no list; it has list"),
        (b'{"images": {"id": 1}, "annotations": [1], "categories": [1]}', "'images' is missing"),
    ],
)
def test_what_is_no_json_of_ours_is_named(coco, content, message):
    (coco / "train.json").write_bytes(content)
    with pytest.raises(UserError, match=f"train.json: .*{message}"):
        read_coco(coco)


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("images", 3),
        ("images", [1]),
        ("images", {"id": 1, "file_name": None}),
        ("images", {"id": 1, "file_name": "\udce9.jpg"}),
        ("images", {"id": "a\nb", "file_name": "x.jpg"}),
        ("annotations", "x"),
        ("annotations", None),
        ("categories", [1]),
        ("categories", "x"),
    ],
)
def test_odd_entries_are_named(coco, part, entry):
    tree = coco_tree()
    tree[part].append(entry)
    (coco / "train.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="train.json: "):
        read_coco(coco)


def test_a_list_in_another_encoding_is_named(lists):
    (lists / "train.txt").write_bytes(b"caf\xe9.jpg 1\n")
    with pytest.raises(
        UserError, match="train.txt: not UTF-8 .* at byte 3.; expected `path label`"
    ):
        read_lists(lists)


# ---- torchvision ---------------------------------------------------------------------------------

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = ["apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bo"]
FORMATS = {  # folder, train, test, meta, key of labels, key of names, names
    "CIFAR10": (
        "cifar-10-batches-py",
        *("data_batch_1", "test_batch", "batches.meta", "labels", "label_names"),
        NAMES,
    ),
    "CIFAR100": (
        "cifar-100-python",
        *("train", "test", "meta", "fine_labels", "fine_label_names"),
        FINE,
    ),
}


def fabricated_cifar(root: Path, monkeypatch, kind: str = "CIFAR10") -> dict[str, np.ndarray]:
    """CIFAR's pickled batches, a few images long. torchvision checks the md5 of its files, so it
    is told those of ours; all else is its own loader. Returns the pixels [N, 32, 32, 3]."""
    folder, train, test, meta, labels_key, names_key, names = FORMATS[kind]
    home = root / "torchvision" / folder
    home.mkdir(parents=True)
    rng, pixels, sums = np.random.default_rng(0), {}, {}
    files = {meta: {names_key: names}}
    for part, name, labels in (("train", train, [3, 0, 9, 3]), ("test", test, [9, 0, 3])):
        flat = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        pixels[part] = flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        files[name] = {"data": flat, labels_key: labels}
    for name, content in files.items():
        (home / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((home / name).read_bytes()).hexdigest()
    cifar = getattr(torchvision.datasets, kind)
    assert (cifar.base_folder, cifar.meta["filename"], cifar.meta["key"]) == (
        folder,
        meta,
        names_key,
    )
    monkeypatch.setattr(cifar, "train_list", [[train, sums[train]]])
    monkeypatch.setattr(cifar, "test_list", [[test, sums[test]]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": sums[meta]})
    return pixels


@pytest.mark.parametrize("kind", FORMATS)
def test_torchvision_files_become_a_folder_source_once(kind, tmp_path, monkeypatch):
    root, names = tmp_path / "cifar", FORMATS[kind][-1]
    pixels = fabricated_cifar(root, monkeypatch, kind)
    source = read(root, source="torchvision", torchvision=kind)
    assert source.train["class_id"].tolist() == ["0", "3", "3", "9"]
    assert source.train["class_name"].tolist() == [names[0], names[3], names[3], names[9]]
    assert source.test["image_id"].tolist() == ["000000", "000001", "000002"]
    truth = read_table(source.solution)
    assert truth["class_id"].tolist() == ["9", "0", "3"]
    first = np.asarray(Image.open(source.train["path"][0]))
    assert np.array_equal(first, pixels["train"][1])  # PNG: not a bit is lost
    assert np.array_equal(np.asarray(Image.open(source.test["path"][2])), pixels["test"][2])
    shutil.rmtree(root / "torchvision")
    assert read(root, source="torchvision", torchvision=kind).train.equals(source.train)
    assert sorted(p.name for p in root.iterdir()) == ["solution.csv", "test", "train"]


def test_missing_or_damaged_torchvision_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot load CIFAR10 from there.*data.download=true"):
        read(tmp_path / "none", source="torchvision")
    assert not (tmp_path / "none").exists()
    fabricated_cifar(tmp_path / "c", monkeypatch)
    path = tmp_path / "c" / "torchvision" / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="torchvision cannot load CIFAR10"):
        read(tmp_path / "c", source="torchvision")
    assert not (tmp_path / "c" / "train").exists()


@pytest.mark.parametrize("name", ["CIFAR100", "SVHN", "Food101", "OxfordIIITPet", "StanfordCars"])
def test_every_name_is_called_as_torchvision_wants_it(tmp_path, name):
    """It gets as far as finding no files: the arguments are right."""
    with pytest.raises(UserError, match=f"cannot load {name}"):
        read(tmp_path / "c", source="torchvision", torchvision=name)


# ---- test folders that carry labels --------------------------------------------------------------


def labelled_test(root: Path) -> Path:
    folder_source(root, {"1_a": 3, "2_b": 3, "3_c": 3}, test=0)
    for i, folder in enumerate(("2_b", "1_a", "2_b")):
        images(root, f"test/{folder}/x.jpg")
        photo(50 + i).save(root / "test" / folder / f"{i}.jpg")
    return root


def test_labels_of_test_folders_become_the_solution(no_figures):
    root = labelled_test(Path("raw/c"))
    directory = module.prepare(config(root))
    truth = read_table(directory / "solution.csv")
    assert truth.values.tolist() == [
        ["1_a/1", "1"],
        ["1_a/x", "1"],
        ["2_b/0", "2"],
        ["2_b/2", "2"],
        ["2_b/x", "2"],
    ]
    manifest = read_json(directory / MANIFEST)
    assert manifest["solution"] == "runs/c/folds/solution.csv"
    assert "solution.csv" in manifest["outputs"]
    assert not (root / "solution.csv").exists()


def test_other_folders_of_test_images_mean_nothing(tmp_path):
    root = labelled_test(tmp_path / "c")
    photo(60).save(root / "test" / "y.jpg")
    assert read(root).truth is None
    (root / "test" / "y.jpg").rename(root / "test" / "1_a" / "y.jpg")
    assert len(read(root).truth) == 6 and read(root, solution=None).truth is None
    write_csv(root / "solution.csv", image_id=["1_a/x"], class_id=["3"])
    assert read(root).truth is None and read(root).solution == root / "solution.csv"


# ---- CIFAR-10-LT ---------------------------------------------------------------------------------


def test_the_cifar_config_asks_for_the_published_counts():
    found = load_config(Path(__file__).parents[1] / "configs" / "cifar10_lt.yaml")
    counts = tail_counts(found.longtail.profile, 5000, 10, found.longtail.ratio)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50] and sum(counts) == 12406
    train = found.train
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (200, 128, 0.1, 2e-4)
    drops = [round(m * train.epochs) for m in train.milestones]
    assert (drops, train.gamma, train.warmup_epochs) == ([160, 180], 0.01, 5)


def test_cifar10_lt_is_cut_as_published(no_figures):
    """On the real images, where they are: no image is opened, only listed and cut."""
    config_path = Path(__file__).parents[1] / "configs" / "cifar10_lt.yaml"
    root = Path(__file__).parents[1] / "data" / "raw" / "cifar10"
    if not (root / "train").is_dir():
        pytest.skip(f"{root} is not unpacked")
    found = load_config(config_path, [f"data.root={root}"])
    source = read_source(found.data)
    assert len(source.test) == 10_000 and len(source.truth) == 10_000
    assert source.truth.values.tolist()[-1][0].startswith("9_truck/")
    class_ids = [str(c) for c in range(10)]
    for profile, ratio, total in (("exp", 100, 12406), ("exp", 50, 13996), ("exp", 10, 20431),
                                  ("step", 100, 25250)):  # fmt: skip
        cut = {"profile": profile, "ratio": ratio}
        kept = module.cut_tail(source.train, class_ids, found.longtail.model_copy(update=cut))
        assert len(kept) == total
