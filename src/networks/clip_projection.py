"""The last layer of CLIP's image tower, from its features to what is compared with text."""

from pathlib import Path

import numpy as np
import torch

from src.config.model import Model
from src.config.text import Text

NAMES = ("visual.proj", "proj")  # [D, E], as open_clip and the authors save it
HEAD = "head.weight"  # [E, D], as timm does


def image_projection(model: Model, text: Text, asked: str) -> np.ndarray | None:
    """[D, E] of the backbone before any training, None where it has none: timm's models without
    `clip` in their names, random weights, and files without the layer.

    asked: `projection` of the initialiser; `auto` is for text by open_clip alone
    """
    if asked == "fitted" or (asked == "auto" and text.encoder.name != "open_clip"):
        return None
    if "clip" not in model.backbone or model.pretrained is False:
        return None
    import timm  # slow to import

    from src.networks.origins import read_theirs

    if model.pretrained is True:
        found = timm.create_model(model.backbone, pretrained=True, **model.kwargs).state_dict()
    elif Path(model.pretrained).is_file():
        found = read_theirs(Path(model.pretrained))
    else:
        return None  # of an experiment, whose files hold no such layer
    layers: list[torch.Tensor] = [found[name] for name in NAMES if name in found]
    if not layers and HEAD in found:
        layers = [found[HEAD].T]
    return layers[0].float().numpy() if layers else None
