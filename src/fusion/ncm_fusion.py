"""Convex fusion of the start head's logits with those of a nearest-class-mean head.

z_d are the NCM head's logits, by default cos(f, m_c) over the class means m_c; z̃_d is z_d mapped,
per image, onto the range of z (`src.logits.to_range`), as the two live on different scales; result
w · z + (1 − w) · z̃_d. w = 1 would leave the step out, w = 0 is pure NCM. Source:
github.com/Sonseca97/fyp-long-tail-recognition, with the NCM classifier of Kang et al. (2020).
"""

import numpy as np

from src.config.names import title_of
from src.fusion.step import State, Step
from src.logits import to_range


class NCMFusion(Step):
    def reads(self):
        titles = {head.title for head in self.config.stage2 if head.head == "ncm"}
        return [name for name in self.config.head_names if title_of(name) in titles]

    def candidates(self):
        weights = np.linspace(1, 0, self.section.grid)[1:]
        return [{"w": round(float(w), 6), "head": h} for w in weights for h in self.reads()]

    def refuses(self, state: State):
        if state.features is None:
            return "needs features, none are stored"
        if not self.reads():
            return "needs a head of kind ncm in stage2"
        if state.start in self.reads():
            return "the start head is an NCM already"
        return None

    @staticmethod
    def apply(state: State, params):
        w, head = params["w"], params["head"]
        ncm = state.once(head, lambda: to_range(state.logits_of(head), state.logits))
        return w * state.logits + (1 - w) * ncm
