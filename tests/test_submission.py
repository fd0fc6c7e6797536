"""The competition's file: told from the sample, filled, read back, and solutions of any form."""

import gzip
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

import src.prepare.prepare as prepare_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, read_table, write_json, write_table
from src.artifacts.predictions import Predictions
from src.artifacts.work import MANIFEST
from src.config.submission import Submission
from src.ensemble.ensemble import ensemble
from src.errors import UserError
from src.prepare.describe import describe
from src.prepare.prepare import prepare
from src.submission import FORMATS
from src.submission.answer import Answer, clipped, rounded
from src.submission.probabilities import find_prefix
from src.submission.recognise import read_sample, recognise, without_sample
from src.submission.solution import score_solution, true_classes
from src.submission.unknown import doubt
from src.submission.write import copy_submission, write_submission
from tests.fabricate import DATASET, folds_input, seal, write_fold
from tests.prepare_kit import config, folder_source

CLASSES = ["7", "00012", "1e5", "NA", "w_x"]
ROOT = Path(__file__).parents[1]


def told(tmp_path, text: str, classes=CLASSES, **keys):
    """How a sample with these lines is made up."""
    path = tmp_path / "sample_submission.csv"
    path.write_text(text.replace(" | ", "\n") + "\n")
    section = Submission(**keys)
    return recognise(read_sample(path, classes, section), classes, section)


# ---- which format it is ------------------------------------------------------------------------

WIDE = "id,site,7,w_x,NA,00012,1e5 | a,s,.2,.2,.2,.2,.2 | b,t,.2,.2,.2,.2,.2"
PREFIXED = "id,p_7,p_w_x,p_NA,p_00012,p_1e5 | a,0,0,0,0,1"
LONG = "img,species,p | a,7,0 | b,7,0 | a,NA,0.5 | b,NA,1"


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("id,y | a,NA | b,1e5", {}, {"format": "label", "label_column": "y"}),
        ("id,y | a, | b,", {}, {"format": "label"}),
        ("id,y | a,0 | b,0", {}, {"format": "label"}),
        ("id,site,y | a,7x,NA | b,7y,1e5", {}, {"format": "label", "label_column": "y"}),
        ("n,id,y | 1,a,NA", {"id_column": "id"}, {"format": "label", "id_column": "id"}),
        ("id,x,y | a,7,7", {"label_column": "x"}, {"format": "label", "label_column": "x"}),
        ("id,y | a,NA 7 1e5 | b,7 NA 00012", {}, {"format": "topk", "k": 3}),
        ("id,site,y | a,s t,NA 7", {}, {"format": "topk", "k": 2, "label_column": "y"}),
        ("id,y | a,new NA", {"unknown": {"id": "new"}}, {"format": "topk", "k": 2}),
        ("id,y | a,x y z", {"format": "topk"}, {"format": "topk", "k": 3}),
        ("id,y | a,", {"format": "topk", "k": 4}, {"format": "topk", "k": 4}),
        ("id,y | a,NA 7 | b,7", {"format": "topk", "k": 2}, {"format": "topk", "k": 2}),
        (WIDE, {}, {"format": "probabilities", "prefix": ""}),
        (PREFIXED, {}, {"format": "probabilities", "prefix": "p_"}),
        ("id,7,NA | a,0,1", {"format": "probabilities"}, {"format": "probabilities"}),
        (LONG, {}, {"format": "long", "label_column": "species", "value_column": "p"}),
        ("i,c,p | a,7,0", {"format": "long"}, {"format": "long", "label_column": "c"}),
    ],
)
def test_the_format_is_told_from_the_sample(tmp_path, text, keys, expected):
    sheet = told(tmp_path, text, **keys)
    assert expected.items() <= sheet.facts().items() and sheet.why


def test_a_column_of_values_that_could_be_class_ids_is_told_by_its_pairs(tmp_path):
    text = "img,c,p | a,0,0 | a,1,0 | b,0,0 | b,1,0"
    assert told(tmp_path, text, classes=["0", "1"]).value_column == "p"


def test_columns_that_end_in_some_class_ids_are_columns_like_others(tmp_path):
    classes = [str(i) for i in range(10)]
    path = tmp_path / "sample_submission.csv"
    path.write_text("id,f0,f5,y\na,1.5,2.5,3\nb,1.5,2.5,3\n")
    sample, keys = read_sample(path, classes, Submission()), Submission()
    answer = Answer(np.eye(10)[[7, 4]], classes, keys)
    sheet = recognise(sample, classes, keys)
    write_submission(tmp_path / "out.csv", sample, sheet, answer, np.array(["b", "a"]))
    assert (tmp_path / "out.csv").read_text() == "id,f0,f5,y\na,1.5,2.5,4\nb,1.5,2.5,7\n"


def test_a_prefix_is_told_by_the_first_or_the_last_class():
    classes = ["0", "1", "2", "3"]
    assert find_prefix(["p0", "p1"], classes) == find_prefix(["p2", "p3"], classes) == "p"
    assert find_prefix(["p1", "p2"], classes) is None and find_prefix(["p0"], classes) is None


def test_without_a_sample_the_keys_decide():
    sheet = without_sample(("id", "y"), Submission(format="topk", k=3), "topk")
    assert (sheet.k, sheet.prefix, sheet.value_column) == (3, None, None)
    with pytest.raises(UserError, match="submission.k: not read by the format label"):
        without_sample(("id", "y"), Submission(k=3), "label")


def test_ids_with_spaces_are_one_label(tmp_path):
    assert told(tmp_path, "id,y | a,sea gull", classes=["sea gull", "owl"]).format == "label"


@pytest.mark.parametrize(
    ("text", "keys", "says"),
    [
        ("id,y | a,0.5 | b,0.5", {}, "\n  id,y\n  a,0.5\n  b,0.5\nand is\n  label: no, "),
        ("id,x,y | a,7,NA", {}, "no column can be told to be that of class ids"),
        ("id,y | a,cat dog | b,dog", {}, "words in 'y' such as 'cat', 'dog' are no class ids"),
        ("id,y | a,NA 7 | b,7", {}, "hold 1 to 2 words (submission.k)"),
        ("id,y | a,x", {"format": "topk"}, "hold one word (submission.k)"),
        ("id,y | a,NA 7", {"format": "topk", "k": 6}, "6 ids a cell, and there are 5 classes"),
        ("id,7,NA | a,0,1", {}, "3 of 5 classes have no column: '00012', '1e5', 'w_x'"),
        (PREFIXED.replace("1e5 |", "1e5,p_9 |") + ",0", {},
         "columns 'p_9' hold numbers and are of no class; a class without images is "
         "submission.unknown"),
        ("img,c,x,p | a,7,0,0 | a,NA,1,0", {}, "found 'x', 'p'; expected one column of n"),
        ("id,y | a,NA", {"format": "long"}, "which submission.format asks for. It begins with"),
        ("id,y | a,NA", {"label_column": "yy"}, "(submission.label_column) is missing; it has "
         "'id', 'y'; did you mean 'y'?"),
        ("id,y | a,NA", {"decimals": 3}, "submission.decimals: not read by the format label"),
        ("id,y | a,NA", {"k": 3}, "submission.k: not read by the format label"),
        ("id,y | a,NA", {"prefix": "p_"}, "submission.prefix: not read by the format label"),
        ("id,y | a,NA", {"value_column": "y"}, "submission.value_column: not read by the format"),
        ("id,y | a,NA", {"unknown": {"id": "NA"}}, "'NA' is a class with training images"),
        (PREFIXED, {"unknown": {}}, "classes have no column: '-1'"),
        (PREFIXED, {"unknown": {}, "format": "probabilities"}, "no column 'p_-1'; it has 'id'"),
    ],
)  # fmt: skip
def test_a_sample_in_no_known_format_says_what_was_seen_and_which_key_decides(
    tmp_path, text, keys, says
):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        told(tmp_path, text, **keys)
    assert "sample_submission.csv" in str(error.value) or "submission." in str(error.value)


def test_a_cell_that_is_an_id_and_several_ids_needs_the_key(tmp_path):
    classes, text = ["1", "2", "1 2"], "id,y | a,1 2 | b,1 2"
    with pytest.raises(UserError, match="could be of several formats") as error:
        told(tmp_path, text, classes)
    assert "label: every cell" in str(error.value) and "Set submission.format" in str(error.value)
    assert told(tmp_path, text, classes, format="topk").k == 2
    assert told(tmp_path, text, classes, format="label").format == "label"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"clip": 1e-5, "decimals": 3}, "clip (1e-05) is below what decimals (3) can write"),
        ({"k": 3, "unknown": {"place": 4}}, "unknown.place (4) must not be above k (3)"),
        ({"unknown": {"head": "nmc"}}, "submission.unknown.head names 'nmc', but there are only"),
        ({"format": "topK"}, "did you mean 'topk'?"),
    ],
)
def test_a_mistake_in_the_section_is_named(tree, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config("x", submission=tree)


# ---- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("k", [2, 7, 60])
def test_rounding_keeps_the_sum_and_moves_no_value_by_a_unit(decimals, k):
    p = softmax(np.random.default_rng(k).normal(size=(20, k)) * 2, axis=1)
    p[0] = 1 / k  # all remainders equal
    p[1, : k // 2 * 2] = np.tile([1.5, 0.5], k // 2) / (k // 2 * 2)  # two kinds of remainders
    p[1, k // 2 * 2 :] = 0
    found, unit = rounded(p, decimals), 10.0**decimals
    whole = np.rint(found * unit)
    np.testing.assert_allclose(found * unit, whole, atol=1e-4)
    assert (whole.sum(1) == unit).all() and (np.abs(found - p) < 1 / unit).all()
    for row, exact in zip(whole, p * unit, strict=True):  # slow: one unit after the other
        units = [int(np.floor(x + 1e-6)) for x in exact]
        while sum(units) < unit:
            units[max(range(k), key=lambda i: (exact[i] - units[i], -i))] += 1
        assert units == row.tolist()


def test_clipping_lifts_the_small_and_keeps_the_sum():
    p = np.array([[0.97, 0.02, 0.01], [0.5, 0.3, 0.2], [1, 0, 0], [0.895, 0.1005, 0.0045]])
    found = clipped(p, 0.1)
    expected = [[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]]
    np.testing.assert_allclose(found, expected)  # the last: scaling pushes a second one below
    assert clipped(p, 0.0) is p
    with pytest.raises(UserError, match="submission.clip: 0.34 for each of 3 classes"):
        clipped(p, 0.34)


def answer(z, flagged=None, classes=("a", "b", "c"), **keys) -> Answer:
    return Answer(np.float32(z), list(classes), Submission(**keys), flagged)


def test_the_likeliest_ids_and_the_unknown_class_among_them():
    z, both = [[0, 2, 1], [1, 1, 1]], np.arange(2)
    assert answer(z).best(both, 2).tolist() == [["b", "c"], ["a", "b"]]
    flagged, unknown = np.array([False, True]), {"id": "new"}
    found = answer(z, flagged, unknown=unknown)
    assert found.best(both, 1).tolist() == [["b"], ["new"]]
    assert found.best(both, 3).tolist() == [["b", "c", "a"], ["new", "a", "b"]]
    second = answer(z, flagged, unknown=unknown | {"place": 2})
    assert second.best(both, 3).tolist() == [["b", "new", "c"], ["new", "a", "b"]]
    assert second.best(both, 4)[0].tolist() == ["b", "new", "c", "a"]


def test_the_unknown_class_has_its_probability_where_an_image_is_flagged():
    z = np.log([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]) + 3
    found = answer(z, np.array([False, True]), unknown={"id": "new", "probability": 0.6})
    p = found.probabilities(np.arange(2), ["new", "a", "c", "b"])
    np.testing.assert_allclose(p, [[0, 0.5, 0.25, 0.25], [0.6, 0.2, 0.1, 0.1]], rtol=1e-6)
    p = answer(z).probabilities(np.array([1]), ["b", "a"])  # c has no column
    np.testing.assert_allclose(p, [[1 / 3, 2 / 3]], rtol=1e-6)


# ---- solutions ---------------------------------------------------------------------------------

SOLUTIONS = {
    "ids": {"id": ["x", "y", "z"], "species": ["b", "c", "a"]},
    "with more": {"id": ["x", "y", "z"], "Usage": ["Public"] * 3, "species": ["b", "c", "a"]},
    "one-hot": {"id": ["x", "y", "z"], "a": [0, 0, 1], "c": [0, 1, 0], "b": [1, 0, 0]},
    "soft": {"id": ["x", "y", "z"], "p_a": [0.1, 0, 1], "p_b": [0.7, 0.3, 0], "p_c": [0.2, 0.7, 0]},
    "long": {"id": list("zxyxz"), "c": list("abcab"), "v": [1, 1, 0.5, 0, 0]},
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_may_have_any_form(name):
    facts = {"id_column": "id", "label_column": "class_id", "format": "topk"}
    table = pd.DataFrame(SOLUTIONS[name]).astype(str)
    found = true_classes(table, name, facts, ["a", "b", "c"])
    assert dict(found[["image_id", "class_id"]].to_numpy()) == {"x": "b", "y": "c", "z": "a"}


def test_of_several_columns_of_values_the_submissions_own_says_what_is_true():
    long = pd.DataFrame({"id": list("xxyy"), "c": list("abab"), "v": [1, 0, 1, 0]})
    table = long.assign(w=[0, 1, 0, 1]).astype(str)
    facts = {"id_column": "id", "label_column": "c", "format": "long"}
    for column, true in (("v", "a"), ("w", "b"), ("gone", "a")):
        found = true_classes(table, "s.csv", facts | {"value_column": column}, ["a", "b"])
        assert set(found["class_id"]) == {true}


def test_columns_of_classes_that_are_all_impossible_share_the_whole():
    found = answer([[0, -1e4, -1e4]]).probabilities(np.array([0]), ["b", "c"])
    np.testing.assert_array_equal(found, [[0.5, 0.5]])


def test_a_solution_without_a_true_class_or_column_is_an_error():
    facts = {"id_column": "id", "label_column": "class_id", "format": "topk"}
    table = pd.DataFrame(SOLUTIONS["one-hot"]).assign(b=0).astype(str)
    with pytest.raises(UserError, match="s.csv: 1 images have no true class: 'x'"):
        true_classes(table, "s.csv", facts, ["a", "b", "c"])
    table = pd.DataFrame({"id": ["x"], "class_id": ["d"], "other": ["a"]})
    assert true_classes(table, "s.csv", facts, ["a"])["class_id"].tolist() == ["d"]
    with pytest.raises(UserError, match="columns 'class_id' are missing; it has"):
        true_classes(table.drop(columns=["class_id", "other"]), "s.csv", facts, ["a"])


# ---- start to finish ---------------------------------------------------------------------------

COUNTS = {"7_rare": 4, "00012_wren": 6, "1e5_gull": 6, "NA_owl": 6, "w_x": 5}
IDS = ["00012", "1e5", "NA", "t3.jpg", "t4", "t5", "t6", "t7"]  # one with its ending
FOLDER_IDS = ["7", "00012", "1e5", "NA", "w"]  # `w_x` is class w, called x
LABELS = np.array([0, 1, 2, 3, 4, 1, 2, 3])


class Made:
    """A competition that 01 prepared and for which 02 … 05 are made up, with planted logits."""

    def __init__(self, sample: pd.DataFrame, solution: dict, **submission):
        self.root = folder_source(Path("raw") / DATASET, COUNTS, test=8)
        for i, name in enumerate(IDS):
            if (old := self.root / "test" / f"t{i}.jpg").stem != Path(name).stem:
                old.rename(old.with_name(f"{name}.jpg"))
        write_table(self.root / "sample_submission.csv", sample)
        write_table(self.root / "solution.csv", pd.DataFrame(solution))
        sections = {"near_duplicates": None}
        self.config = config(
            self.root, data=sections, folds={"k": 2}, ensemble={"members": ["ncm"]},
            submission=submission,
        )  # fmt: skip
        self.folds = prepare(self.config)
        self.data, rng = load_dataset(DATASET), np.random.default_rng(0)
        self.classes = self.data.classes["class_id"].tolist()
        images = self.data.images
        for k in self.data.folds:
            part = images[images["fold"] == k]
            y = part["label"].to_numpy()
            z = 2 * np.eye(5)[y] + rng.normal(size=(len(y), 5))
            oof = Predictions(
                part["image_id"].to_numpy(str), z, y, part["fold"].to_numpy(),
                distance=np.linspace(0.1, 0.5, len(y)),
            )  # fmt: skip
            head = ("linear", {"weight": np.zeros((5, 2)), "bias": np.zeros(5)})
            write_fold(Path("runs") / DATASET / "exp" / "stage2" / "ncm" / f"fold{k}", oof, head)
        self.z = np.float32(1.5 * np.eye(5)[LABELS] + rng.normal(size=(8, 5)))
        self.distance = np.array([0.1, 0.6, 0.2, 0.3, 0.7, 0.2, 0.1, 0.4])
        self.labels = LABELS
        none = np.full(8, -1)
        home = Path("runs") / DATASET / "exp" / "predict"
        found = Predictions(np.array(IDS), self.z, none, none, distance=self.distance)
        found.save(home / "ncm.npz")
        seal(home, inputs=folds_input())

    def submit(self, **kwargs):
        return ensemble([self.config], ["exp"], **kwargs)

    def p(self) -> pd.DataFrame:
        """Planted probabilities by image and class."""
        return pd.DataFrame(softmax(self.z.astype(float), 1), IDS, self.classes)

    def best(self) -> pd.Series:
        return pd.Series([self.classes[i] for i in self.z.argmax(1)], IDS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_module, "draw_figures", lambda *args: [])


ORDER = IDS[::-1]
TRUTH = {"Id": IDS, "species": [FOLDER_IDS[i] for i in LABELS]}


def score_of(made: Made) -> float:
    return float(np.mean(made.z.argmax(1) == LABELS))


def test_a_competition_of_labels_from_start_to_finish():
    sample = pd.DataFrame({"Id": ORDER, "place": list("stuvwxyz"), "species": ["NA", "7"] * 4})
    made = Made(sample, TRUTH)
    assert "submission, label: every cell of 'species' is one class id" in describe(made.folds)
    result = made.submit(out="out.csv.gz")
    found = read_table(result.submission)
    expected = sample.assign(species=made.best()[ORDER].to_numpy())
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert result.score["accuracy"] == pytest.approx(score_of(made)) and result.scored == 8
    assert gzip.decompress(Path("out.csv.gz").read_bytes()) == result.submission.read_bytes()
    facts = read_json(result.submission.with_suffix(".manifest.json"))["submission"]
    assert facts == read_json(made.folds / MANIFEST)["submission"]


def test_a_competition_of_top_k_from_start_to_finish():
    sample = pd.DataFrame({"Id": ORDER, "species": ["NA 7 new"] * 8})
    truth = {"Id": IDS[:7], "species": [FOLDER_IDS[i] for i in LABELS[:6]] + ["new"]}
    unknown = {"id": "new", "quantile": 0.9, "place": 3}
    made = Made(sample, truth, unknown=unknown)
    assert "topk: cells of 'species' hold 3 class ids" in describe(made.folds)
    result = made.submit()
    found = read_table(result.submission).set_index("Id")["species"]
    known = [np.linspace(0.1, 0.5, n) for n in made.data.images["fold"].value_counts() if n]
    known = known[: len(made.data.folds)]
    threshold = np.quantile(np.concatenate(known), 0.9)
    for i, image in enumerate(IDS):
        best = [made.classes[j] for j in np.argsort(-made.z[i], kind="stable")]
        flagged = made.distance[i] > threshold
        expected = ["new", *best[:2]] if flagged else [*best[:2], "new"]
        assert found[image].split(" ") == expected
    facts = read_json(result.submission.with_suffix(".manifest.json"))["submission"]["unknown"]
    assert (facts["score"], facts["flagged"]) == ("distance of ncm", 2)
    assert facts["threshold"] == pytest.approx(threshold)
    said = [("new" if d > threshold else b) == t for d, b, t in zip(
        made.distance, made.best(), truth["species"], strict=False)]  # fmt: skip
    assert result.score["accuracy"] == pytest.approx(np.mean(said))
    assert "nll" not in result.score and result.scored == 7
    (made.root / "sample_submission.csv").unlink()  # 01 said how many ids a cell has
    again = read_table(made.submit(overwrite=True).submission).set_index("Id")["species"]
    assert again.to_dict() == found.to_dict()


def test_a_competition_of_probabilities_from_start_to_finish():
    names = ["p_w", "p_7", "p_NA", "p_1e5", "p_00012"]
    sample = pd.DataFrame({"Id": ORDER} | dict.fromkeys(names, 0.2)).assign(note="keep me")
    one_hot = {n: [int(n == f"p_{FOLDER_IDS[i]}") for i in LABELS] for n in names}
    made = Made(sample, {"Id": IDS} | one_hot, gzip=True)
    assert "probabilities: a column for each of 5 classes, with 'p_'" in describe(made.folds)
    result = made.submit(out="out.csv")
    assert result.submission.name == "exp.csv.gz"
    found = read_table(result.submission, names)
    assert list(found) == ["Id", *names, "note"] and found["Id"].tolist() == ORDER
    assert set(found["note"]) == {"keep me"}
    cells = read_table(result.submission)[names]
    assert cells.map(lambda cell: cell == f"{float(cell):.8g}").all(axis=None)
    expected = made.p().loc[ORDER, [n[2:] for n in names]].to_numpy()
    np.testing.assert_allclose(found[names], expected, rtol=2e-6)
    assert result.score["accuracy"] == pytest.approx(score_of(made))
    first = result.submission.read_bytes()
    assert first[3] == 0 and first[4:8] == bytes(4)  # neither a name nor a time: RFC 1952
    assert Path("out.csv").read_bytes() == gzip.decompress(first)
    assert made.submit().submission.read_bytes() == first
    made.config = made.config.model_copy(update={"submission": Submission(decimals=2, clip=0.05)})
    result = made.submit(overwrite=True)
    assert not result.submission.with_name("exp.csv.gz").exists()
    found = read_table(result.submission)[names]
    assert found.map(lambda cell: re.fullmatch(r"[01][.]\d\d", cell) is not None).all(axis=None)
    p = found.to_numpy(float)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(p, rounded(clipped(expected, 0.05), 2), atol=1e-9)
    assert p.min() >= 0.05 - 1e-9


def test_a_long_competition_from_start_to_finish():
    pairs = [(i, c) for c in FOLDER_IDS[::-1] for i in ORDER]  # class by class
    sample = pd.DataFrame(pairs, columns=["Id", "species"]).assign(p="0", row=range(40))
    truth = sample.assign(p=[int(FOLDER_IDS[LABELS[IDS.index(i)]] == c) for i, c in pairs])
    made = Made(sample[["row", "Id", "species", "p"]], truth, id_column="Id")
    assert "submission, long: a row per image and class of 'species'" in describe(made.folds)
    assert made.data.test["image_id"].tolist() == ORDER
    result = made.submit()
    found = read_table(result.submission, ["p", "row"])
    assert list(found) == ["row", "Id", "species", "p"] and found["row"].tolist() == list(range(40))
    assert found[["Id", "species"]].to_numpy().tolist() == [list(pair) for pair in pairs]
    p = made.p()
    np.testing.assert_allclose(found["p"], [p.loc[i, c] for i, c in pairs], rtol=2e-6)
    assert result.score["accuracy"] == pytest.approx(score_of(made))
    sample = sample.drop(index=[3, 17])  # not every image is asked for every class
    write_table(made.root / "sample_submission.csv", sample[["row", "Id", "species", "p"]])
    found = read_table(made.submit().submission, ["p"])
    expected = [p.loc[i, c] for i, c in sample[["Id", "species"]].to_numpy()]
    np.testing.assert_allclose(found["p"], expected, rtol=2e-6)


def test_without_distances_the_largest_probability_decides_and_never_the_test_images():
    sample = pd.DataFrame({"Id": ORDER, "species": "7"})
    made = Made(sample, TRUTH, unknown={"id": "-1", "quantile": 0.7, "head": "probability"})
    result = made.submit()
    assert result.flags.score == "1 - largest probability"
    assert "accuracy" in result.score and not {"nll", "ece"} & result.score.keys()
    oof = np.concatenate([
        np.load(f"runs/{DATASET}/exp/stage2/ncm/fold{k}/oof.npz")["logits"] for k in (0, 1)
    ])  # fmt: skip
    expected = np.quantile(1 - softmax(oof.astype(float), 1).max(1), 0.7)
    assert result.flags.threshold == pytest.approx(expected, rel=1e-5)
    flagged = 1 - made.p().max(axis=1) > expected
    best = made.best().where(~flagged, "-1")
    assert read_table(result.submission)["species"].tolist() == best[ORDER].tolist()
    assert 0 < flagged.sum() < 8
    z = np.random.default_rng(1).normal(size=(20, 4))
    np.testing.assert_allclose(doubt(z), 1 - softmax(z, 1).max(1))


def test_manifests_of_01_from_before_there_were_formats_still_work():
    sample = pd.DataFrame({"Id": ORDER, "species": "7"})
    made = Made(sample, TRUTH)
    first = made.submit().submission.read_bytes()
    path = made.folds / MANIFEST
    facts = read_json(path)
    old = {"id_column": "Id", "label_column": "species"}
    write_json(path, facts | {"submission": old})
    assert "submission" not in describe(made.folds)
    assert made.submit().submission.read_bytes() == first
    (made.root / "sample_submission.csv").unlink()  # the order of test.csv, as before
    assert made.submit().submission.read_bytes() == first
    write_json(path, facts | {"submission": old | {"format": "long"}})
    with pytest.raises(UserError, match="sample_submission.csv: gone since 01 read it"):
        made.submit()
    wanted = {"format": "probabilities", "prefix": "c_"}
    write_json(path, facts | {"submission": old, "sample_submission": None})
    made.config = made.config.model_copy(update={"submission": Submission(**wanted)})
    table = read_table(made.submit(overwrite=True).submission)
    assert list(table) == ["Id", *(f"c_{c}" for c in made.classes)]
    made.config = made.config.model_copy(update={"submission": Submission(format="long")})
    table = read_table(made.submit(overwrite=True).submission)
    assert list(table) == ["Id", "species", "probability"] and len(table) == 40


def test_several_true_classes_count_by_the_one_that_is_ranked_highest():
    made = Made(pd.DataFrame({"Id": ORDER, "species": ["NA 7"] * 8}), TRUTH)
    every = " ".join(made.classes)
    path = write_table(Path("s.csv"), pd.DataFrame({"Id": IDS, "true": [every] * 8}))
    score, count = score_solution(made.z, np.array(IDS), made.data, path)
    assert (score["accuracy"], count) == (1.0, 8)
    worst = [made.classes[i] for i in made.z.argmin(1)]
    cells = [f"{w} {t}" for w, t in zip(worst, TRUTH["species"], strict=True)]
    write_table(path, pd.DataFrame({"Id": IDS, "true": cells}))
    score, _ = score_solution(made.z, np.array(IDS), made.data, path)
    assert score["accuracy"] == pytest.approx(score_of(made))


# ---- what is read back -------------------------------------------------------------------------

SPOILED = {
    "label": ("y", "9", "class ids '9' are not in classes.csv"),
    "label empty": ("y", "", "columns 'y' have empty cells"),
    "order": ("id", "other", "'id' differs from the sample in 1 rows: 'other'"),
    "topk": ("y", "a a", "expected 2 different class ids a cell, found 'a a'"),
    "probabilities": ("a", 0.9, "sums of an image's probabilities such as"),
    "probabilities range": ("a", -0.25, "probabilities such as -0.25 are not in 0 … 1"),
    "probabilities NaN": ("a", float("nan"), "columns 'a' have empty cells"),
    "long": ("p", 0.9, "sums of an image's probabilities such as"),
}
SAMPLES = {
    "label": "id,y | i,a | j,b",
    "order": "id,y | i,a | j,b",
    "topk": "id,y | i,a b | j,b a",
    "probabilities": "id,a,b,c | i,0,0,0 | j,0,0,0",
    "long": "id,y,p | i,a,0 | i,b,0 | j,a,0 | j,b,0",
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_file_is_noticed_and_not_half_written(tmp_path, monkeypatch, what, packed):
    column, value, says = SPOILED[what]
    path = tmp_path / "sample.csv"
    path.write_text(SAMPLES[what.split()[0]].replace(" | ", "\n") + "\n")
    keys, classes = Submission(), ["a", "b", "c"]
    sample = read_sample(path, classes, keys)
    sheet = recognise(sample, classes, keys)
    whole = Answer(np.float32([[0, 1, 2], [2, 1, 0]]), classes, keys)
    out = write_submission(tmp_path / f"s.csv{packed}", sample, sheet, whole, np.array(["i", "j"]))
    before = out.read_bytes()
    fill = FORMATS[sheet.format].fill

    def spoiled(*args):
        filled = fill(*args).copy()
        filled[column] = filled[column].astype(object)
        filled.loc[filled.index[-1], column] = value
        return filled

    monkeypatch.setattr(FORMATS[sheet.format], "fill", spoiled)
    with pytest.raises(UserError, match=re.escape(says)):
        write_submission(out, sample, sheet, whole, np.array(["i", "j"]))
    assert out.read_bytes() == before and sorted(p.name for p in tmp_path.glob("*s.csv*")) == [
        out.name
    ]


def test_parts_of_a_file_are_checked_against_their_part_of_the_sample(tmp_path, monkeypatch):
    ids, classes = [f"i{n}" for n in range(7)], ["a", "b", "c"]
    write_table(tmp_path / "s.csv", pd.DataFrame({"id": ids, "a": 0, "b": 0, "c": 0}))
    keys = Submission(decimals=3)
    sample = read_sample(tmp_path / "s.csv", classes, keys)
    sheet = recognise(sample, classes, keys)
    z = np.float32(np.random.default_rng(0).normal(size=(7, 3)))
    args = (sample, sheet, Answer(z, classes, keys), np.array(ids))
    once = write_submission(tmp_path / "once.csv", *args).read_bytes()
    monkeypatch.setattr(FORMATS["probabilities"], "step", lambda sample: 3)
    assert write_submission(tmp_path / "parts.csv", *args).read_bytes() == once
    copied = copy_submission(tmp_path / "parts.csv", tmp_path / "p.csv.gz")
    assert gzip.decompress(copied.read_bytes()) == once


# ---- all six scripts ---------------------------------------------------------------------------

SCRIPTS = ("01_prepare_folds", "02_train_stage1", "03_train_stage2", "04_posthoc_calibrate")
SCRIPTS += ("05_predict", "06_ensemble")
TINY = """
data: {root: raw/tiny, near_duplicates: null, workers: 0}
folds: {k: 2}
model: {backbone: cifar_resnet20, pretrained: false, image_size: 16, crop_pct: 1.0}
train: {epochs: 1, warmup_epochs: 0, batch_size: 8, augment: {crop: padded, color_jitter: 0}}
stage2: [{head: ncm}]
posthoc: {steps: [temperature]}
predict: {tta: {flip: false}, evidence: 0}
submission: {decimals: 4, clip: 0.001, unknown: {id: new}}
"""


def test_probabilities_through_all_six_scripts(monkeypatch, capsys):
    root = folder_source(Path("raw/tiny"), {"1_a": 6, "02_b": 6, "x_c": 4}, test=3)
    names = ["x", "new", "1", "02"]
    sample = {"id": ["t2", "t0", "t1"]} | dict.fromkeys(names, 0.25)
    write_table(root / "sample_submission.csv", pd.DataFrame(sample))
    Path("tiny.yaml").write_text(TINY)
    for name in SCRIPTS:
        monkeypatch.setattr(sys, "argv", [name, "--config", "tiny.yaml"])
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "submission, probabilities: a column for each of 4 classes" in said
    assert "format:     probabilities: a column for each of 4 classes" in said
    assert "of the unknown class: distance of ncm above" in said
    table = read_table("runs/tiny/submissions/tiny.csv", names)
    assert list(table) == ["id", *names] and table["id"].tolist() == ["t2", "t0", "t1"]
    np.testing.assert_allclose(table[names].sum(axis=1), 1, atol=1e-9)
    assert table[names].min(axis=None) >= 0.001
