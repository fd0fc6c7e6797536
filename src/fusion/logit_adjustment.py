"""Logit adjustment after training (Menon et al., ICLR 2021, "Long-tail learning via logit
adjustment", section 4.1).

A network fitted to the training images carries their class prior in its logits. z_c − τ log N_c,
with N_c the images of class c that this network was trained on (dividing by their sum would move
all logits alike): τ = 0 changes nothing, τ = 1 takes the whole prior out of a network that was
trained with cross-entropy. Balanced softmax has done this in training already, and leaves little
for τ to find.

N_c must be the network's own: where a class has three images, a fold that holds one of them out has
trained on two, and with counts of all images its logits would stay too low. For the same reason the
search ends at τ = 1. Beyond, the step would favour classes that lack images in this fold, which are
those that are held out, and the gain out of fold would be one that test images do not give.
"""

import numpy as np

from src.fusion.step import State, Step


def candidates(config):
    """0 would leave the step out."""
    grid = np.linspace(0, 1, config.posthoc.grid)[1:]
    return [{"tau": round(float(tau), 6)} for tau in grid]


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
