"""Bursts that were planted are found and never split; what is no burst stays apart."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from src.artifacts.files import read_json, read_table
from src.artifacts.scenes import evidence_in_words, scenes_in_words
from src.config.scenes import Scenes
from src.prepare.describe import describe
from src.prepare.prepare import prepare
from src.prepare.scenes import (
    Looked,
    evidence,
    find_scenes,
    joined,
    links_of,
    neighbours,
    others,
    split_by,
    thumbnail,
)
from tests.prepare_kit import config, photo

CLASSES, FRAMES = 6, 4


def frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shifted, cropped and brighter or darker by up to a tenth."""
    share = rng.uniform(0.9, 1)
    w, h = (round(share * side) for side in image.size)
    x, y = rng.integers(0, image.width - w + 1), rng.integers(0, image.height - h + 1)
    return ImageEnhance.Brightness(image.crop((x, y, x + w, y + h))).enhance(rng.uniform(0.9, 1.1))


def bursts(root: Path, frames: int, scenes: int = 8, names="{:05d}") -> dict[str, str]:
    """Folders of `scenes` scenes a class with `frames` frames each, numbered at random or, with
    `burst_{:05d}`, one after the other; the scene of each image_id."""
    rng, of = np.random.default_rng(0), {}
    numbers = iter(range(10**6) if "burst" in names else rng.permutation(9000) * 7)
    for c in range(CLASSES):
        folder = root / "train" / f"c{c}"
        folder.mkdir(parents=True)
        for scene in range(scenes):
            image = photo(100 * c + scene, (96, 80))
            next(numbers)
            for _ in range(frames):
                name = names.format(next(numbers))
                frame(image, rng).save(folder / f"{name}.jpg", quality=88)
                of[f"c{c}/{name}"] = f"{c} {scene}"
    (root / "test").mkdir()
    photo(9999, (96, 80)).save(root / "test" / "t.jpg")
    return of


def prepared(root: Path, **data) -> tuple[pd.DataFrame, dict]:
    keys = {"source": "folder", "near_duplicates": None, "sample_submission": None} | data
    directory = prepare(config(root, data=keys, model={"pretrained": False}))
    return read_table(directory / "folds.csv", ("fold",)), read_json(directory / "manifest.json")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_frames_of_planted_bursts_share_a_fold_and_scenes_stay_apart():
    of = bursts(Path("raw"), FRAMES)
    images, manifest = prepared("raw")
    scene = images["image_id"].map(of)
    together = images.groupby(scene)["group_id"].nunique()
    assert (together == 1).mean() > 0.95 and images.groupby(scene)["fold"].nunique().max() <= 2
    assert (images.groupby("group_id")["image_id"].agg(lambda i: i.map(of).nunique()) == 1).all()
    seen = manifest["scenes"]
    assert seen["strong"] and seen["mates"] > 0.9 and seen["apart"] > 0.9
    assert abs(seen["scenes"] - CLASSES * 8) < 4 and seen["largest"] == FRAMES
    assert seen["split_without"] > 0.8  # of 4 frames, some are nearly always elsewhere
    told = describe(Path("runs/raw/folds"))
    assert "each is in one fold" in told and f"{100 * seen['split_without']:.0f} %" in told
    assert set(read_table("runs/raw/folds/scenes.csv")["image_id"]) <= set(of)


def test_images_that_are_no_bursts_keep_their_folds():
    bursts(Path("raw"), 1, scenes=16)
    images, manifest = prepared("raw")
    before, _ = prepared("raw", scenes={"mode": "never"}, name="off")
    assert not manifest["scenes"]["strong"] and manifest["scenes"]["scenes"] == 0
    pd.testing.assert_frame_equal(images.drop(columns="path"), before.drop(columns="path"))
    assert not Path("runs/raw/folds/scenes.csv").exists()
    told = describe(Path("runs/raw/folds"))
    assert "no strong evidence of bursts" in told and "data.scenes.mode=always" in told
    assert "have others" in evidence_in_words(manifest["scenes"]) and "have others" not in told


def looked(y, f, pairs=()) -> Looked:
    y = np.array(y)
    found = Looked(np.arange(len(y)), y, f, np.array(pairs, dtype=int).reshape(-1, 2))
    return Looked(found.rows, y, f, found.pairs, others(found))


def unit(rng, *shape) -> np.ndarray:
    x = rng.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_easy_classes_are_no_scenes():
    """Images of a class are far nearer to each other than to others, but are one heap."""
    rng, y = np.random.default_rng(0), np.repeat(np.arange(8), 40)
    f = unit(rng, 8, 12)[y] + 0.6 * unit(rng, 320, 12)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    seen = evidence(looked(y, f), np.arange(320), 0.4)
    assert seen["mates"] > 0.2 and not seen["strong"]


def test_links_are_those_of_the_slow_way():
    rng, y = np.random.default_rng(1), np.repeat(np.arange(5), 12)
    f = unit(rng, 20, 6)[np.arange(60) // 3] + 0.15 * unit(rng, 60, 6)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    s, other = f @ f.T, y[:, None] != y
    o = np.array([1 - s[i, other[i]].max() for i in range(60)])
    expected = [
        [i, j] for i in range(60) for j in range(i + 1, 60)
        if not other[i, j] and 1 - s[i, j] <= 0.4 * min(o[i], o[j])
    ]  # fmt: skip
    found = looked(y, f)
    assert np.allclose(found.other, o, atol=1e-6) and len(expected) > 20
    assert sorted(links_of(found, 0.4, False).tolist()) == expected


def test_neighbours_by_number_and_by_time():
    paths = ["a/x_009.jpg", "a/x_010.jpg", "a/x_012.jpg", "a/y_011.jpg", "b/x_011.jpg", "a/q.jpg"]
    times = np.array([np.nan, np.nan, 100, 130, 131, 500])
    pairs = neighbours(paths, np.array([0, 0, 0, 0, 1, 0]), times)
    assert pairs.tolist() == [[0, 1], [2, 3]]  # row 4 is of another class


def test_order_is_evidence_only_where_neighbours_are_alike():
    rng, y = np.random.default_rng(2), np.repeat(np.arange(6), 30)
    pairs = [(i, i + 1) for i in range(0, 180, 3)] + [(i + 1, i + 2) for i in range(0, 180, 3)]
    loose = unit(rng, 60, 40)[np.arange(180) // 3] + 0.9 * unit(rng, 180, 40)
    loose /= np.linalg.norm(loose, axis=1, keepdims=True)
    seen = evidence(looked(y, loose, pairs), np.arange(180), 0.4)
    assert seen["ordered"] and seen["strong"] and seen["mates"] < 0.2
    with_order = links_of(looked(y, loose, pairs), 0.4, True)
    assert len(with_order) > len(links_of(looked(y, loose, pairs), 0.4, False)) + 50
    noise = evidence(looked(y, unit(rng, 180, 40), pairs), np.arange(180), 0.4)
    assert not noise["ordered"] and noise["neighbours"] == 120


def test_times_of_exif_are_read(tmp_path):
    image, exif = photo(1, (96, 80)), Image.Exif()
    exif.get_ifd(0x8769)[36867] = "2021:05:03 10:00:07"
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.jpg")
    first, plain = (thumbnail(str(tmp_path / n), str(tmp_path / n)) for n in ("a.jpg", "b.jpg"))
    copied = thumbnail(str(tmp_path / "b.jpg"), str(tmp_path / "a.jpg"))
    assert copied[1] == first[1] > 1.6e9 and np.isnan(plain[1])
    assert first[0].shape == (192,) and abs(first[0].mean()) < 1e-3


def test_groups_and_scenes_hang_together():
    groups = np.array(["a", "b", "b", "d", "e"])
    assert joined(groups, np.array([7, 7, 1, 2, 2]), np.array(list("abcde"))).tolist() == list(
        "aaadd"
    )
    assert split_by(np.array([0, 1, 1, -1, 0]), np.array([5, 5, 6, 7, 7])) == 3 / 4


def test_small_images_and_single_classes_are_not_looked_at():
    table = pd.DataFrame({"image_id": list("abcd"), "path": "none", "source": "none"})
    table = table.assign(class_id=list("1122"), group_id=list("abcd"), width=32, height=32)
    found = find_scenes(table, Scenes(), None)
    assert found.facts["looked_at"] == 0 and len(set(found.scene)) == 4
    single = find_scenes(table.assign(width=99, height=99, class_id="1"), Scenes(), None).facts
    assert single["looked_at"] == 0 and "fewer than two classes have two images" in single["why"]
    never = find_scenes(table, Scenes(mode="never"), None).facts
    assert scenes_in_words(never) == "scenes: not looked for"


def test_a_network_tells_scenes_and_without_weights_pixels_do(capsys):
    of = bursts(Path("raw"), 3, scenes=4)
    keys = {"scenes": {"features": "network", "mode": "always"}}
    _, manifest = prepared("raw", name="without", **keys)
    assert manifest["scenes"]["features"] == "pixels"
    assert "model.pretrained is false" in capsys.readouterr().out
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from src.networks.cifar_resnet import CifarResNet

    torch.manual_seed(0)
    save_file(CifarResNet(20).state_dict(), "weights.safetensors")
    model = {"backbone": "cifar_resnet20", "pretrained": "weights.safetensors", "image_size": 32}
    data = {"source": "folder", "near_duplicates": None, "sample_submission": None, **keys}
    directory = prepare(config("raw", data=data | {"name": "with"}, model=model))
    assert read_json(directory / "manifest.json")["scenes"]["features"] == "network"
    images = read_table(directory / "folds.csv")
    scene = images["image_id"].map(of)
    whole = (images.groupby(scene)["group_id"].nunique() == 1).mean()
    assert whole > 0.4  # the weights are random
    assert (images.groupby("group_id")["image_id"].agg(lambda i: i.map(of).nunique()) == 1).all()
