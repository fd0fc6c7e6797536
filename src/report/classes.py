"""The page's table of classes: sorted and searched in the browser, its rows drawn as they are seen.

Everything is data in the page (JSON), drawn by page.js; 8,142 classes are about a megabyte. Images
are bounded: at most THUMBNAILS classes have one, those of lowest recall first.
"""

import json

import numpy as np
import pandas as pd

from src.metrics import bin_names, wilson
from src.plots.style import bin_color
from src.report.confusions import thumbnail
from src.report.context import Report
from src.report.markup import esc, missing, note, section
from src.report.overview import title
from src.report.stages import Scored

THUMBNAILS, SIDE = 400, 72  # images in the page, pixels
COLUMNS = (  # name, kind: how page.js shows and sorts it
    ("class", "text"),
    ("bin", "bin"),
    ("images", "count"),
    ("recall", "recall"),
    ("precision", "share"),
    ("confidence", "share"),
    ("most often taken for", "text wide"),
    ("its share", "share"),
    ("suspects", "count"),
)


def classes(report: Report) -> str:
    """Of the experiment that is best out of fold."""
    leader = report.leader
    if leader is None:
        nothing = missing("No out-of-fold predictions.", "02_train_stage1.py")
        return section("classes", "Classes", nothing)
    stage = list(leader.stages)[-1]
    text = (
        f"{title(leader)}, {esc(stage)}, out of fold. Recall is the share of the class's images "
        "that are right, with its 95 % interval (Wilson); precision the share of right ones among "
        "what is taken for the class; confidence the mean of the largest probability; suspects "
        "are images that look wrongly labelled or unlike their class. Click a column to sort by "
        "it; point at a row, or go through them with the arrow keys, for its image."
    )
    scored, known = leader.stages[stage], report.data.classes
    rows = class_rows(scored, known, leader.suspects)
    table = page_table(rows, scored, known, report.data.images)
    return section("classes", "Classes", note(text) + table)


def page_table(
    rows: list[list], scored: Scored, classes: pd.DataFrame, images: pd.DataFrame
) -> str:
    """The empty table and its data. rows: of `class_rows` · images: folds.csv"""
    data = {
        "columns": COLUMNS,
        "bins": {b: bin_color(b) for b in bin_names(classes["bin"].to_numpy())},
        "rows": rows,
        "thumbs": _thumbs(rows, scored, images),
    }
    head = "".join(
        f'<th scope=col class="{kind}" aria-sort="none"><button>{esc(name)}</button></th>'
        for name, kind in COLUMNS
    )
    return (
        '<div class="rows" data-rows><label class="search">Search '
        '<input type="search" placeholder="a name, an id, a bin" autocomplete="off"></label> '
        '<span class="told note"></span>'
        f'<div class="scroll tall"><table><thead><tr>{head}</tr></thead><tbody></tbody></table>'
        '<div class="end"></div></div>'
        '<div class="hover" hidden></div>'
        "<noscript>This table needs JavaScript; nothing is loaded from outside.</noscript>"
        f'<script type="application/json">{inert(data)}</script></div>'
    )


def inert(data) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens a tag."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def class_rows(scored: Scored, classes: pd.DataFrame, suspects: pd.DataFrame) -> list[list]:
    """A row per class: COLUMNS, then recall's interval. None where there is nothing to divide by.
    suspects: image_id, class_id; an image that is suspect twice counts once."""
    k = len(classes)
    label, guess = scored.label, scored.outcomes.predicted
    total, claimed = np.bincount(label, minlength=k), np.bincount(guess, minlength=k)
    right = np.bincount(label, label == guess, k)
    sure = np.bincount(label, scored.outcomes.confidence, k)
    low, high = wilson(right, total)
    other, times = _taken_for(label[label != guess], guess[label != guess], k)
    doubts = suspects.drop_duplicates("image_id")["class_id"].value_counts()
    names = [_called(row) for row in classes.itertuples()]

    def share(value, of):
        return round(float(value / of), 4) if of else None

    return [
        [
            names[c],
            classes["bin"].iloc[c],
            int(classes["count"].iloc[c]),
            share(right[c], total[c]),
            share(right[c], claimed[c]),
            share(sure[c], total[c]),
            names[other[c]] if times[c] else "",
            share(times[c], total[c]),
            int(doubts.get(classes["class_id"].iloc[c], 0)),
            [round(float(low[c]), 4), round(float(high[c]), 4)],
        ]
        for c in range(k)
    ]


def _called(row) -> str:
    """Name and id; the id alone where there is no name, or it is the same."""
    if not row.class_name or row.class_name == row.class_id:
        return str(row.class_id)
    return f"{row.class_name} · {row.class_id}"


def _taken_for(label: np.ndarray, guess: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The class that wrong images of each class are most often taken for, and how many, [K]; the
    smaller label of equals. No table [K, K]."""
    pair, count = np.unique(label.astype(np.int64) * k + guess, return_counts=True)
    order = np.lexsort((-pair, count))  # of each class the last one stays
    other, times = np.zeros(k, dtype=int), np.zeros(k, dtype=int)
    other[pair[order] // k], times[pair[order] // k] = pair[order] % k, count[order]
    return other, times


def _thumbs(rows: list[list], scored: Scored, images: pd.DataFrame) -> list[str | None]:
    """The surest right image of a class, else its first, as JPEG in base64."""
    sure = pd.DataFrame({"image_id": scored.image_id, "label": scored.label})
    sure["score"] = scored.outcomes.confidence * (scored.outcomes.predicted == scored.label)
    sure = images[["image_id", "label", "path"]].merge(sure, "left", ["image_id", "label"])
    sure = sure.fillna({"score": 0.0}).sort_values(["score", "image_id"], ascending=[False, True])
    path = sure.drop_duplicates("label").set_index("label")["path"]
    worst = sorted(range(len(rows)), key=lambda c: (rows[c][3] is None, rows[c][3] or 0, c))
    shown = set(worst[:THUMBNAILS])
    shown &= set(path.index)
    return [thumbnail(path[c], SIDE) if c in shown else None for c in range(len(rows))]
