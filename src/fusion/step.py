"""What a post-hoc method is: a function from one fold model's features, heads and logits to logits.

A method is one file with a subclass of `Step`, a section of keys in src/config/posthoc.py, and one
line in `STEPS`. Its parameters are plain data, or arrays where they are many (src/fusion/store.py
says where they are kept). Every method treats each image by itself, so that rows come in chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from src.config.schema import Config
from src.config.section import Section
from src.errors import UserError
from src.logits import head_logits

Params = dict  # numbers, texts, lists of them, arrays
Head = tuple[str, dict[str, np.ndarray]]  # kind and arrays, see `src.logits.head_logits`


@dataclass(frozen=True)
class State:
    """What one fold's model offers for N images.

    logits: [N, K], what the steps so far made of the start head's · features: [N, D] or None ·
    start: the start head's name · heads: name → (kind, arrays) · counts: [K], images of each class,
    of all folds · given: name → logits [N, K] of heads, as they are: all that are known already,
    and those that are no linear function of `features` · columns: name → text [N], what
    data.columns keeps beside each image · bins: [K], the number of each class's frequency bin, 0
    the most frequent, known where steps are fitted · target: [K] class prior of the leaderboard
    (target_prior), None where it is not known
    """

    logits: np.ndarray
    features: np.ndarray | None
    start: str
    heads: dict[str, Head] = field(default_factory=dict)
    counts: np.ndarray | None = None
    given: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    bins: np.ndarray | None = None
    target: np.ndarray | None = None
    _known: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, which: slice) -> "State":
        features = None if self.features is None else self.features[which]
        given = {name: logits[which] for name, logits in self.given.items()}
        columns = {name: values[which] for name, values in self.columns.items()}
        logits = self.logits[which]
        return replace(self, logits=logits, features=features, given=given, columns=columns)

    def with_logits(self, logits: np.ndarray) -> "State":
        return replace(self, logits=logits)

    def head(self, name: str) -> Head:
        """Errors: UserError when there is no such head."""
        if name not in self.heads:
            raise UserError(
                f"the head {name} is needed and is not among {sorted(self.heads)}; run 04 again, "
                "with the stage2 heads of this config"
            )
        return self.heads[name]

    def logits_of(self, name: str) -> np.ndarray:
        """Logits [N, K] of a head before any step. Errors: UserError when it is not there."""
        if name in self.given:
            return self.given[name]
        kind, arrays = self.head(name)
        return head_logits(self.features, arrays, kind)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What candidates share: made when first asked for, and remembered for these rows and
        these logits alone."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Unfit(Exception):
    """Raised by `fit`, with the reason: the images do not hold what the method learns from."""


class Step:
    """One post-hoc method, with its keys. It either lists `candidates` to search, or fits itself.

    scored_by: `metric` (the competition's) or `nll`
    """

    scored_by = "metric"

    def __init__(self, section: Section, config: Config):
        self.section, self.config = section, config

    @property
    def name(self) -> str:
        return self.section.name

    def refuses(self, state: State) -> str | None:
        """Why this method cannot act on this state, or None."""
        return None

    def reads(self) -> list[str]:
        """Heads beside the start head that it asks the state for."""
        return []

    def columns(self) -> list[str]:
        """Those of data.columns that it reads."""
        return []

    def candidates(self) -> list[Params] | None:
        """Parameters to search, those nearest to leaving the step out first; None: `fit` them."""
        return None

    def options(self, state: State) -> list[Params] | None:
        """Of the candidates, those for this start head: without such as name it as the other."""
        found = self.candidates()
        return found and [params for params in found if params.get("head") != state.start]

    def fit(self, states: list[State], labels: list[np.ndarray]) -> Params:
        """Parameters from the states and labels [n] of several folds. Errors: Unfit, with the
        reason, when they do not hold what it takes: the step is then dropped."""
        raise NotImplementedError

    @staticmethod
    def apply(state: State, params: Params) -> np.ndarray:
        """Logits [N, K] with these parameters."""
        raise NotImplementedError
