"""Logit adjustment after training (Menon et al., ICLR 2021, "Long-tail learning via logit
adjustment", section 4.1).

A network fitted to the training images carries their class prior in its logits. z_c − τ log N_c,
with N_c the class's images (dividing by their sum would move all logits alike): τ = 0 changes
nothing, τ = 1 takes the whole prior out of a network that was trained with cross-entropy. Balanced
softmax has done this in training already, and leaves little for τ to find.
"""

import numpy as np

from src.fusion import tau_norm
from src.fusion.step import State, Step


def candidates(config):
    """Those of τ-normalisation but 0, which would leave the step out."""
    return [params for params in tau_norm.candidates(config) if params["tau"] > 0]


def each(state: State, candidates):
    prior = np.log(np.maximum(state.counts, 1)).astype(state.logits.dtype)  # [K]
    for params in candidates:
        yield state.logits - np.asarray(params["tau"], prior.dtype) * prior


def refuses(state: State, config):
    if state.counts is None:
        return "needs the classes' counts, none are given"
    if state.counts.min() == state.counts.max():
        return "all classes have as many images"
    return None


LOGIT_ADJUSTMENT = Step("logit_adjustment", each, candidates, refuses=refuses)
