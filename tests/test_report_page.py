"""The page in a real browser: it works, asks nothing of the outside, and runs no planted script."""

import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from src.metrics import outcomes_of
from src.report.classes import class_rows, inert
from src.report.markup import document
from src.report.stages import Scored
from tests import report_kit
from tests.browser_kit import BROWSER, Page
from tests.report_kit import COUNTS, K, fill, prepare, write

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no browser: `apt-get install chromium`, or BROWSER_BIN=path of one"
)
ROWS = "[...document.querySelectorAll('#classes tbody tr')]"


@pytest.fixture(scope="module")
def browser():
    page = Page()
    yield page
    page.close()


@pytest.fixture
def page(browser, tmp_path, monkeypatch) -> Page:
    monkeypatch.chdir(tmp_path)
    images, pixels = prepare(tmp_path)
    fill(tmp_path / "runs/digits/exp", images, pixels)
    write()
    browser.look(1200)
    browser.open(tmp_path / "runs/digits/report.html")
    return browser


def column(page: Page, number: int) -> list[str]:
    return page.run(f"{ROWS}.map(row => row.children[{number}].textContent)")


@needs_browser
def test_the_page_in_a_browser(page, tmp_path):
    assert page.run(f"{ROWS}.length") == K
    _sorted_and_searched(page)
    _hovered(page)
    _narrow_and_dark(page, tmp_path)
    planted = "document.querySelectorAll('img[src=x], svg[onload]').length"
    assert page.run(planted) == 0 and page.run("typeof window.pwned") == "undefined"
    assert (page.problems, page.requests) == ([], [])
    page.run("const s = document.createElement('script'); s.textContent = 'pwned = 1';"
             "document.body.append(s); document.body.insertAdjacentHTML('beforeend',"
             "'<img src=http://127.0.0.1:9/x>')")  # fmt: skip
    time.sleep(0.2)
    assert page.run("typeof window.pwned") == "undefined"
    assert sum("Content Security Policy" in problem for problem in page.problems) >= 2


@needs_browser
def test_the_classes_by_keyboard(page):
    heads, rows = "document.querySelectorAll('#classes thead button')", f"{ROWS}[%d]"
    page.run(f"{heads}[2].focus()")
    page.press("Enter")
    assert [int(text) for text in column(page, 2)] == sorted(COUNTS, reverse=True)
    assert page.run(f"{ROWS}.map(row => row.tabIndex)") == [0] + [-1] * (K - 1)  # one stop of Tab
    page.run(f"{rows % 0}.focus()")
    for key, place in (("ArrowUp", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1)):
        page.press(key)
        assert page.run(f"document.activeElement === {rows % place}")
        card = page.run("document.querySelector('#classes .hover').textContent")
        assert column(page, 0)[place] in card
    assert page.run(f"{ROWS}.findIndex(row => row.tabIndex === 0)") == 1


@needs_browser
def test_long_names_stay_in_their_places(browser, tmp_path, monkeypatch):
    """Of classes, of images and of experiments, without a space to break at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_kit, "EVIL", ("Donaudampfschifffahrtsgesellschaft" * 4,) * 3)
    images, pixels = prepare(tmp_path)
    name = "exp_convnext_tiny_in12k_ft_in1k_384px_balanced_softmax_class_means_seed1"
    for home in ("exp", name):
        fill(tmp_path / "runs/digits" / home, images, pixels)
    write(["exp", name])
    browser.look(390, 800)
    browser.open(tmp_path / "runs/digits/report.html")
    browser.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    beyond = "[...document.querySelectorAll('th, td')].filter(e => e.scrollWidth > e.clientWidth)"
    for width in (390, 1200):
        browser.look(width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(f"{beyond}.map(e => e.textContent)") == []
    table = "document.querySelector('#classes .scroll')"
    assert browser.run(f"{table}.scrollWidth <= {table}.clientWidth")
    inside = "document.querySelector('#transfer figure').getBoundingClientRect().width"
    plot = "document.querySelectorAll('#transfer svg path')[1].getBoundingClientRect().width"
    assert browser.run(f"{plot} > 0.5 * Math.min({inside}, 496)")


def _sorted_and_searched(page: Page) -> None:
    images = "#classes thead th:nth-child(3) button"
    for counts, way in (
        (sorted(COUNTS, reverse=True), "descending"),
        (sorted(COUNTS), "ascending"),
    ):
        page.click(images)
        assert [int(text) for text in column(page, 2)] == counts
        head = "document.querySelector('#classes thead th:nth-child(3)')"
        assert page.run(f"{head}.getAttribute('aria-sort')") == way
    page.click("#classes thead th:nth-child(4) button")
    recalls = [float(text) for text in column(page, 3)]
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1]
    page.click("#classes input")
    page.type("few <b>X7")
    assert len(column(page, 0)) == 1 and "<b>x7</b>" in column(page, 0)[0]
    assert page.run("document.querySelector('#classes .told').textContent") == "1 of 10 classes"
    page.run("document.querySelector('#classes input').value = ''")
    page.type("few")
    assert set(column(page, 1)) == {"few"} and len(column(page, 0)) == COUNTS.index(5) - 4


def _hovered(page: Page) -> None:
    box = page.box("#classes tbody tr")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 40, y=box["y"] + 8)
    card = "document.querySelector('#classes .hover')"
    assert page.run(f"!{card}.hidden && {card}.offsetWidth > 0")
    assert column(page, 0)[0] in page.run(f"{card}.textContent")
    assert page.run(f"{card}.querySelector('img').naturalWidth") > 0
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert page.run(f"{card}.hidden")


def _narrow_and_dark(page: Page, tmp_path) -> None:
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert page.run(f"{wide}.map(e => e.closest('section').id)") == []
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.run(paper)
    page.look(390, 800)
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.look(1200, dark=True)
    assert page.run(paper) != light
    page.look(1200)


def many_classes(k: int, images: int) -> tuple[Scored, pd.DataFrame]:
    rng = np.random.default_rng(0)
    label = np.sort(rng.integers(0, k, images))
    guess = np.where(rng.random(images) < 0.7, label, rng.integers(0, k, images))
    logits = np.zeros((images, 2), np.float32)
    outcomes = outcomes_of(logits, np.zeros(images, int))
    outcomes.predicted[:] = guess
    ids = np.arange(images).astype(str)
    classes = pd.DataFrame({"class_id": [f"n{c:05d}" for c in range(k)], "bin": "few", "count": 5})
    classes["class_name"] = [f"species {c}" for c in range(k)]
    return Scored(ids, label, outcomes, {}, outcomes.calibration(label)), classes


def test_many_classes_are_a_small_page_and_are_counted_without_a_square_table():
    scored, classes = many_classes(8142, 60_000)
    began = time.process_time()
    doubted = {"image_id": ["1", "2", "3", "3"], "class_id": "n00007"}  # one as label and outlier
    rows = class_rows(scored, classes, pd.DataFrame(doubted))
    assert time.process_time() - began < 5 and len(inert(rows)) < 1_500_000
    assert rows[7][8] == 3
    guess, label = scored.outcomes.predicted, scored.label
    for c in (3, 4000, 8141):
        mine = label == c
        wrong = np.bincount(guess[mine & (guess != c)], minlength=8142)
        assert rows[c][3] == pytest.approx((guess[mine] == c).mean(), abs=1e-4)
        assert rows[c][7] == pytest.approx(wrong.max() / mine.sum(), abs=1e-4)
        other = f"species {wrong.argmax()} · n{wrong.argmax():05d}"
        assert rows[c][6] == (other if wrong.any() else "")


@needs_browser
def test_rows_are_drawn_as_they_are_seen(browser, tmp_path, monkeypatch):
    scored, classes = many_classes(8142, 60_000)
    from src.report import classes as module

    monkeypatch.setattr(module, "thumbnail", lambda path, side: None)
    images = pd.DataFrame({"image_id": scored.image_id, "label": scored.label, "path": "gone"})
    nothing = pd.DataFrame(columns=["image_id", "class_id"])
    page = module.page_table(class_rows(scored, classes, nothing), scored, classes, images)
    (tmp_path / "page.html").write_text(document("many", f'<section id="classes">{page}</section>'))
    browser.look(1200)
    browser.open(tmp_path / "page.html")
    time.sleep(0.3)
    counts = [browser.run(f"{ROWS}.length")]
    for _ in range(3):
        browser.run("document.querySelector('.tall').scrollTop = 1e9")
        time.sleep(0.3)
        counts.append(browser.run(f"{ROWS}.length"))
    assert 50 < counts[0] < 250 and all(a < b < a + 200 for a, b in pairwise(counts))
    last = f"{ROWS}.at(-1)"
    browser.run(f"{last}.focus()")
    browser.press("ArrowDown")  # draws more
    assert browser.run(f"document.activeElement === {ROWS}[{counts[-1]}]")
    browser.click("#classes input")
    browser.type("n08141")
    assert browser.run(f"{ROWS}.length") == 1
