"""Made-up data of every kind: what is bad is said in words, and nothing outside is touched.

hypothesis makes the examples: the same few in every run, thousands with FUZZ=2000 in the
environment, then other ones each time.
"""

import io
import os
import sys
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from src.artifacts.files import read_arrays, read_json, read_table, write_json
from src.artifacts.heads import load_head
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, Work
from src.config.data import Data
from src.config.read import load_config
from src.config.schema import Config
from src.config.submission import Submission
from src.config.tree import dump_config
from src.data.images import load_image
from src.errors import UserError
from src.fusion import check_recipe
from src.fusion.store import load_recipe
from src.prepare.read import read_source
from src.prepare.scan import _scan_one
from src.submission.recognise import read_sample, recognise
from src.training.checkpoint import load_checkpoint
from tests.conftest import ROOT

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

MANY = int(os.environ.get("FUZZ", "0"))


def fuzzed(few: int, **given_):
    """`few` examples, always the same; or as many as FUZZ says."""

    def decorate(test):
        how = settings(
            max_examples=MANY or few, derandomize=not MANY, database=None, deadline=None,
            suppress_health_check=[*HealthCheck], phases=[*Phase] if MANY else [Phase.generate],
        )  # fmt: skip
        return how(given(**given_)(test))

    return decorate


# ---- what a process does -----------------------------------------------------------------------

WATCHED: list[list[tuple]] = []  # the innermost takes what is done now
OF_FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
NEVER = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect"}


def _hook(event: str, args: tuple) -> None:
    if WATCHED and (event in OF_FILES or event in NEVER):
        WATCHED[-1].append((event, args))


sys.addaudithook(_hook)


@contextmanager
def kept_inside(root: Path):
    """Nothing is opened, made or removed outside `root` but what Python itself reads, and nothing
    is executed or unpickled."""
    done: list[tuple] = []
    WATCHED.append(done)
    try:
        yield
    finally:
        WATCHED.pop()
    pythons = tuple(map(os.path.realpath, (sys.prefix, sys.base_prefix, *filter(None, sys.path))))
    for event, args in done:
        assert event not in NEVER, (event, args)
        if not isinstance(args[0], str | bytes | os.PathLike):
            continue  # an open file
        path = os.path.realpath(os.fsdecode(args[0]))
        reads = event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        allowed = path.startswith(os.path.realpath(root)) or path == "/dev/null"
        ours = reads and path.startswith((*pythons, "/proc", "/sys", "/usr", "/etc/localtime"))
        assert allowed or ours, (event, path)


def test_the_watch_sees_what_it_is_to_see(tmp_path):
    with pytest.raises(AssertionError, match="open"), kept_inside(tmp_path / "in"):
        (tmp_path / "out.txt").write_text("x")
    with pytest.raises(AssertionError, match="pickle"), kept_inside(tmp_path):
        torch.save({"a": Path("x")}, tmp_path / "a.pt")
        torch.load(tmp_path / "a.pt", weights_only=False)


def in_words(function, *args, name: str = ""):
    """What it returns, or None after a UserError that holds `name`."""
    try:
        return function(*args)
    except UserError as error:
        assert name in str(error), str(error)
        return None


# ---- configs -----------------------------------------------------------------------------------

ODD = [
    "",
    "\0",
    "é",
    "😀",
    "..",
    "../..",
    "/etc/passwd",
    "<script>",
    "'",
    '"',
    "a\nb",
    "nan",
    "-",
    "~",
]
words = st.sampled_from(ODD) | st.text(max_size=12)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | words
    | st.sampled_from([2**63, -1, 0, 1e308, float("nan"), float("inf")])
)  # fmt: skip
trees = st.recursive(
    leaves, lambda t: st.lists(t, max_size=4) | st.dictionaries(words, t, max_size=4), max_leaves=8
)
FULL = dump_config(Config())


def places(tree, prefix=()):
    """Every place of a tree, as a tuple of keys."""
    yield prefix
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in pairs:
        yield from places(value, (*prefix, key))


def replaced(tree, place, value):
    if not place:
        return value
    new = tree.copy()
    new[place[0]] = replaced(tree[place[0]], place[1:], value)
    return new


PLACES = sorted(places(FULL), key=str)


@fuzzed(50, data=st.data())
def test_any_yaml_is_a_config_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    kind = data.draw(st.sampled_from(["one key", "one key", "two keys", "tree", "text", "bytes"]))
    if kind == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=80)))
    elif kind == "text":
        path.write_text(data.draw(st.text(alphabet="ab:-[]{}&*!|>'\"#%@` \n\t0.1é", max_size=60)))
    else:
        tree = data.draw(trees) if kind == "tree" else FULL
        for _ in range(("one key", "two keys").index(kind) + 1 if "key" in kind else 0):
            tree = replaced(FULL, data.draw(st.sampled_from(PLACES)), data.draw(trees))
        path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    with kept_inside(path.parent):
        in_words(load_config, path, name="")


@fuzzed(60, key=st.sampled_from(PLACES) | st.just(("x",)), text=words, equals=st.booleans())
def test_any_override_is_a_config_or_a_sentence(key, text, equals):
    item = ".".join(map(str, key)) + "=" * equals + text
    in_words(load_config, ROOT / "configs" / "digits.yaml", [item])


# ---- tables and samples ------------------------------------------------------------------------

ids = st.sampled_from(
    ["a", "b", "c.png", "0", "00", "1e5", "NA", "", " ", "../out", "../../out.png", "/etc/passwd",
     "a/../../out", "a\0", "ü", "x" * 255, "=1+1", "a,b", 'q"']
)  # fmt: skip
cells = ids | st.text(max_size=6)
headers = st.sampled_from(["image_id", "class_id", "label", "id", "image_id", "a", "0", ""])


@st.composite
def tables(draw) -> bytes:
    """CSV, mostly; with quotes, another separator, a byte order mark, or broken at some byte."""
    width = draw(st.integers(1, 4))
    names = draw(st.lists(headers | cells, min_size=width, max_size=width))
    if draw(st.booleans()):
        names[:2] = ["image_id", "class_id"][: len(names)]
    rows = draw(st.lists(st.lists(cells, min_size=width - 1, max_size=width + 1), max_size=5))
    quote = draw(st.sampled_from(["minimal", "none"]))

    def cell(text: str) -> str:
        odd = quote == "minimal" and any(c in text for c in ',"\n\r')
        return '"' + text.replace('"', '""') + '"' if odd else text

    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = [draw(st.sampled_from([",", ",", ",", ";"])).join(map(cell, r)) for r in (names, *rows)]
    content = end.join(lines).encode("utf-8", "surrogatepass")
    content = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"])) + content
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


RIGHT = {  # what tests of tables start from, and break
    "train": [["image_id", "class_id"], ["a", "x"], ["b", "y"], ["c.png", "x"], ["00", "y"]],
    "sample": [["image_id", "class_id"], ["a", "x"], ["b", "x"], ["00", "y"]],
}


@st.composite
def nearly_right(draw, kind: str) -> bytes:
    """A table of RIGHT with at most two other cells, and rows in another order."""
    head, *rows = RIGHT[kind]
    rows = [head, *draw(st.permutations(rows))]
    for _ in range(draw(st.integers(0, 2))):
        row, column = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, 1))
        changed = [*rows[row]]
        changed[column] = draw(cells)
        rows[row] = changed
    text = "\n".join(",".join(row) for row in rows)
    return text.encode("utf-8", "surrogatepass")


@fuzzed(
    70,
    train=tables() | nearly_right("train"),
    sample=tables() | nearly_right("sample"),
    suffix=st.sampled_from(["", ".png", "*"]),
)
def test_any_tables_are_a_competition_or_a_sentence(tmp_path_factory, train, sample, suffix):
    home = tmp_path_factory.getbasetemp() / "tables"
    root = home / "root"
    root.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c.png", "0.png", "00"):
        (root / name).touch()
    (home / "out.png").write_text("secret")
    (home / "out").write_text("secret")
    (root / "train.csv").write_bytes(train)
    (root / "sample_submission.csv").write_bytes(sample)
    data = Data(source="csv", root=str(root), train="train.csv", test=None, suffix=suffix)
    if sample.startswith(b"image_id"):
        data = data.model_copy(update={"test": "sample_submission.csv"})
    with kept_inside(root):
        source = in_words(read_source, data, Submission())
    if source is not None:
        paths = [*source.train["path"], *source.test["path"]]
        assert all(os.path.realpath(p).startswith(os.path.realpath(root)) for p in paths)


@fuzzed(70, sample=tables(), unknown=st.sampled_from([None, "new", "a"]))
def test_any_sample_submission_is_recognised_or_a_sentence(tmp_path_factory, sample, unknown):
    path = tmp_path_factory.getbasetemp() / "sample_submission.csv"
    path.write_bytes(sample)
    keys = Submission(unknown={"id": unknown} if unknown else None)
    classes = ["a", "b", "0", "NA"]

    def read():
        return recognise(read_sample(path, classes, keys), classes, keys)

    in_words(read)


# ---- names ---------------------------------------------------------------------------------------

NAMES = [
    "0_<script>alert(1)</script>", "1_a'b\"c`d", "2_" + "é" * 126, ".hidden", "_", "3__x", "4_ x ",
    "5_-rf *", "6_$(touch x)", "7_=1+1", "8_😀", "9_a,b;c\td", "10_a\nb",
    "11_\u202egpj", "12_%s{0}",
    b"13_\xff\xfe", "14_" + "x" * 252, "CON", "...", "15_&amp;",
]  # fmt: skip


def make(path: bytes, directory: bool = False) -> None:
    with suppress(OSError):  # a name that this file system does not take
        os.makedirs(path if directory else os.path.dirname(path), exist_ok=True)
        if not directory:
            open(path, "wb").close()


@fuzzed(40, folders=st.lists(st.sampled_from(NAMES) | words, min_size=1, max_size=4),
        files=st.lists(st.sampled_from(NAMES) | words, min_size=1, max_size=3))  # fmt: skip
def test_any_names_of_folders_and_files_are_taken_or_a_sentence(tmp_path_factory, folders, files):
    root = tmp_path_factory.mktemp("names")
    for folder in folders:
        for file in files:
            parts = [
                os.fsencode(p) if isinstance(p, str) and _able(p) else p for p in (folder, file)
            ]
            if all(isinstance(p, bytes) and b"/" not in p and b"\0" not in p for p in parts):
                make(os.path.join(os.fsencode(root), b"train", parts[0], parts[1] + b".png"))
    data = Data(root=str(root), test=None)
    with kept_inside(root):
        source = in_words(read_source, data, Submission())
    if source is not None:
        assert all(Path(p).is_file() for p in source.train["path"])


def _able(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


# ---- images --------------------------------------------------------------------------------------


def encoded(mode: str, size: tuple[int, int], form: str, **how) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 1 if mode in ("1", "L", "I;16", "I", "F", "P") else None).save(
        buffer, form, **how
    )
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("RGB", (6, 4), "JPEG", exif=exif)


def animated(form: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("P", (8, 8), n) for n in range(3)]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A valid header of any size, and no more pixels than one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    rows = zlib.compress(b"\0" * 4096)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


IMAGES = {
    "one row": encoded("RGB", (10_000, 1), "PNG"), "one column": encoded("L", (1, 10_000), "PNG"),
    "16 bit": encoded("I;16", (9, 7), "PNG"), "cmyk": encoded("CMYK", (9, 7), "JPEG"),
    "palette": encoded("P", (9, 7), "PNG"), "bits": encoded("1", (9, 7), "PNG"),
    "grey alpha": encoded("LA", (9, 7), "PNG"), "tiff": encoded("RGB", (9, 7), "TIFF"),
    "float": encoded("F", (9, 7), "TIFF"), "webp": encoded("RGB", (9, 7), "WEBP"),
    "bmp": encoded("RGB", (9, 7), "BMP"), "gif": animated("GIF"), "apng": animated("PNG"),
    "animated webp": animated("WEBP"), "ppm": encoded("RGB", (9, 7), "PPM"),
    "ico": encoded("RGB", (32, 32), "ICO"), "tga": encoded("RGB", (9, 7), "TGA"),
    **{f"turn {n}": turned(n) for n in (0, 1, 3, 6, 8, 9, 65535)},
}  # fmt: skip


def both_read(path: Path) -> None:
    """01 finds a problem exactly where later stages would; neither raises."""
    with kept_inside(path.parent):
        row = _scan_one(str(path), None)
        pixels = in_words(load_image, path, name=path.name)
    assert (row[-1] == "") == (pixels is not None), row[-1]
    if pixels is not None:
        assert pixels.shape == (row[4], row[3], 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", IMAGES)
def test_odd_images_are_read(tmp_path, kind):
    (tmp_path / "x.img").write_bytes(IMAGES[kind])
    both_read(tmp_path / "x.img")
    assert load_image(tmp_path / "x.img").shape[2] == 3


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (60_000, 60_000), (30_000, 20_000)])
def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size))
    both_read(tmp_path / "bomb.png")
    assert "Bomb" in _scan_one(str(tmp_path / "bomb.png"), None)[-1]
    with pytest.raises(UserError, match="bomb.png: .*decompression bomb"):
        load_image(tmp_path / "bomb.png")


@fuzzed(120, kind=st.sampled_from(sorted(IMAGES)), data=st.data())
def test_random_bytes_under_the_header_of_an_image_are_read_or_a_sentence(
    tmp_path_factory, kind, data
):
    content = bytearray(IMAGES[kind])
    start = data.draw(st.integers(0, min(len(content) - 1, 200)))
    noise = data.draw(st.binary(min_size=1, max_size=24))
    content[start : start + len(noise)] = noise
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.getbasetemp() / "x.img"
    path.write_bytes(content)
    both_read(path)


# ---- artifacts -----------------------------------------------------------------------------------

READERS = {
    "a.npz": read_arrays, "p.npz": lambda p: load_predictions(p, 3), "h.safetensors": load_head,
    "t.csv": lambda p: read_table(p, ["fold"]), "j.json": lambda p: read_json(p, {"a/*/b": str}),
    "last.pt": lambda p: load_checkpoint(p.parent),
}  # fmt: skip
BEGINNINGS = [
    b"", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\x80\x02", b"\x93NUMPY", b"{", b"[",
    (16).to_bytes(8, "little"), b"fold\n", b"\x1f\x8b", b"cos\nsystem\n(S'id'\ntR.",
]  # fmt: skip


@fuzzed(120, name=st.sampled_from(sorted(READERS)), begin=st.sampled_from(BEGINNINGS),
        rest=st.binary(max_size=60))  # fmt: skip
def test_any_bytes_are_an_artifact_or_a_sentence(tmp_path_factory, name, begin, rest):
    path = tmp_path_factory.getbasetemp() / "artifacts" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(begin + rest)
    with kept_inside(path.parent):
        in_words(READERS[name], path, name=name)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": Bomb()}, tmp_path / "last.pt")
    with kept_inside(tmp_path), pytest.raises(UserError, match="last.pt: damaged checkpoint"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "was-here").exists()


RECIPE = {"head": "stage1", "steps": [{"step": "temperature", "params": {"temperature": 1.5}}]}
FACTS = {"settings": {"a": 1}, "inputs": {}, "outputs": {}, "metrics": {}}


def test_a_manifest_cannot_name_files_outside_its_directory(tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    for name in ("../mine.txt", str(tmp_path / "mine.txt"), "a/../../mine.txt", "", ".", "a\0"):
        write_json(tmp_path / "run" / MANIFEST, FACTS | {"outputs": {name: "0" * 64}})
        with pytest.raises(UserError, match="manifest.json: its outputs"):
            Work(tmp_path / "run", {"a": 1}, {}, shared=True).finished()
    assert (tmp_path / "mine.txt").read_text() == "dear"


@fuzzed(100, which=st.sampled_from([RECIPE, FACTS]), data=st.data())
def test_any_json_is_a_recipe_or_a_manifest_or_a_sentence(tmp_path_factory, which, data):
    place = data.draw(st.sampled_from(sorted(places(which), key=str)))
    tree = replaced(which, place, data.draw(trees))
    directory = tmp_path_factory.getbasetemp() / "json"
    directory.mkdir(exist_ok=True)
    name = "posthoc.json" if which is RECIPE else MANIFEST
    with suppress(ValueError, UnicodeEncodeError):  # cannot be written
        write_json(directory / name, tree)
    if which is RECIPE:
        in_words(lambda: check_recipe(load_recipe(directory), ("stage1",), directory / name))
    else:
        in_words(lambda: Work(directory, {"a": 1}, {}, shared=True).finished())
