"""Metrics of competitions against scikit-learn and tables worked out by hand; the user's own."""

import re

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import (
    cohen_kappa_score,
    f1_score,
    fbeta_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from src.config.metric import FORMS, metric_text, parse, short_name
from src.config.read import load_config, parse_config
from src.errors import UserError
from src.metrics import (
    DRAWS,
    OUTCOMES,
    SCORES,
    calibration,
    left_out,
    metric_of,
    outcomes_of,
    paired_gain,
    pooled,
    sign,
    summary,
)

OWN = "python:mine.py:cost"
SOME = ["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "f0.5", "f2", "kappa"]
SOME += ["top5", "top3", "map3", "log_loss", "nll", "macro_auc"]


def score(text: str, logits: np.ndarray, labels: np.ndarray) -> float:
    return SCORES[text](OUTCOMES[text](logits, labels), labels, logits.shape[1])


def tail(seed: int, classes: int = 9, images: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels with a long tail, in which the last classes may have no image."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.35, images) - 1, classes - 1)
    return rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels], labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [2, 9, 30])
def test_agree_with_scikit_learn(seed, classes):
    logits, labels = tail(seed, classes)
    every, found, p = np.arange(classes), logits.argmax(1), np.exp(log_softmax(logits, axis=1))
    average = {"labels": every, "zero_division": 0}
    expected = {
        "weighted_f1": f1_score(labels, found, average="weighted", **average),
        "f0.5": fbeta_score(labels, found, beta=0.5, average="macro", **average),
        "f2": fbeta_score(labels, found, beta=2, average="macro", **average),
        "log_loss": log_loss(labels, p, labels=every),
        "kappa": cohen_kappa_score(labels, found, labels=every, weights="quadratic"),
        "macro_auc": np.mean([roc_auc_score(labels == c, p[:, c]) for c in np.unique(labels)]),
    }
    if classes > 3:
        expected["top3"] = top_k_accuracy_score(labels, logits, k=3, labels=every)
    for text, value in expected.items():
        assert score(text, logits, labels) == pytest.approx(value, abs=1e-6), text


def test_ranking_by_hand():
    """True classes at places 1, 2, 4 and, tied with all four, last."""
    logits = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [1, 1, 1, 1]])
    labels = np.array([0, 1, 3, 0])
    assert score("top1", logits, labels) == 1 / 4 and score("top2", logits, labels) == 2 / 4
    assert score("map1", logits, labels) == 1 / 4
    assert score("map2", logits, labels) == (1 + 1 / 2) / 4
    assert score("map9", logits, labels) == (1 + 1 / 2 + 1 / 4 + 1 / 4) / 4


def test_log_loss_is_clipped_as_kaggle_does():
    logits, labels = np.array([[0.0, 1000.0], [0.0, 1000.0]]), np.array([0, 1])
    assert score("log_loss", logits, labels) == pytest.approx((-np.log(1e-15) + 1e-15) / 2)
    assert score("nll", logits, labels) == 500


def test_kappa_by_hand_and_on_a_scale_of_its_own():
    labels, logits = np.array([0, 1, 2, 2]), np.eye(3)[[0, 2, 2, 1]]
    # apart: 0 + 1 + 0 + 1 = 2; expected: Σ over all pairs of (label - decision)² / 4
    decided = logits.argmax(1)
    by_chance = np.mean((labels[:, None] - decided[None]) ** 2) * 4
    assert score("kappa", logits, labels) == pytest.approx(1 - 2 / by_chance)
    place = np.array([1, 0, 2])  # the class with label 1 is the lowest
    expected = cohen_kappa_score(place[labels], place[decided], weights="quadratic")
    assert score("kappa:1,0,2", logits, labels) == pytest.approx(expected)
    with pytest.raises(UserError, match="order has 2 places, but there are 3 classes"):
        score("kappa:1,0", logits, labels)
    same = np.zeros(4, int)  # nothing to agree on beyond chance
    assert score("kappa", np.eye(3)[same], same) == 0


def test_auc_by_hand_with_ties_and_absent_classes():
    p = np.array([[0.6, 0.2, 0.2], [0.4, 0.4, 0.2], [0.4, 0.5, 0.1]])
    labels = np.array([0, 0, 1])  # class 2 is absent
    # class 0: .6 above .4 (1), .4 ties with .4 (1/2) → 3/4; class 1: .5 above both → 1
    assert score("macro_auc", np.log(p), labels) == pytest.approx((0.75 + 1) / 2)
    assert left_out("macro_auc", labels, 3).startswith("macro_auc leaves out 1 of 3 classes")
    assert left_out("macro_auc", labels, 2) == left_out("macro_f1", labels, 3) == ""
    assert np.isnan(score("macro_auc", np.log(p), np.zeros(3, int)))


def test_the_cost_of_a_file_of_yours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def cost(labels, predicted, weight=2.0):\n"
        "    return weight * (labels != predicted).mean()\n"
        "cost.greater_is_better = False\n"
        "def likely(labels, probabilities):\n"
        "    return probabilities[range(len(labels)), labels].mean()\n"
    )
    logits, labels = tail(0)
    wrong = (logits.argmax(1) != labels).mean()
    assert score(OWN, logits, labels) == pytest.approx(2 * wrong)
    assert sign("seconds") == 1  # of a column that is no metric
    assert sign(OWN) == -1 and sign(f"{OWN}:greater") == 1 and sign("python:mine.py:likely") == 1
    p = np.exp(log_softmax(logits, axis=1))
    expected = p[np.arange(len(p)), labels].mean()
    assert score("python:mine.py:likely", logits, labels) == pytest.approx(expected)
    # what is scored at once, is scored in the same draws as a metric of ours
    better = logits + np.eye(9)[labels]
    before, after = (OUTCOMES[OWN](z, labels) for z in (logits, better))
    mine = paired_gain(before, after, labels, 9, OWN)
    ours = paired_gain(before, after, labels, 9, "accuracy")
    assert mine == pytest.approx((2 * ours.value, 2 * ours.noise))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "mine.py: no such file"),
        ("def coast(labels, predicted): return 1", "no function cost; did you mean coast?"),
        ("cost = 3", "has no function cost"),
        ("def cost(y_true, y_pred): return 1", "expected (labels, predicted)"),
        ("def cost(labels, predicted, more): return 1", "more parameters need defaults"),
        ("def cost(labels, *, predicted): return 1", "must be ordinary parameters"),
        ("import nothing_like_it", "mine.py does not run: ModuleNotFoundError"),
        ("def cost(:", "mine.py does not run: SyntaxError"),
    ],
)
def test_a_file_that_is_no_metric_is_an_error_when_the_config_is_read(
    code, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(f"metric: {OWN}")
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserError, match=re.escape(says)):
        load_config("a.yaml")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("float('nan')", "returned nan; expected one finite number"),
        ("'0.5'", "expected one finite number"),
        ("labels * 1.0", "expected one finite number"),
        ("1 / 0", "failed on 200 images of 9 of 9 classes: ZeroDivisionError"),
    ],
)
def test_a_function_that_returns_no_score_is_an_error(body, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"def cost(labels, predicted): return {body}")
    with pytest.raises(UserError, match=re.escape(says)):
        score(OWN, *tail(0))


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        ("macro_f1", "macro_f1"),
        ({"name": "macro_f1"}, "macro_f1"),
        ("f1", "macro_f1"),
        ({"name": "topk", "k": 3}, "top3"),
        ({"name": "mapk", "k": 5}, "map5"),
        ({"name": "f_beta", "beta": 0.5}, "f0.5"),
        ({"name": "f_beta", "beta": 2}, "f2"),
        ({"name": "kappa"}, "kappa"),
        ({"name": "kappa", "order": [2, 0, 1]}, "kappa:2,0,1"),
        ({"name": "python", "file": "mine.py", "function": "cost"}, OWN),
        (
            {"name": "python", "file": "mine.py", "function": "cost", "greater_is_better": False},
            f"{OWN}:lower",
        ),
    ],
)
def test_all_spellings_are_one_text(spelled, text):
    assert parse_config({"metric": spelled}).metric == text == metric_text(text)
    assert parse_config({"search": {"metric": spelled}}).search.metric == text


@pytest.mark.parametrize(
    ("spelled", "says"),
    [
        ("macro_f2", "did you mean 'macro_f1'? Known are"),
        ("top0", "which is no metric"),
        ("top", FORMS),
        (3, "found 3; expected one of"),
        ({"name": "topk"}, "topk takes the keys k; found none"),
        ({"name": "topk", "k": "many"}, "found 'topmany'"),
        ({"name": "topk", "beta": 1}, "topk takes the keys k; found beta"),
        ({"name": "nll"}, "found name 'nll'; expected one of accuracy"),
        ({"name": "f_beta", "beta": -1}, "found 'f-1'"),
        ("f0", "which is no metric"),
        ("kappa:0,2", "every number from 0 to 1 once, found [0, 2]"),
        ("python:mine.txt:cost", "which is no metric"),
        ({"name": "python", "file": "mine.py"}, "python takes the keys file, function"),
    ],
)
def test_what_is_no_metric_says_what_is(spelled, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        parse_config({"metric": spelled})
    assert str(error.value).startswith("config: `metric`: ")


def test_names_in_tables_are_short():
    texts = ("kappa:1,0", f"{OWN}:lower", "top3")
    assert [short_name(text) for text in texts] == ["kappa", "cost", "top3"]
    assert parse("python:C:/my.py:f").file == "C:/my.py" and parse("f0.5").beta == 0.5


@pytest.mark.parametrize("text", SOME)
def test_the_bootstrap_scores_what_was_drawn(text):
    """How often an image is drawn counts as if it were there so often; better is a gain."""
    logits, labels = tail(1, images=60)
    better = logits + 0.5 * np.eye(9)[labels]
    before, after = (OUTCOMES[text](z, labels) for z in (logits, better))
    draws, rng = [], np.random.default_rng(0)
    for _ in range(DRAWS):
        rows = rng.integers(60, size=60)
        a, b = (SCORES[text](x[rows], labels[rows], 9) for x in (after, before))
        draws.append(sign(text) * (a - b))
    gain, noise = paired_gain(before, after, labels, 9, text)
    assert noise == pytest.approx(np.std(draws, ddof=1), rel=1e-9)
    assert gain > 0 and gain == pytest.approx(
        sign(text) * (score(text, better, labels) - score(text, logits, labels))
    )


@pytest.mark.parametrize("text", SOME)
def test_in_chunks_and_pooled_it_is_the_same(text, monkeypatch):
    logits, labels = tail(2)
    whole = summary(logits, labels, np.array(["many"] * 9), text)
    assert whole[text] == pytest.approx(score(text, logits, labels))
    monkeypatch.setattr("src.metrics.outcomes.CHUNK", 70)
    parts = [outcomes_of(logits[rows], labels[rows], text) for rows in (slice(99), slice(99, 200))]
    found = pooled(parts)
    assert found.score(text, labels, 9) == pytest.approx(whole[text])
    turned = found.rows(np.arange(200)[::-1])
    assert turned.score(text, labels[::-1], 9) == pytest.approx(whole[text])
    assert calibration(logits, labels)[0] == pytest.approx(whole["ece"])


@pytest.mark.parametrize("text", SOME)
def test_labels_in_the_place_of_logits_are_an_error(text):
    with pytest.raises(UserError, match="needs logits or log-probabilities"):
        OUTCOMES[text](np.array([0, 1, 1]), np.array([0, 1, 1]))


def test_outcomes_of_another_kind_of_metric_are_an_error():
    labels, p = np.array([0, 1]), np.array([[0.3, 0.7], [0.5, 0.5]])
    with pytest.raises(UserError, match="macro_auc needs probabilities"):
        SCORES["macro_auc"](labels, labels, 2)
    with pytest.raises(UserError, match="macro_f1 needs one number per image"):
        SCORES["macro_f1"](p, labels, 2)
    with pytest.raises(UserError, match="kappa judges predicted labels"):
        SCORES["kappa"](p[:, 0], labels, 2)
    with pytest.raises(UserError, match="metric: found 'nothing'"):
        metric_of("nothing")
