"""Feature boosting and suppression (FBSM; Song and Yang, arXiv 2103.02782).

A map X [C, H, W] is cut along its height into k stripes X_i. One 1 × 1 convolution w to a single
channel, shared by the stripes, with batch norm and ReLU, says what each is worth:

    b_i = mean over the pixels of X_i of ReLU(BN(w X_i))      B = softmax(b)
    boosted     X_b = X (1 + α B_i) in stripe i
    suppressed  X_s = X S_i with S_i = β for the i of the largest b (ties: the upper one), else 1

Batch norm sees all stripes at once, as it does at inference in any case. B and S come from float32
sums, whatever the precision of X: rounding must not decide which stripe is suppressed.
"""

import torch
from torch import nn
from torch.nn import functional as F


class FBSM(nn.Module):
    """X [N, C, H, W] → X_b and X_s, of the same shape and type; H is divisible by `stripes`."""

    def __init__(self, channels: int, stripes: int, alpha: float, beta: float):
        super().__init__()
        self.stripes, self.alpha, self.beta = stripes, alpha, beta
        self.weight = nn.Parameter(torch.empty(1, channels, 1, 1))
        self.norm = nn.BatchNorm2d(1)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Conv2d begins
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """X_b and X_s [N, C, H, W], and B [N, k] in float32."""
        share = self.importance(x)
        boost = 1 + self.alpha * share
        return self._scaled(x, boost), self._scaled(x, self.suppression(share)), share

    def importance(self, x: torch.Tensor) -> torch.Tensor:
        """B [N, k]."""
        with torch.autocast(x.device.type, enabled=False):
            worth = F.relu(self.norm(F.conv2d(x.float(), self.weight.float())))  # [N, 1, H, W]
            return worth.unflatten(2, (self.stripes, -1)).mean((1, 3, 4)).softmax(1)

    def suppression(self, share: torch.Tensor) -> torch.Tensor:
        """S [N, k]."""
        best = F.one_hot(share.argmax(1), self.stripes)
        return 1 - (1 - self.beta) * best

    def _scaled(self, x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Stripe i times factors[:, i], of [N, k]."""
        rows = factors.repeat_interleave(x.shape[2] // self.stripes, 1)  # [N, H]
        return x * rows[:, None, :, None].to(x.dtype)

    def between_stages(self, stage: nn.Module, inputs: tuple, x: torch.Tensor) -> torch.Tensor:
        """A forward hook of a stage: X_s goes on in the place of the stage's output X, and `kept`
        are X_b and B until `taken`."""
        boosted, suppressed, share = self(x)
        self.kept = boosted, share
        return suppressed

    def taken(self) -> tuple[torch.Tensor, torch.Tensor]:
        """X_b and B of the last pass, once."""
        kept, self.kept = self.kept, None
        return kept
