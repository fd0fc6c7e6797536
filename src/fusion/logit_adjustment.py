"""Logit adjustment after training (Menon et al., ICLR 2021, "Long-tail learning via logit
adjustment", section 4.1).

A network that was trained on images as they are carries their class prior in its logits.
z_c − τ log N_c, with N_c the images of class c (dividing by their sum would move all logits alike):
τ = 0 changes nothing, τ = 1 takes the whole prior out. Heads that are balanced already are left
alone.

N_c counts the images of all folds. A fold's own counts would say which class lacks an image, the
one held out: where classes have three images, that alone raises the score out of fold, by a gain
that test images do not give.
"""

import numpy as np

from src.config.losses import balanced_by
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
    if state.start != "stage1":
        return f"{state.start} is balanced already"
    if choice := balanced_by(config.model, config.train):
        return f"{choice} has balanced the classes already"
    if state.counts is None:
        return "needs the classes' counts, none are given"
    if state.counts.min() == state.counts.max():
        return "all classes have as many images"
    return None


LOGIT_ADJUSTMENT = Step("logit_adjustment", each, candidates, refuses=refuses)
