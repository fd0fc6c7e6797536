"""The page's part on labels to look at, and on images unlike their class."""

import pandas as pd

from src.report.confusions import thumbnail
from src.report.context import SUSPECTS, Experiment, Report
from src.report.markup import details, esc, note, section, thousands
from src.report.overview import title
from src.report.suspects import FAR

SHOWN = {"label": 50, "outlier": 24}
WORDS = {
    "label": "Labels that the model disagrees with most",
    "outlier": "Unlike their class",
}


def review(report: Report) -> str:
    """The first suspects of the experiment that is best out of fold; all are in its CSV."""
    leader = report.leader
    if leader is None:
        return ""
    text = (
        "By models that never saw the image. A label is doubted where another class is given at "
        "least the confidence that it usually gets (confident learning), most doubtful first; an "
        "image is unlike its class where its features are far from those of every class, for its "
        "class. How many there are says as much of the model as of the labels: look at the first, "
        "and stop where they are right. All of them are in "
        f"<code>{esc(leader.home / SUSPECTS)}</code>."
    )
    parts = [_kind(leader, kind, report) for kind in WORDS]
    return section("review", "Labels to look at", note(text) + "".join(parts))


def _kind(leader: Experiment, kind: str, report: Report) -> str:
    found = leader.suspects[leader.suspects["kind"] == kind]
    if not len(found):
        return f"<h3>{WORDS[kind]}</h3>{note(_none(leader, kind))}"
    shown = found.head(SHOWN[kind])
    told = f"{thousands(len(found))} images"
    told += f", the first {len(shown)} here" if len(shown) < len(found) else ""
    if kind == "label":
        right = list(leader.stages.values())[-1].scores["accuracy"]
        told += f"; the model is right on {100 * right:.0f} % of all, by the labels as they are"
    head = f"<h3>{WORDS[kind]}</h3>" + note(f"{title(leader)}: {told}.")
    cards = "".join(_card(row) for row in shown.itertuples())
    by_class = _by_class(found)
    return f'{head}<div class="suspects">{cards}</div>{by_class}'


def _none(leader: Experiment, kind: str) -> str:
    """Why nothing is shown."""
    if kind == "label":
        return "None is doubted."
    if all(stage.distance is None for stage in leader.stages.values()):
        return "No head has distances (ncm, knn, cosine)."
    return f"No image is farther than is usual in its class by {FAR:g} robust standard deviations."


def _by_class(found: pd.DataFrame) -> str:
    named = found["class_name"].where(found["class_name"] != "", found["class_id"])
    counts = named.value_counts(sort=True).head(30)
    items = "".join(f"<li>{esc(name)} <small>{n}</small></li>" for name, n in counts.items())
    return details("Classes with the most of them", f'<ul class="counts">{items}</ul>')


def _card(row) -> str:
    data = thumbnail(row.path)
    name = esc(row.image_id)
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{name}" title="{name}">'
    shown = image if data else '<span class="gone">image not found</span>'
    given = _class(row.class_id, row.class_name, row.p_given)
    looks = ""
    if row.suggested_class_id:
        other = _class(row.suggested_class_id, row.suggested_class_name, row.p_suggested)
        looks = f"<span>looks like <b>{other}</b></span>"
    return (
        f"<figure>{shown}<figcaption><span>{row.rank}. {given}</span>{looks}"
        f"<small><code>{name}</code></small></figcaption></figure>"
    )


def _class(class_id: str, name: str, p) -> str:
    shown = f" <small>{100 * float(p):.0f}\u00a0%</small>" if p != "" else ""
    return f"{esc(name or class_id)}{shown}"
