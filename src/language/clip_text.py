"""The text tower of a CLIP (Radford et al., ICML 2021), by open_clip."""

from pathlib import Path

import numpy as np

from src.artifacts.files import sha256
from src.artifacts.hub import hub_or_cache
from src.errors import UserError, needs, shortened

KEY = "text.encoder"
BATCH = 64  # texts at once


def clip_text(section, texts: list[str]) -> tuple[np.ndarray, dict[str, str]]:
    """[M, E] of the space that images and texts share, and the hash of the weights.

    Errors: UserError when the package is missing, for a model that it does not list, and for
    weights that are neither here nor to be had.
    """
    needs("open_clip", KEY)
    import open_clip
    import torch

    if section.model not in open_clip.list_models():
        raise UserError(
            f"{KEY}.model={section.model}: open_clip has no such model; see open_clip.list_models()"
        )
    local = Path(section.pretrained)
    tags = open_clip.list_pretrained_tags_by_model(section.model)
    if not local.is_file() and section.pretrained not in tags:
        raise UserError(
            f"{KEY}.pretrained={section.pretrained}: neither a file nor a tag of {section.model}, "
            f"which has {tags}"
        )
    if not local.is_file():
        hub_or_cache()
    try:
        model = open_clip.create_model(section.model, pretrained=section.pretrained).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{KEY}: the weights {section.pretrained} of {section.model} could not be loaded "
            f"({shortened(str(error))}). Without a network set {KEY}.pretrained to a local file, "
            f"or make the vectors elsewhere and set {KEY}={{name: npz, file: …}}"
        ) from error
    tokenizer, rows = open_clip.get_tokenizer(section.model), []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            rows.append(model.encode_text(tokenizer(texts[start : start + BATCH])).float().numpy())
    return np.concatenate(rows), {"sha256": sha256(local) if local.is_file() else _digest(model)}


def _digest(model) -> str:
    from src.networks.freeze import tensors_sha256

    return tensors_sha256(model.state_dict())
