"""Test-time augmentation as a list of views."""

from itertools import product

from src.config.outputs import TTA
from src.data.transforms import View

CENTRE = (0.5, 0.5)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


def tta_views(tta: TTA) -> list[View]:
    """Scales × crops × flips; the first is the evaluation view if 1.0 is the first scale."""
    crops = (CENTRE, *CORNERS) if tta.crops == 5 else (CENTRE,)
    flips = (False, True) if tta.flip else (False,)
    return [View(flip, crop, scale) for scale, crop, flip in product(tta.scales, crops, flips)]
