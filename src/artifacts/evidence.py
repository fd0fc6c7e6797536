"""What networks looked at, for a sample of images: predict/evidence/evidence.npz.

image_id, split, kind [M] text · label, predicted, explained, fold [M] · probability [M] · size [] ·
jpeg: the bytes of all pictures one after the other, jpeg_end [M]: where each ends · box.<name>
[M, n, 4] · map.<name> [M, h, w]
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.artifacts.files import read_arrays, write_arrays
from src.artifacts.work import checked
from src.errors import UserError

FILE = "evidence.npz"
DIRECTORY = "evidence"  # below predict/
OUT_OF_FOLD, TEST = "oof", "test"
KINDS = {
    OUT_OF_FOLD: ("confident and wrong", "wrong", "right"),
    TEST: ("most confident", "least confident"),
}
BOX, MAP = "box.", "map."  # before a name in the file
COLUMNS = {  # numpy's kinds of the arrays [M]
    "image_id": "U", "split": "U", "kind": "U", "label": "iu", "predicted": "iu",
    "explained": "iu", "fold": "iu", "probability": "f",
}  # fmt: skip


@dataclass(frozen=True)
class Looked:
    """M images of one experiment, each seen by one network. [M] each:

    image_id · split: oof or test · kind: see KINDS · label: -1 where unknown · predicted,
    probability: of the final logits · explained: the class that the network itself predicts for
    this view, which its maps are of · fold: of the network, -1 for `full` · jpeg: what it saw,
    maybe smaller

    size: height and width in pixels of what it saw, which boxes are in · boxes: name → [M, n, 4]
    float, see `Evidence` in src/networks/base.py · maps: name → [M, h, w] float16, the largest
    place of each map is 1, or all are 0
    """

    image_id: np.ndarray
    split: np.ndarray
    kind: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    explained: np.ndarray
    fold: np.ndarray
    probability: np.ndarray
    jpeg: list[bytes]
    size: int
    boxes: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_id)

    def save(self, path: Path) -> Path:
        arrays = {name: getattr(self, name) for name in COLUMNS}
        arrays |= {"size": np.int64(self.size)}
        arrays |= {"jpeg": np.frombuffer(b"".join(self.jpeg), np.uint8)}
        arrays |= {"jpeg_end": np.cumsum([len(data) for data in self.jpeg], dtype=np.int64)}
        arrays |= {BOX + name: boxes for name, boxes in self.boxes.items()}
        arrays |= {MAP + name: maps for name, maps in self.maps.items()}
        return write_arrays(path, **arrays)


def load_looked(path: Path) -> Looked:
    """Errors: UserError for a file that is missing, damaged, or lacks an array."""
    arrays = read_arrays(checked(path))
    rows = {*COLUMNS, "jpeg_end"}
    rows |= {name for name in arrays if name.startswith((BOX, MAP))}
    lacking = sorted(({*rows, "jpeg", "size"}) - arrays.keys())
    counts = {arrays[name].shape[:1] for name in rows if name in arrays}
    kinds = all(arrays[name].dtype.kind in kind for name, kind in COLUMNS.items() if name in arrays)
    if lacking or len(counts) != 1 or not kinds:
        raise UserError(
            f"{path}: not what 05 writes (missing: {lacking or 'nothing'}; images: "
            f"{sorted(counts)}); delete it and run 05 again"
        )
    ends, data = arrays["jpeg_end"].tolist(), arrays["jpeg"].tobytes()
    return Looked(
        **{name: arrays[name] for name in COLUMNS},
        jpeg=[data[a:b] for a, b in zip([0, *ends], ends, strict=False)],
        size=int(arrays["size"]),
        boxes={n.removeprefix(BOX): a for n, a in arrays.items() if n.startswith(BOX)},
        maps={n.removeprefix(MAP): a for n, a in arrays.items() if n.startswith(MAP)},
    )
