"""Class ids → contiguous labels, counts and frequency bins."""

import numpy as np
import pandas as pd

from src.config.data import Bins
from src.metrics import BINS


def class_order(class_ids) -> list[str]:
    """Distinct class ids in label order: ids of digits only by their number (`9` before `4780`,
    `7` before `007`), then all others as text."""

    def key(class_id: str):
        number = class_id.isascii() and class_id.isdigit()
        return (0, int(class_id), len(class_id), "") if number else (1, 0, 0, class_id)

    return sorted(set(class_ids), key=key)


def class_table(train: pd.DataFrame, class_ids: list[str], bins: Bins) -> pd.DataFrame:
    """label, class_id, class_name, count, bin; row i is label i.

    train: the images that are left (class_id, class_name) · class_ids: in label order.
    """
    counts = train["class_id"].value_counts().reindex(class_ids, fill_value=0)
    names = train.groupby("class_id")["class_name"].first()
    return pd.DataFrame(
        {
            "label": range(len(class_ids)),
            "class_id": class_ids,
            "class_name": names.reindex(class_ids).to_numpy(),
            "count": counts.to_numpy(),
            "bin": assign_bins(counts.to_numpy(), bins),
        }
    )


def assign_bins(counts: np.ndarray, bins: Bins) -> np.ndarray:
    """Name of each class's bin, [K], from its number of images.

    terciles and halves split the classes, most frequent first and ties by label, into parts that
    differ by one class at most; the earlier parts get the extra ones.
    """
    names = np.array(BINS[bins.mode], dtype=object)
    if bins.mode == "thresholds":
        which = np.where(counts > bins.many, 0, np.where(counts < bins.few, 2, 1))
        return names[which]
    which = np.empty(len(counts), dtype=np.int64)
    order = np.argsort(-counts, kind="stable")
    for i, part in enumerate(np.array_split(order, len(names))):
        which[part] = i
    return names[which]


def class_lines(classes: pd.DataFrame) -> str:
    """`class_labels.txt`: `label class_id` per line."""
    pairs = zip(classes["label"], classes["class_id"], strict=True)
    return "".join(f"{label} {class_id}\n" for label, class_id in pairs)
