"""Arrays too large for memory: mapped from an .npz, or filled in a file without a name."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from src.artifacts import mapped
from src.artifacts.files import read_arrays, write_arrays
from src.artifacts.predictions import Predictions, load_predictions, stack
from src.artifacts.space import space
from src.artifacts.work import RUNS
from src.ensemble.choice import choose
from src.ensemble.ensemble import ensemble
from src.ensemble.members import log_probabilities
from src.errors import UserError
from src.fusion.decision import decided
from src.posthoc.calibrate import posthoc
from tests.fabricate import DATASET, config, digits_runs

ARRAYS = {
    "image_id": np.array(["a", "bcd", "é"]),
    "logits": np.arange(12, dtype=np.float32).reshape(3, 4),
    "ö" * 20: np.arange(3, dtype=np.float64)[:, None],
    "odd": np.arange(7, dtype=np.int8),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scale": np.float32(3),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def all_large(monkeypatch):
    monkeypatch.setattr(mapped, "LARGE", 0)


def same(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def is_mapped(array: np.ndarray) -> bool:
    return isinstance(array.base, np.memmap) or type(array.base).__name__ == "mmap"


def test_numpy_reads_what_is_written_and_equal_arrays_are_equal_bytes(tmp_path):
    path = write_arrays(tmp_path / "a.npz", **ARRAYS)
    with np.load(path, allow_pickle=False) as archive:
        same(dict(archive), ARRAYS)
    assert write_arrays(tmp_path / "b.npz", **ARRAYS).read_bytes() == path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_every_array_begins_at_a_multiple_of_64_bytes(tmp_path):
    path = write_arrays(tmp_path / "a.npz", **ARRAYS)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack("<HH", data[info.header_offset + 26 :][:4])
            start = info.header_offset + 30 + name + extra
            assert data[start : start + 6] == b"\x93NUMPY" and start % mapped.ALIGN == 0


def test_large_arrays_are_mapped_and_small_ones_are_read(tmp_path, monkeypatch):
    path = write_arrays(tmp_path / "a.npz", small=np.zeros(9), large=np.arange(1000.0))
    monkeypatch.setattr(mapped, "LARGE", 8 * 1000)
    found = read_arrays(path)
    assert is_mapped(found["large"]) and not is_mapped(found["small"])
    assert found["large"].flags.aligned


def test_mapped_arrays_are_the_same_and_changing_them_changes_no_file(tmp_path, all_large):
    path = write_arrays(tmp_path / "a.npz", **ARRAYS)
    before, found = path.read_bytes(), read_arrays(path)
    same(found, ARRAYS)
    assert {n for n in ARRAYS if is_mapped(found[n])} >= {"logits", "odd", "image_id"}
    found["logits"] += 1
    assert path.read_bytes() == before and read_arrays(path)["logits"][0, 0] == 0


def test_a_file_that_is_written_anew_leaves_the_arrays_of_the_old_one(tmp_path, all_large):
    old = read_arrays(write_arrays(tmp_path / "a.npz", x=np.arange(5.0)))["x"]
    new = read_arrays(write_arrays(tmp_path / "a.npz", x=-np.arange(5.0)))["x"]
    assert old.tolist() == [0, 1, 2, 3, 4] and new.tolist() == [0, -1, -2, -3, -4]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy_and_of_older_versions_are_read(tmp_path, all_large, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    same(found, ARRAYS)
    assert all(array.flags.aligned for array in found.values())


def test_a_changed_byte_is_found_in_mapped_arrays_too(tmp_path, all_large):
    path = write_arrays(tmp_path / "a.npz", x=np.arange(1000.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="CRC-32"):
        read_arrays(path)


@pytest.mark.parametrize("large", [0, mapped.LARGE])
def test_a_header_that_promises_more_or_less_than_there_is(tmp_path, monkeypatch, large):
    monkeypatch.setattr(mapped, "LARGE", large)
    for told in ((5,), (7,)):
        file = io.BytesIO()
        header = {"descr": "<f8", "fortran_order": False, "shape": told}
        np.lib.format.write_array_header_1_0(file, header)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x.npy", file.getvalue() + np.arange(6.0).tobytes())
        with pytest.raises(UserError, match="not a readable .npz"):
            read_arrays(tmp_path / "a.npz")


def test_space_is_a_file_that_nobody_sees(tmp_path, monkeypatch, all_large):
    monkeypatch.chdir(tmp_path)
    assert not is_mapped(space((3, 4)))  # there is no runs/
    RUNS.mkdir()
    found = space((300, 4))
    found[:] = 7
    assert is_mapped(found) and found.dtype == np.float32 and found.sum() == 8400
    assert list(RUNS.iterdir()) == []
    assert space((0, 4)).shape == (0, 4)


def test_folds_are_loaded_and_joined_without_their_logits_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RUNS.mkdir()
    monkeypatch.setattr(mapped, "LARGE", 2**16)
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 2**15)
    n, k, paths = 2000, 1500, []
    z = np.random.default_rng(0).normal(size=(n, k)).astype(np.float32)
    ids, blank = np.array([f"{i:05d}" for i in range(n)]), np.zeros(n, int)
    for fold in range(3):
        rows = slice(fold, None, 3)
        found = Predictions(ids[rows], z[rows], blank[rows], blank[rows] + fold)
        paths.append(found.save(tmp_path / f"{fold}.npz"))
    tracemalloc.start()
    whole = stack([load_predictions(path, k) for path in paths])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(whole.logits, z)
    assert whole.fold[:4].tolist() == [0, 1, 2, 0] and is_mapped(whole.logits)
    assert peak < 0.2 * n * k * 4


def test_small_arrays_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RUNS.mkdir()
    assert not is_mapped(space((300, 4)))


def test_without_room_on_the_disk_it_is_in_memory(tmp_path, monkeypatch, all_large):
    monkeypatch.chdir(tmp_path)
    RUNS.mkdir()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    found = space((300, 4))
    found[:] = 7
    assert not is_mapped(found) and list(RUNS.iterdir()) == []


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_04_and_06_make_the_same_with_arrays_on_the_disk(tmp_path, monkeypatch, metric):
    made = []
    for name, large in (("memory", mapped.LARGE), ("disk", 0)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr(mapped, "LARGE", large)
        digits_runs(one=0.0, two=0.5)
        settings = config(metric=metric, ensemble={"members": ["stage1", "crt"]})
        posthoc(settings, "one")
        ensemble([settings] * 2, ["one", "two"])
        home = RUNS / DATASET
        files = [home / "one/posthoc" / n for n in ("oof.npz", "posthoc.json", "table.csv")]
        files += [home / "submissions" / f"one+two.{kind}" for kind in ("csv", "npz")]
        made.append([path.read_bytes() for path in files])
    assert made[0] == made[1]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_members_and_their_ensemble_are_on_the_disk(tmp_path, monkeypatch, metric):
    """What 06 does with them takes a chunk at a time."""
    monkeypatch.chdir(tmp_path)
    RUNS.mkdir()
    monkeypatch.setattr(mapped, "LARGE", 2**16)
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 2**15)
    n, k = 4000, 500
    rng = np.random.default_rng(0)
    labels, fold = rng.integers(k, size=n), np.arange(n) % 3
    logits = [space((n, k)) for _ in "ab"]
    for z in logits:
        z[:] = rng.normal(size=(n, k), scale=0.8)
        z[np.arange(n), labels] += 1.5
    settings = config(metric=metric)
    tracemalloc.start()
    members = [log_probabilities(z) for z in logits]
    choice = choose(members, labels, fold, metric, settings.ensemble.combiner, settings.judge)
    oof, test = choice.cross_fitted(members, fold), choice.combine(members)
    found = decided(settings, lambda: oof, labels, fold)
    shown = found.apply(test), found.cross_fitted(oof, fold)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({a.shape for a in (oof, test, *shown)}) == 1
    assert bool(found.rule) == (metric == "macro_f1")
    assert peak < 0.4 * n * k * 4
