"""Damaged, odd and foreign artifacts: either they are read, or a sentence names the file."""

import json
import re
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch
from safetensors.torch import save_file

from src.artifacts.dataset import load_dataset, parse_fold
from src.artifacts.files import read_arrays, read_json, read_table, write_arrays, write_json
from src.artifacts.heads import load_head, save_head
from src.artifacts.predictions import (
    Predictions,
    load_features,
    load_predictions,
    save_features,
)
from src.artifacts.work import Work
from src.config.model import Model
from src.errors import UserError
from src.fusion import check_recipe
from src.fusion.store import load_recipe
from src.networks.batchnorm import load_statistics, save_statistics
from src.networks.build import build_network
from src.networks.weights import load_network, load_pretrained, save_network
from src.search.winner import read_best
from tests.fabricate import seal, some_classes

SMALL = Model(backbone="cifar_resnet20", pretrained=False, image_size=16)
RNG = np.random.default_rng(0)


def damages(content: bytes, head: int, count: int = 60):
    """Truncations and flips of a byte, most of them in the first `head` bytes or the last ones,
    where formats keep what they are; the data between them has a sample."""
    size = len(content)
    rng = np.random.default_rng(0)
    ends = [0, 1, 3, 8, size - 1, size - 30, *rng.integers(0, size, count // 3)]
    yield from (content[: int(end)] for end in ends)
    near = rng.integers(0, min(head, size), count)
    far = size - 1 - rng.integers(0, min(400, size), count)
    for place in [*near, *far, *rng.integers(0, size, count // 2)]:
        flipped = bytearray(content)
        flipped[int(place)] ^= int(rng.integers(1, 256))
        yield bytes(flipped)


def never_a_traceback(path, read, head: int = 300, count: int = 60) -> int:
    """`read(path)` on many damaged versions of a file; how many of them it refused."""
    content, refused = path.read_bytes(), 0
    for damaged in damages(content, head, count):
        path.write_bytes(damaged)
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert path.name in str(error)
    path.write_bytes(content)
    read(path)
    return refused


def predictions(count: int = 40) -> Predictions:
    rows = np.arange(count)
    logits, features = RNG.normal(size=(count, 5)), RNG.normal(size=(count, 3))
    return Predictions(np.array([f"im{i:03d}" for i in rows]), logits, rows % 5, rows % 2, features)


def test_a_damaged_npz_is_a_sentence(tmp_path):
    path = predictions().save(tmp_path / "oof.npz")
    refused = never_a_traceback(path, lambda p: load_predictions(p, 5), 400, 90)
    assert refused > 120
    path = save_features(tmp_path / "plain.npz", np.array(["a", "b"]), np.ones((2, 3)))
    assert never_a_traceback(path, load_features) > 80


def test_what_numpy_and_zipfile_raise_for_odd_archives_is_a_sentence(tmp_path):
    path = tmp_path / "x.npz"
    odd = {
        "absurd": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': "
        + b"(9999999999999, 99), }".ljust(69) + b"\n",
        "unfinished": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': (".ljust(127)
        + b"\n",
        "empty": b"",
        "text": b"hello",
    }  # fmt: skip
    for name, content in odd.items():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("logits.npy", content)
        with pytest.raises(UserError, match="x.npz: not a readable .npz"):
            read_arrays(path)
            pytest.fail(name)
    np.save(tmp_path / "y.npy", np.ones(3))
    with pytest.raises(UserError, match="y.npy: not a readable .npz"):
        read_arrays(tmp_path / "y.npy")
    with pytest.raises(UserError, match="not a readable .npz"):
        read_arrays(tmp_path)


def test_a_header_that_says_less_than_there_is_is_noticed(tmp_path):
    """Its checksum would never be compared: numpy stops before the end."""
    path = write_arrays(tmp_path / "x.npz", a=np.arange(100000, dtype=np.float32))
    content = path.read_bytes()
    assert content.count(b"(100000,), }") == 1
    path.write_bytes(content.replace(b"(100000,), }", b"(100,), }   "))
    with pytest.raises(UserError, match="more data than its header says"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("image_id", np.arange(4), "image_id is int64"),
        ("image_id", np.array(["a", "b"]), "N = 2 ids"),
        ("image_id", np.array("a"), "image_id is <U1 []"),
        ("logits", np.full((4, 3), "x"), "logits is <U1"),
        ("logits", np.ones((4, 3), complex), "logits is complex128"),
        ("logits", np.ones(12), "expected floats [N, K]"),
        ("label", np.ones(4), "label is float64"),
        ("fold", np.ones((4, 1), int), "fold is int64 [4, 1]"),
        ("features", np.ones((3, 2)), "features is float64 [3, 2]"),
        ("features", np.full((4, 2), "x"), "expected floats [N, D]"),
    ],
)
def test_arrays_of_another_kind_are_named(tmp_path, name, array, says):
    arrays = {
        "image_id": np.array(["a", "b", "c", "d"]), "logits": np.ones((4, 3)),
        "label": np.zeros(4, int), "fold": np.zeros(4, int), "features": np.ones((4, 2)),
    }  # fmt: skip
    path = write_arrays(tmp_path / "oof.npz", **arrays)
    assert load_predictions(path, 3).features.shape == (4, 2)
    write_arrays(path, **arrays | {name: array})
    with pytest.raises(UserError, match=re.escape(says)):
        load_predictions(path, 3)
    if name in ("image_id", "features"):
        with pytest.raises(UserError, match=re.escape(says)):
            load_features(path)


def test_arrays_of_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "oof.npz", image_id=np.array(["a", None], dtype=object))
    with pytest.raises(UserError, match="oof.npz: not a readable .npz file of plain arrays"):
        load_predictions(tmp_path / "oof.npz", 3)


def test_a_damaged_head_is_a_sentence(tmp_path):
    arrays = {"weight": RNG.normal(size=(4, 3)), "bias": np.zeros(4)}
    path = save_head(tmp_path / "head.safetensors", "linear", arrays)
    assert never_a_traceback(path, load_head, 260, 120) > 120


@pytest.mark.parametrize(
    ("about", "change", "says"),
    [
        ("[1]", {}, "should be a mapping, found [1]"),
        ("{", {}, "not a readable safetensors file"),
        ("[" * 100000, {}, "not a readable safetensors file"),
        ('{"kind": ["linear"]}', {}, "not a head: kind ['linear']"),
        ('{"kind": "round"}', {}, "not a head: kind 'round'"),
        ('{"kind": "linear"}', {"scale": np.ones(())}, "with arrays ['bias', 'scale', 'weight']"),
        ('{"kind": "linear"}', {"weight": np.ones(4)}, "weight of this linear head is"),
        ('{"kind": "linear"}', {"bias": np.ones(3, np.float32)}, "bias of this linear head is"),
        ('{"kind": "linear"}', {"bias": np.ones(4, np.int64)}, "is int64 [4]"),
    ],
)
def test_a_head_of_another_shape_is_named(tmp_path, about, change, says):
    arrays = {"weight": np.ones((4, 3), np.float32), "bias": np.zeros(4, np.float32)} | change
    path = tmp_path / "head.safetensors"
    safetensors.numpy.save_file(arrays, path, {"longtail": about})
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        load_head(path)
    assert "head.safetensors" in str(caught.value)


@pytest.fixture
def weights(digits):
    """A network that 02 saved, and its dataset."""
    data = load_dataset("digits")
    network, prep = build_network(SMALL, data.classes_of(data.images))
    path = save_network(digits / "weights.safetensors", network, SMALL, prep, data)
    return path, data


def test_damaged_weights_are_a_sentence(weights):
    path, data = weights
    assert never_a_traceback(path, lambda p: load_network(p, data), 9000, 24) > 15


def rewritten(path, change) -> None:
    """The same tensors with another header; `change` edits it in place or returns a text."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["longtail"])
    text = change(about)
    header["__metadata__"]["longtail"] = text if isinstance(text, str) else json.dumps(about)
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda about: "[1, 2]",
        lambda about: "{'model': 1}",
        lambda about: about.update(model=[]),
        lambda about: about.pop("model") and None,
        lambda about: about.pop("classes_sha256") and None,
        lambda about: about.pop("preprocessing") and None,
        lambda about: about["model"].update(backbone=3),
        lambda about: about["model"].update(backbone="no_such_net"),
        lambda about: about["model"].update(backbone="cifar_resnet32"),
        lambda about: about["model"].update(a_key_of_tomorrow=1),
        lambda about: about["model"].update(network="no_such"),
        lambda about: about["preprocessing"].pop("mean") and None,
        lambda about: about["preprocessing"].update(mean=3),
        lambda about: about["preprocessing"].update(std=[1, "x", 2]),
        lambda about: about["preprocessing"].update(size="large"),
        lambda about: about["preprocessing"].update(interpolation=[]),
        lambda about: about["preprocessing"].update(colour="blue"),
    ],
)
def test_a_header_of_valid_json_that_is_none_of_ours_is_a_sentence(weights, change):
    path, data = weights
    rewritten(path, change)
    with pytest.raises(UserError, match="(?s)weights.safetensors: .*run 02 again"):
        load_network(path, data)


def test_damaged_or_foreign_batch_norm_statistics_are_a_sentence(tmp_path):
    network, _ = build_network(SMALL, some_classes(3))
    path = save_statistics(tmp_path / "batchnorm.safetensors", network)
    refused = never_a_traceback(path, lambda p: load_statistics(p, network), 4000, 60)
    assert refused > 40
    found = {k: v[:1] if v.ndim else v for k, v in safetensors.torch.load_file(path).items()}
    save_file(found, path)  # one value would be copied to all channels without a word
    with pytest.raises(UserError, match="of another network: 'backbone.bn1.running_mean'"):
        load_statistics(path, network)


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    return timm.create_model("test_resnet", num_classes=0).state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_other_peoples_damaged_weights_are_a_sentence(tmp_path, resnet, suffix):
    path = tmp_path / f"theirs.{suffix}"
    save_file(resnet, path) if suffix == "safetensors" else torch.save(resnet, path)
    model = Model(backbone="test_resnet", pretrained=str(path), image_size=32)
    network, _ = build_network(model, some_classes(3))

    def read(path):
        load_pretrained(network, model, "digits", "fold0")

    assert never_a_traceback(path, read, 6000, 24) > 12


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {}, 3, None, {1: torch.ones(1)}, {"model": 3}, {"state_dict": []}]
)
def test_other_peoples_files_without_tensors_by_name_are_a_sentence(tmp_path, content):
    path = tmp_path / "theirs.pth"
    torch.save(content, path)
    model = Model(backbone="test_resnet", pretrained=str(path), image_size=32)
    with pytest.raises(UserError, match="theirs.pth"):
        load_pretrained(build_network(model, some_classes(3))[0], model, "digits", "fold0")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[1, 2]", "expected it to hold a mapping, found [1, 2]"),
        (b"3", "found 3"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{\x00", "not UTF-8"),
        (b'{"inputs": {"a": "\xe9"}}', "not UTF-8"),
        (b"[" * 200000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b'{"outputs": {}}', "expected 'inputs' to be a mapping, found nothing"),
        (b'{"inputs": [], "steps": []}', "expected 'inputs' to be a mapping, found []"),
        (b'{"inputs": {}, "steps": 1}', "expected 'steps/*/step' to be text, found 1"),
        (b'{"inputs": {}, "steps": [{"step": 1}]}', "expected 'steps/*/step' to be text, found 1"),
        (b'{"inputs": {}, "steps": [1]}', "found 1"),
        (b'{"inputs": {}, "steps": [], "n": true}', "'n' to be a whole number, found True"),
    ],
)
def test_json_of_another_kind_is_named(tmp_path, content, says):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        read_json(path, {"inputs": dict, "steps/*/step": str, "n": int})
    assert "manifest.json" in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path)


def test_json_with_all_that_is_needed_is_read(tmp_path):
    tree = {"inputs": {}, "steps": [{"step": "x"}], "n": 3, "é": None}
    path = write_json(tmp_path / "m.json", tree)
    assert read_json(path, {"inputs": dict, "steps/*/step": str, "n": int}) == tree


@pytest.mark.parametrize("lost", ["settings", "inputs", "outputs", "metrics"])
def test_a_manifest_that_lacks_a_part_is_named(tmp_path, lost):
    work = Work(tmp_path / "out", {"a": 1}, {})
    write_json(tmp_path / "out" / "a.txt", {})
    work.finish(["a.txt"])
    manifest = work.manifest()
    del manifest[lost]
    write_json(tmp_path / "out" / "manifest.json", manifest)
    with pytest.raises(UserError, match=f"manifest.json: expected '{lost}' to be a mapping"):
        work.finished()


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({}, "expected 'head' to be text, found nothing"),
        ({"head": "crt", "steps": [{"step": "tau_norm"}]}, "'steps/*/params' to be a mapping"),
        ({"head": "crt", "steps": [{"step": "magic", "params": {}}]}, "no steps ['magic']"),
        ({"head": "lws", "steps": []}, "needs the heads ['lws'], there are ['crt', 'stage1']"),
    ],
)
def test_a_recipe_that_cannot_be_applied_is_named(tmp_path, recipe, says):
    path = write_json(tmp_path / "posthoc.json", recipe)
    with pytest.raises(UserError, match=re.escape(says)):
        check_recipe(load_recipe(tmp_path), ("stage1", "crt"), path)


def test_a_winner_that_lacks_its_values_is_named(tmp_path):
    path = write_json(tmp_path / "best.json", {"values": 3})
    with pytest.raises(UserError, match="best.json: expected 'values' to be a mapping, found 3"):
        read_best(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id,label\na,1,\nb,2,\n", "more cells than the header"),
        (b"id,label\n\xff,1\n", "not a readable CSV table in UTF-8"),
        (b"id,label\na,1,2,3\n\"", "not a readable CSV"),
        (b"id,label\na,1\nb,2,3\n", "not a readable CSV"),
    ],
)  # fmt: skip
def test_odd_tables_are_named(tmp_path, content, says):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(says)):
        read_table(path)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("folds.csv", "fold,", "flod,", "column 'fold' is missing"),
        ("folds.csv", "path,", "paht,", "column 'path' is missing"),
        ("classes.csv", ",bin", ",bim", "column 'bin' is missing"),
        ("test.csv", "image_id", "image", "column 'image_id' is missing"),
        ("classes.csv", "\n3,", "\n3.5,", "whole numbers"),
        ("classes.csv", "\n3,", "\n,", "whole numbers"),
    ],
)
def test_tables_of_01_that_were_edited_are_named(digits, file, old, new, says):
    path = digits / "runs" / "digits" / "folds" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    seal(path.parent)  # the edit is meant
    with pytest.raises(UserError, match=f"{file}: .*{says}"):
        load_dataset("digits")


@pytest.mark.parametrize("text", ["²", "٠", "00", "-1", "9" * 5000, "3"])
def test_folds_that_are_no_numbers_of_folds_are_named(digits, text):
    data = load_dataset("digits")
    assert parse_fold("0", data) == 0 and parse_fold("full", data) is None
    with pytest.raises(UserError, match=r"expected numbers of \[0, 1, 2\] or `full`"):
        parse_fold(text, data)
