"""Two heads side by side: which one stands beside the start head, and on which scale it is read.

z are the start head's logits, z_d the other's; cosines lie in [-1, 1], linear logits do not.

    none    z̃ = z_d
    minmax  each row of z_d mapped onto the range of that row of z (`src.logits.to_range`)
    eta     z̃ = η z_d with η = max_c z / max_c z_d of the row (`src.logits.by_eta`)

One of them, never two: the source computes η on z_d as it is and then multiplies what min–max has
scaled already.
"""

import numpy as np

from src.config.heads import NCM
from src.config.names import branch_of, matching, title_of
from src.config.schema import Config
from src.errors import UserError
from src.fusion.step import State, Step
from src.logits import by_eta, to_range

SCALERS = {"none": lambda z, like: z, "minmax": to_range, "eta": by_eta}


def partners(config: Config, asked: tuple[str, ...] | None) -> list[str]:
    """Names of the heads asked for, each at all branches where it names none; None: those of kind
    ncm."""
    names = config.head_names
    if asked is None:
        titles = {head.title for head in config.stage2 if isinstance(head, NCM)}
        return [name for name in names if title_of(name) in titles]
    return list(dict.fromkeys(n for one in asked for n in matching(one, names)))


def partner(config: Config, asked: str | None, start: str) -> str | None:
    """The one head beside `start`: of the same branch where there are several; None: there is no
    other."""
    found = partners(config, None if asked is None else (asked,))
    found = [name for name in found if name != start]
    return min(found, key=lambda name: branch_of(name) != branch_of(start), default=None)


class Paired(Step):
    """A step that sets one other head beside the start head: the key `head` of its section, or the
    first of kind ncm."""

    def reads(self):
        return partners(self.config, None if self.section.head is None else (self.section.head,))

    def refuses(self, state: State) -> str | None:
        if (head := self.other(state)) is None:
            return "needs another head: one of kind ncm in stage2, or one named in `head`"
        return check_pair(state, head)

    def other(self, state: State) -> str | None:
        return partner(self.config, self.section.head, state.start)


def check_pair(state: State, head: str) -> str | None:
    """Why `head` cannot be computed beside the start head, or None. Errors: UserError for a head
    of another number of classes."""
    if head not in state.given and state.features is None:
        return "needs features, none are stored"
    _logits(state.rows(slice(0, 1)), head)
    return None


def scaled(state: State, head: str, scaler: str) -> np.ndarray:
    """z̃ of a head, [N, K], computed once for all who ask for it."""
    z = state.once(head, lambda: _logits(state, head))
    return state.once((head, scaler), lambda: SCALERS[scaler](z, state.logits))


def _logits(state: State, head: str) -> np.ndarray:
    found, num_classes = state.logits_of(head), state.logits.shape[1]
    if found.shape[1] != num_classes:
        raise UserError(
            f"the head {head} has {found.shape[1]} classes and {state.start} has {num_classes}: "
            "they cannot be fused. One of them was made from another classes.csv; run 02 and 03 "
            "again with --overwrite"
        )
    return found
