"""What a combiner is: the log-probabilities of many members → those of one.

A combiner is one file with a subclass of `Combiner`, a section of keys in src/config/ensemble.py,
and one line in the table `COMBINERS`. Its parameters are plain data, or arrays where they are many
(src/fusion/store.py). It treats each image by itself, so that rows come in chunks.
"""

import numpy as np

from src.config.section import Section
from src.fusion.pool import Members, Pool

Params = dict  # numbers, texts, lists of them, arrays


class Combiner:
    """One way of combining, with its keys."""

    def __init__(self, section: Section):
        self.section = section

    def fit(self, pool: Pool, rows: np.ndarray) -> Params:
        """Parameters from the images `rows` (a mask, [N]) of the pool alone."""
        raise NotImplementedError

    @staticmethod
    def combine(members: Members, params: Params) -> np.ndarray:
        """Log-probabilities [N, K]; a constant per image may be added to them."""
        raise NotImplementedError

    @staticmethod
    def shares(params: Params) -> list[float] | None:
        """The weight of each member, sum 1, for tables; None: there is no such thing."""
        return None
