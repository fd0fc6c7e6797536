"""What a post-hoc method is: a function from one fold model's features, heads and logits to logits.

A method is one file that defines one `Step`, and one line in `STEPS`. It names its parameters as
plain data (they are stored in posthoc.json) and either lists `candidates` to search, or has a
`fit` of its own. Every method treats each image by itself, so that rows can come in chunks.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from src.config.schema import Config

Params = dict  # plain data: numbers, texts, lists of them


@dataclass(frozen=True)
class State:
    """What one fold's model offers for N images.

    logits: [N, K], what the steps so far made of the start head's · features: [N, D] or None ·
    start: the start head's name · heads: name → (kind, arrays), see `src.logits.head_logits` ·
    counts: [K], images of each class, of all folds
    """

    logits: np.ndarray
    features: np.ndarray | None
    start: str
    heads: dict[str, tuple[str, dict[str, np.ndarray]]] = field(default_factory=dict)
    counts: np.ndarray | None = None

    def rows(self, which: slice) -> "State":
        features = None if self.features is None else self.features[which]
        return replace(self, logits=self.logits[which], features=features)

    def with_logits(self, logits: np.ndarray) -> "State":
        return replace(self, logits=logits)


@dataclass(frozen=True)
class Step:
    """One post-hoc method.

    each(state, candidates): the logits [N, K] of each candidate in turn, sharing what they have in
        common; the reader is done with one before it asks for the next
    candidates(config): the parameters to search, those nearest to leaving the step out first
    fit(states, labels, config): parameters from the states and labels of several folds, for methods
        that no grid can search; None: search the candidates
    refuses(state, config): why this method cannot act on this state, or None
    scored_by: `metric` (the competition's) or `nll`
    """

    name: str
    each: Callable[[State, Iterable[Params]], Iterator[np.ndarray]]
    candidates: Callable[[Config], list[Params]] | None = None
    fit: Callable[[list[State], list[np.ndarray], Config], Params] | None = None
    refuses: Callable[[State, Config], str | None] = lambda state, config: None
    scored_by: str = "metric"

    def apply(self, state: State, params: Params) -> np.ndarray:
        """Logits [N, K] with these parameters."""
        return next(iter(self.each(state, [params])))
