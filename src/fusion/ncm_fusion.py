"""Convex fusion of the start head's logits with those of a nearest-class-mean head.

z_d are the NCM head's logits, by default cos(f, m_c) over the class means m_c; z̃_d is z_d mapped,
per image, onto the range of z (`src.logits.to_range`), as the two live on different scales; result
w · z + (1 − w) · z̃_d. w = 1 would leave the step out, w = 0 is pure NCM. Source:
github.com/Sonseca97/fyp-long-tail-recognition, with the NCM classifier of Kang et al. (2020).
"""

import numpy as np

from src.fusion.step import State, Step
from src.logits import head_logits, to_range


def ncm_heads(config) -> list[str]:
    return [head.title for head in config.stage2 if head.head == "ncm"]


def candidates(config):
    weights = np.linspace(1, 0, config.posthoc.grid)[1:]
    return [{"w": round(float(w), 6), "head": h} for w in weights for h in ncm_heads(config)]


def each(state: State, candidates):
    scaled = {}
    for params in candidates:
        head = params["head"]
        if head not in scaled:
            kind, arrays = state.heads[head]
            ncm = head_logits(state.features, arrays, kind)
            scaled[head] = to_range(ncm, state.logits)
        yield params["w"] * state.logits + (1 - params["w"]) * scaled[head]


def refuses(state: State, config):
    if state.features is None:
        return "needs features, none are stored"
    if not ncm_heads(config):
        return "needs a head of kind ncm in stage2"
    if state.start in ncm_heads(config):
        return "the start head is an NCM already"
    return None


NCM_FUSION = Step("ncm_fusion", each, candidates, refuses=refuses)
