"""Feature diversification (FDM; Song and Yang, arXiv 2103.02782) and top-k pooling.

Maps P_a [C, S], P_b [C, T] of two stages are given what is unlike them in each other. With P̂ each
position's vector divided by its length,

    M = − P̂_aᵀ P̂_b                               [S, T], large where the two are unlike
    for P_b:  P_a softmax over S of M             [C, T]
    for P_a:  P_b softmax over T of M, transposed [C, S]

and P_j' = P_j + γ ε Σ of what the other maps have for it, all from the maps as they were. The paper
has no ε. The authors' code multiplies by round(1/784, 3) = 0.001, with 784 = 28 × 28 positions of
the middle map, as if the softmax had yet to be a mean; γ = 1 is published with it, so it stays.

So small a part hardly moves the gradient, and following it through M costs two times what M does
(`gradient`). S × T is 3136 × 784 at 448 pixels. Positions of P_a are taken in chunks, and their
similarities are computed again for the gradient: no more than chunk × T of them are there at any
time. exp(M) lies between 1/e and e, so that both softmaxes share it, and a sum over chunks needs no
maximum.
"""

from functools import partial
from itertools import combinations

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EPSILON = 0.001
CHUNK = 512  # positions


def diversify(
    maps: list[torch.Tensor], gamma: float, *, gradient: bool, chunk: int = CHUNK
) -> list[torch.Tensor]:
    """P_j [N, C, S_j] → P_j' in float32: half precision would round away a thousandth.

    The products are in the precision of the maps, lengths and softmaxes in float32. gradient: of
    what is added, too; without, it counts as a number.
    """
    found = [p.float() for p in maps]
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        unit = [F.normalize(p.float(), dim=1).to(p.dtype) for p in maps]
        added = [torch.zeros_like(p) for p in found]
        for i, j in combinations(range(len(maps)), 2):
            for_i, for_j = complements(maps[i], maps[j], unit[i], unit[j], chunk)
            added[i], added[j] = added[i] + for_i, added[j] + for_j
    return [p + gamma * EPSILON * more for p, more in zip(found, added, strict=True)]


def complements(
    a: torch.Tensor, b: torch.Tensor, unit_a: torch.Tensor, unit_b: torch.Tensor, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What b has for a, [N, C, S], and a for b, [N, C, T], in float32; a, b: of these shapes."""
    again = partial(checkpoint, _chunk, use_reentrant=False, preserve_rng_state=False)
    run = again if torch.is_grad_enabled() else _chunk
    for_a, for_b, total = [], 0.0, 0.0
    with torch.autocast(a.device.type, enabled=False):
        for part, unit in zip(a.split(chunk, 2), unit_a.split(chunk, 2), strict=True):
            own, sums, weights = run(part, unit, b, unit_b, chunk)
            for_a.append(own)
            for_b, total = for_b + sums, total + weights
    return torch.cat(for_a, 2), for_b / total[:, None]


def _chunk(a, unit_a, b, unit_b, chunk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What b has for these positions of a, [N, C, s] · what they add to a weighted sum for each of
    b, [N, C, T], and their weights in it, [N, T]"""
    weights = torch.exp(-torch.bmm(unit_a.transpose(1, 2), unit_b).float())  # [N, s, T]
    to_a = (weights / weights.sum(2, keepdim=True)).to(b.dtype)
    own = torch.bmm(b, to_a.transpose(1, 2))
    small = weights / chunk  # a sum of so many would leave float16's range
    return own.float(), torch.bmm(a, small.to(a.dtype)).float(), small.sum(1)


def top_mean(x: torch.Tensor, k: int) -> torch.Tensor:
    """[N, C, S] → [N, C]: mean of the k largest values of each channel, or of all S if there are
    fewer."""
    return x.topk(min(k, x.shape[2]), 2, sorted=False).values.mean(2)
