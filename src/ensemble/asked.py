"""What a submission has rows for: test images, or observations where the sample asks for those."""

from dataclasses import dataclass, replace

import numpy as np

from src.artifacts.dataset import Dataset
from src.artifacts.files import read_json
from src.artifacts.work import MANIFEST
from src.config.schema import Config
from src.fusion.observations import names_of, observations_of
from src.submission.unknown import Flags
from src.submission.write import COLUMNS


@dataclass(frozen=True)
class AskedFor:
    """dataset: its `test` has a row for each thing asked for, named by `image_id` · ids: of these
    [R] · rows: [R], of the test images sorted by image_id, which one stands for each; all of them,
    as a slice, so that nothing is copied · of: [M], the observation of each test image; None: each
    stands alone"""

    dataset: Dataset
    ids: np.ndarray
    rows: np.ndarray | slice
    of: np.ndarray | None = None

    def agreed(self, flags: Flags | None) -> Flags | None:
        """Images of one observation are of the unknown class together, where most of them are."""
        if not flags or self.of is None:
            return flags
        share = np.bincount(self.of, flags.flagged) / np.bincount(self.of)
        return replace(flags, flagged=(share > 0.5)[self.of])


def asked_for(config: Config, dataset: Dataset) -> AskedFor:
    """Observations if the sample's column of ids is data.observation."""
    ids = np.sort(dataset.test["image_id"].to_numpy(str))
    test, origin = dataset.test.set_index("image_id").loc[ids], dataset.directory / "test.csv"
    observed = observations_of(config, dataset.test, ids, origin)
    every = slice(None)
    if observed is None:
        return AskedFor(dataset, ids, every)
    facts = read_json(dataset.directory / MANIFEST, COLUMNS)["submission"]
    if facts["id_column"] != config.data.observation:
        return AskedFor(dataset, ids, every, observed.of)
    names = names_of(test.reset_index(), config.data.observation, origin)[observed.first]
    images = dataset.test["image_id"].isin(ids[observed.first])  # in the order of test.csv
    called = dict(zip(ids[observed.first], names, strict=True))
    reduced = dataset.test[images].assign(image_id=lambda t: t["image_id"].map(called))
    whole = replace(dataset, test=reduced.reset_index(drop=True))
    return AskedFor(whole, names, observed.first, observed.of)
