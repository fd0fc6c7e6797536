"""How much members differ: what an ensemble can gain from. Kuncheva & Whitaker, Mach. Learn. 2003.

Of two members, with N11 images that both get right, N00 that both get wrong, N10 and N01 that one
of them alone gets right, of N:

    disagreement        images on which they predict different labels / N
    error correlation   (N11 N00 − N01 N10) / √((N11 + N10)(N01 + N00)(N11 + N01)(N10 + N00)): 1
                        always wrong together, 0 where one error says nothing of the other
    Q                   (N11 N00 − N01 N10) / (N11 N00 + N01 N10): the same without regard to how
                        often each is wrong; −1 never together
    both wrong          N00 / N: what no choice between the two can repair
"""

from itertools import combinations

import numpy as np

from src.ensemble.combiner import Members
from src.metrics import chunks, predicted


def predictions(members: Members) -> list[np.ndarray]:
    """The label of each image, [N], by each member [N, K]."""
    return [
        np.concatenate([predicted(m[rows]) for rows in chunks(*m.shape)]).astype(np.int64)
        for m in members
    ]


def pairs(names: list[str], labels_by: list[np.ndarray], truth: np.ndarray) -> list[dict]:
    """A row for every two members: a, b and the four numbers above, None where undefined.

    labels_by: what each member predicts, [N] · truth: [N]
    """
    return [
        {"a": names[i], "b": names[j]} | _pair(labels_by[i], labels_by[j], truth)
        for i, j in combinations(range(len(names)), 2)
    ]


def _pair(first: np.ndarray, second: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    a, b = first == truth, second == truth
    n11, n00, n10, n01 = (float(np.mean(x)) for x in (a & b, ~a & ~b, a & ~b, ~a & b))
    same, apart = n11 * n00, n01 * n10
    spread = np.sqrt((n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00))
    return {
        "disagreement": float(np.mean(first != second)),
        "error_correlation": float((same - apart) / spread) if spread else None,
        "q": (same - apart) / (same + apart) if same + apart else None,
        "both_wrong": n00,
    }
