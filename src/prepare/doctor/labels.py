"""Which column of a training table is the class, and what the others are."""

import re
from dataclasses import dataclass, field

import pandas as pd

from src.config.data import OURS
from src.errors import UserError, shortened, some
from src.prepare.one_hot import chosen, flags

WORDS = (  # what columns of class ids are called, the surest first
    "class_id", "label", "class", "target", "category_id", "category", "species_id", "species",
    "classid", "label_id", "labels", "breed", "variety", "type", "taxon_id", "name", "class_name",
    "landmark_id", "id", "y",
)  # fmt: skip
SURE = WORDS.index("variety")  # from here on, what is called so may well be something else
PARTS = (
    "label",
    "labels",
    "class",
    "species",
    "breed",
    "category",
    "target",
    "variety",
)  # of names
FRACTION = re.compile(r"[-+]?\d*\.\d+(e[-+]?\d+)?", re.IGNORECASE)
WHOLE = re.compile(r"\d+\.0")
SEPARATORS = re.compile(r"[ ,;|]+")
UNIQUE = 0.9  # share of different cells from which a column is no class
FEW = 30  # columns that are kept beside the images


@dataclass
class Labels:
    """column: of class ids · why: it was taken · name: the column of the classes' names, if any ·
    others: what was considered, and why it is not the class · sure: whether anything but the order
    of the columns decided · one_hot: in place of `column`, those of 0 and 1"""

    column: str
    why: str
    name: str | None = None
    others: dict[str, str] = field(default_factory=dict)
    sure: bool = True
    one_hot: tuple[str, ...] = ()


def labels_of(
    table: pd.DataFrame, image_column: str, in_test: set[str], sample: pd.DataFrame | None
) -> Labels | dict[str, str]:
    """Where no column can be the class, why not, by column.

    in_test: columns of the table of test images · sample: the sample submission's first rows.
    Errors: UserError for a column per class of which several hold for one image.
    """
    names = [name for name in table if name != image_column]
    out = {name: why for name in names if (why := _no_class(table[name]))}
    evidence = {n: _evidence(table[n], n, sample) for n in names if n not in out}
    doubts = {name: why for name in evidence if (why := _doubt(table[name]))}
    if any(name not in in_test for name in evidence):
        doubts |= {n: "test images have it, too" for n in evidence if n in in_test}
    sure = len(WORDS) - SURE
    out |= {n: why for n, why in doubts.items() if evidence[n][0] <= sure}
    left = [name for name in evidence if name not in out]
    if not left:
        return out
    evidence = {name: evidence[name] for name in left}
    if found := _one_hot(table, evidence, out, sample):
        return found
    best = max(left, key=lambda name: _rank(evidence[name][0], name in doubts, table[name]))
    points, why = evidence[best]
    why = why or ("no other can be" if len(left) == 1 else "it has the most values")
    same = [name for name in left if name != best and _one_to_one(table, best, name)]
    out |= {name: "it goes with it, one to one" for name in same}
    for name in left:
        if name != best and name not in same:
            coarser = table[name].nunique() < table[best].nunique()
            out[name] = f"{'coarser, ' if coarser else ''}{table[name].nunique()} values"
    name = next((name for name in same if not table[name].str.fullmatch(r"[\d.]+").all()), None)
    rivals = [n for n in left if n != best and n not in same]
    certain = not rivals or (points > 0 and best not in doubts)
    if _several(table[best]):
        certain = False
        why += (
            ", but several words of its cells are put together in other cells, too: where they are "
            "several classes of one image, each combination is a class of its own here"
        )
    if (table[best] != table[best].str.strip()).any():
        certain = False
        why += ", though its cells begin or end with spaces, which are part of the class ids here"
    return Labels(best, why, name, out, sure=certain)


def _rank(points: int, doubtful: bool, cells: pd.Series) -> tuple[int, int, int]:
    """What is called as classes are, without a doubt before with one, and then all others."""
    return (1 if doubtful else 2) * (points > 0), points, cells.nunique()


def kept_columns(table: pd.DataFrame, test: pd.DataFrame, but: set[str]) -> list[str]:
    """Columns that train and test images have, beside ids and labels, and that say something."""
    shared = [name for name in table if name in test and name not in but | set(OURS)]
    said = [name for name in shared if name.strip() and 1 < table[name].nunique()]
    return said[:FEW]


def _no_class(cells: pd.Series) -> str | None:
    """Why a column is not the class; None: it could be."""
    different = cells.nunique()
    if different < 2:
        return "one value in every row"
    if (empty := int((cells.str.strip() == "").sum())) > len(cells) / 2:
        return f"empty in {empty} rows"
    if different == len(cells) or (different > UNIQUE * len(cells) and len(cells) >= 10):
        return "another value in nearly every row"
    if any(FRACTION.fullmatch(c) and not WHOLE.fullmatch(c) for c in cells.unique()):
        return "numbers with fractions"
    return None


def _doubt(cells: pd.Series) -> str | None:
    """Why a column is the class only if it is called so."""
    if empty := int((cells.str.strip() == "").sum()):
        return f"empty in {empty} rows"
    return "numbers with .0" if any(map(WHOLE.fullmatch, cells.unique())) else None


def _several(cells: pd.Series) -> bool:
    """Whether cells look like lists of classes: of numbers, of what also stands alone, or of few
    words in many combinations."""
    values = set(cells)
    lists = [words for v in values if len(words := SEPARATORS.split(v.strip())) > 1]
    if len(lists) < 2:
        return False
    words = {word for several in lists for word in several}
    if all(word.isdigit() for word in words):
        return True
    return 2 * len(words & values) >= len(words) or len(lists) >= 2 * len(words)


def _evidence(cells: pd.Series, name: str, sample: pd.DataFrame | None) -> tuple[int, str]:
    """How much speaks for a column, and what."""
    values = set(cells)
    if sample is not None:
        columns = list(sample)[1:]
        named = [c for c in columns if c in values or any(c.endswith(f"_{v}") for v in values)]
        if len(columns) > 1 and len(named) > len(columns) / 2:
            return 100, f"its values are columns of the sample submission ({some(named)})"
        if name in columns:
            return 50, "the sample submission has a column of that name"
        words = {word for cell in sample[columns[0]] for word in cell.split()} if columns else ()
        if words and set(words) <= values:
            return (
                30,
                f"the sample submission's {columns[0]!r} has its values, {some(sorted(words))}",
            )
    parts = re.findall(r"[A-Z]*[a-z]+|[A-Z]+|\d+", name)
    lower = "_".join(parts).lower()
    if lower in WORDS:
        return len(WORDS) - WORDS.index(lower), "its name says"
    return (1, "its name says") if {*lower.split("_")} & {*PARTS} else (0, "")


def _one_to_one(table: pd.DataFrame, a: str, b: str) -> bool:
    pairs = table[[a, b]].drop_duplicates()
    return len(pairs) == table[a].nunique() == table[b].nunique()


def _one_hot(
    table: pd.DataFrame, evidence: dict, out: dict[str, str], sample: pd.DataFrame | None
) -> Labels | None:
    """A column of 0 and 1 for each class, where nothing else is called as classes are.

    evidence: of each column that could be the class · out: why the others are not
    """
    columns = flags(table[list(evidence)])
    asked = sample is not None and set(columns) <= set(sample)
    rest = [name for name in evidence if name not in columns]
    if len(columns) < (2 if asked else 3) or any(evidence[name][0] for name in rest):
        return None
    ones = chosen(table, columns).sum(axis=1)
    if (ones == 1).all():
        why = f"each row has a 1 in one of {len(columns)} columns of 0 and 1 ({some(columns)})"
        others = out | {name: f"{table[name].nunique()} values" for name in rest}
        return Labels("", why, others=others, one_hot=tuple(columns))
    if rest:
        return None
    raise UserError(
        "the training table says several classes of one image, or none "
        f"({shortened(some(columns))}: rows sum to {ones.min()} … {ones.max()}); what is here is "
        "for one class per image."
    )
