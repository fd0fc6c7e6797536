"""The label text of a dataset: made once, kept beside classes.csv, and there for every later run.

runs/<dataset>/folds/text-<key>.npz   class_id [K] · embeddings [K, E] float32, unit rows · about,
                                      JSON: the encoder and its weights' hash, names, templates

The key is made of the encoder's settings, the names and the templates; the classes are those of
classes.csv. Row c: v = Σ_n Σ_t e(t(n)) / ‖e(t(n))‖ over the names n of class c and templates t, and
v / ‖v‖, as zero-shot classifiers are made (Radford et al., ICML 2021, section 3.1.4).
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from src import cli
from src.artifacts.dataset import Dataset, LabelText
from src.artifacts.files import read_arrays, write_arrays
from src.artifacts.lock import locked
from src.artifacts.work import digest
from src.config.schema import Config
from src.config.text import Text, needs_text
from src.config.tree import dump_config
from src.errors import UserError
from src.language import ENCODERS
from src.language.local import local_sha256
from src.language.names import class_names
from src.logits import unit


def with_text(data: Dataset, config: Config, parts: tuple, accelerator: Accelerator) -> Dataset:
    """The dataset with its label text, if `parts` of the config need one and it has none yet. It is
    made by the main process, and the others read it.

    Errors: UserError for names that are missing or shared, and an encoder that cannot be had.
    """
    if data.text is not None or not needs_text(*parts):
        return data
    folds = data.directory
    with accelerator.main_process_first(), locked(folds / "text"):  # of two commands one makes it
        path = text_file(data, config)
    return replace(data, text=LabelText(read_arrays(path)["embeddings"], path))


def text_file(data: Dataset, config: Config) -> Path:
    """The artifact, which is made if it is not there, damaged, or from other files than now."""
    text, ids = config.text, data.classes["class_id"].tolist()
    by_id = text.encoder.by_class_id
    names = [(class_id,) for class_id in ids] if by_id else class_names(config, data.classes)
    asked = {"encoder": dump_config(text.encoder), "class_id": ids, "names": names}
    asked |= {"templates": list(("{}",) if by_id else text.sentences)}
    path = data.directory / f"text-{digest(asked)[:12]}.npz"
    if path.is_file() and (why := _stale(path, text, ids)):
        cli.say(f"{path}: {why}; making it again")
    elif path.is_file():
        return path
    templates = asked["templates"]
    texts = [t.replace("{}", name) for own in names for name in own for t in templates]
    rows, origin = ENCODERS[text.encoder.name](text.encoder, texts)
    rows = averaged(rows, [len(own) * len(templates) for own in names])
    about = asked | {"origin": origin}
    about.pop("class_id")
    array = np.array(json.dumps(about, ensure_ascii=False))
    write_arrays(path, class_id=np.array(ids), embeddings=rows, about=array)
    cli.say(f"{path}: label text of {len(ids)} classes, {rows.shape[1]} wide, by "
          f"{text.encoder.name}")  # fmt: skip
    return path


def averaged(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    """Unit means of unit rows: of the first counts[0] rows [M, E], the next counts[1], … [K, E]."""
    starts = np.cumsum([0, *counts[:-1]])
    return unit(np.add.reduceat(unit(rows.astype(np.float64)), starts)).astype(np.float32)


def _stale(path: Path, text: Text, ids: list[str]) -> str | None:
    """Why the artifact cannot be used; None: it can."""
    try:
        arrays = read_arrays(path)
        about = json.loads(str(arrays["about"]))
        shape, found = arrays["embeddings"].shape, about["origin"]["sha256"]
    except (UserError, KeyError, ValueError, TypeError) as error:
        return f"damaged ({error})"
    if arrays["class_id"].tolist() != ids or len(shape) != 2 or shape[0] != len(ids):
        return "of other classes"
    now = local_sha256(text.encoder.source)
    return None if now in (None, found) else "made with other weights than are there now"
