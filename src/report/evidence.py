"""The page of pictures: what the networks looked at when they were right and when not."""

import base64
import io

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image

from src.artifacts.dataset import check_same_folds
from src.artifacts.evidence import DIRECTORY, FILE, KINDS, OUT_OF_FOLD, Looked, load_looked
from src.errors import UserError
from src.metrics import bin_names
from src.report.context import Experiment, Report
from src.report.markup import details, esc, note, section, swatch
from src.report.overview import title

BUDGET = 3_000_000  # characters of the page for all pictures; fewer of each kind are shown to fit
STAGE = f"predict/{DIRECTORY}"
SHOWN_MAPS = 8  # page.css knows as many
SMOOTH = 28  # pixels in height and width of a map at least: interpolated before it is coloured
FLAT = 1e-3  # of its largest value: what float16 can tell apart
STRONGEST = 0.7  # opacity of a map's largest place
COLOURS = ("#38d9f5", "#ffd43b", "#ff6bcb", "#8ce99a")  # of boxes, by name; they lie on photos
SPLITS = {"oof": "Out-of-fold images", "test": "Test images"}
BINS_ARE = {"oof": "bins are of the true class", "test": "bins are of the predicted class"}
MEANING = {
    "class_activation": "where the score of the class comes from",
    "rollout": "how much of the class token comes from each patch, mean over heads",
    "tokens": "patches that were selected",
    "object": "the object that was cropped",
    "parts": "the parts that were cropped",
    "boost": "stripes that stand out",
    "suppress": "how much of a stripe is taken away",
}


def evidence(report: Report) -> str:
    """Pictures by bin, right and wrong; empty where 05 kept none."""
    found = {e.name: e for e in report.experiments if STAGE in e.manifests}
    if not found:
        return ""
    parts = [
        f"<h3>{title(e)}</h3>{_of(e, report, number, BUDGET // len(found))}"
        for number, e in enumerate(found.values())
    ]
    text = (
        "Out-of-fold images are shown through the network that never saw them, test images through "
        "the first one. Classes and confidences are those of the final logits. Over the picture a "
        "map is clear where it is smallest, and dark, red, then yellow where it is larger."
    )
    return section("evidence", "What it looked at", note(text) + "".join(parts))


def _of(experiment: Experiment, report: Report, number: int, budget: int) -> str:
    """One experiment's pictures below the switches that show and hide what is drawn on them."""
    manifests = experiment.manifests
    try:
        check_same_folds(manifests[STAGE], report.data, experiment.home / STAGE)
        looked = load_looked(experiment.home / STAGE / FILE)
    except UserError as error:
        return f'<p class="missing">{esc(error)}</p>'
    posthoc = manifests.get("posthoc", {}).get("outputs", {}).get("oof.npz")
    then = manifests[STAGE]["inputs"].get("posthoc/oof.npz")
    stale = note("Of an earlier calibration; run 05 again.") if then != posthoc else ""
    table = _table(looked, report.data.classes)
    cards = [_card(looked, row, report.data.classes) for row in range(len(looked))]
    shown = _fitting(table["rank"].to_numpy(), [len(card) for card in cards], budget)
    kept = table[table["rank"] < shown].assign(card=lambda t: [cards[row] for row in t.index])
    groups = "".join(_split(split, kept) for split in KINDS)
    if kept.shape[0] < len(table):
        stale += note(f"The first {shown} of each bin and kind; all are in {esc(STAGE)}.")
    return f'{stale}<div class="look">{_switches(looked, number)}<div>{groups}</div></div>'


def _table(looked: Looked, classes: pd.DataFrame) -> pd.DataFrame:
    """split, kind, bin and the rank within them, of each picture."""
    known = np.where(looked.split == OUT_OF_FOLD, looked.label, looked.predicted)
    table = pd.DataFrame({"split": looked.split, "kind": looked.kind})
    table["bin"] = classes["bin"].to_numpy()[known]
    return table.assign(rank=table.groupby(["split", "kind", "bin"]).cumcount())


def _fitting(rank: np.ndarray, sizes: list[int], budget: int) -> int:
    """How many of each group fit into the budget; at least 1."""
    total = np.cumsum(np.bincount(rank, sizes)) if len(rank) else np.zeros(1)
    return max(1, int((total <= budget).sum()))


def _split(split: str, kept: pd.DataFrame) -> str:
    parts = []
    for kind in KINDS[split]:
        found = kept[(kept["split"] == split) & (kept["kind"] == kind)]
        bins = "".join(
            f"<h5>{swatch(name)}</h5>"
            f'<div class="gallery">{"".join(found.loc[found["bin"] == name, "card"])}</div>'
            for name in bin_names(found["bin"].to_numpy())
        )
        if bins:
            opened = split == OUT_OF_FOLD and not parts
            parts.append(details(f"<b>{esc(kind.capitalize())}</b>", bins, opened))
    if not parts:
        return ""
    return f"<h4>{SPLITS[split]} <small>{BINS_ARE[split]}</small></h4>{''.join(parts)}"


def _switches(looked: Looked, number: int) -> str:
    """One map or none, and boxes or none; page.css does the rest."""
    names = list(looked.maps)[:SHOWN_MAPS]
    parts = []
    for i, name in enumerate([*names, "no map"] if names else []):
        kind = "none" if i == len(names) else f"m{i}"
        checked = " checked" if i == 0 else ""
        radio = f'<input type="radio" name="look{number}" class="{kind}"{checked}>'
        parts.append(f"<label>{radio}{_named(name)}</label>")
    if looked.boxes:
        keys = ", ".join(
            f'<span class="dot" style="--c:{_colour(i)}"></span>{_named(name)}'
            for i, name in enumerate(looked.boxes)
        )
        parts.append(f'<label><input type="checkbox" class="boxes" checked>{keys}</label>')
    return "\n".join(parts)


def _named(name: str) -> str:
    """A map or box and what it means; `boost_4` is the `boost` of a scale."""
    means = MEANING.get(name) or MEANING.get(name.partition("_")[0])
    return esc(name.replace("_", " ")) + (f" <small>{means}</small>" if means else "")


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _card(looked: Looked, row: int, classes: pd.DataFrame) -> str:
    """One picture: what the network saw, maps and boxes over it, and the classes below."""
    name = esc(looked.image_id[row])
    layers = [f'<img src="{_uri("jpeg", looked.jpeg[row])}" alt="{name}" title="{name}">']
    for i, maps in enumerate(list(looked.maps.values())[:SHOWN_MAPS]):
        if maps[row].any():
            source = _uri("png", heat(maps[row]))
            layers.append(f'<img class="heat m{i}" src="{source}" alt="">')
    layers.append(_drawn(looked, row))
    return (
        f'<figure class="card"><div>{"".join(layers)}</div>'
        f"<figcaption>{_caption(looked, row, classes)}</figcaption></figure>"
    )


def _caption(looked: Looked, row: int, classes: pd.DataFrame) -> str:
    """True class → predicted class with its probability, and the images that both have."""
    label, guess, own = (int(a[row]) for a in (looked.label, looked.predicted, looked.explained))
    text = f"<b>{100 * looked.probability[row]:.0f}\u00a0%</b> {_class(guess, classes)}"
    if label >= 0 and label != guess:
        text = f"{_class(label, classes)} <span>→ {text}</span>"
    if own != guess:
        name = esc(_name(own, classes))
        text += f"<small>the network itself says {name}; what is drawn is of that</small>"
    return text


def _class(label: int, classes: pd.DataFrame) -> str:
    row = classes.iloc[label]
    what = f"{row['count']} image{'s' if int(row['count']) != 1 else ''}"
    return f"{esc(_name(label, classes))} <small>{swatch(row['bin'])}, {what}</small>"


def _name(label: int, classes: pd.DataFrame) -> str:
    return classes["class_name"].iloc[label] or classes["class_id"].iloc[label]


def _drawn(looked: Looked, row: int) -> str:
    """Boxes as an SVG over the picture; those without area are none."""
    shapes = []
    for i, boxes in enumerate(looked.boxes.values()):
        for x0, y0, x1, y1 in boxes[row].astype(float):
            if x1 > x0 and y1 > y0:
                shapes.append(
                    f'<rect x="{x0:.4g}" y="{y0:.4g}" width="{x1 - x0:.4g}" '
                    f'height="{y1 - y0:.4g}" stroke="{_colour(i)}"/>'
                )
    if not shapes:
        return ""
    view = f"0 0 {looked.size} {looked.size}"
    return f'<svg class="boxes" viewBox="{view}" aria-hidden="true">{"".join(shapes)}</svg>'


def heat(values: np.ndarray) -> bytes:
    """A map [h, w] as a small PNG, clear at its smallest value, and where all are the same."""
    v = values.astype(np.float32)
    v = (v - v.min()) / max(v.max() - v.min(), FLAT)
    size = [max(side, SMOOTH) for side in v.shape[::-1]]
    v = np.clip(Image.fromarray(v).resize(size, Image.Resampling.BICUBIC), 0, 1)
    pixels = matplotlib.colormaps["inferno"](v)
    pixels[..., 3] = STRONGEST * v
    file = io.BytesIO()
    Image.fromarray((255 * pixels).round().astype(np.uint8), "RGBA").save(file, "PNG")
    return file.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
