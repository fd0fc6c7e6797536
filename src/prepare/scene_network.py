"""Features of a pretrained network for scenes.py: pooled, before any training."""

import numpy as np
import pandas as pd

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.schema import Config
from src.data.transforms import EvalTransform
from src.errors import UserError
from src.networks.build import build_network
from src.networks.forward import run_network
from src.networks.weights import load_pretrained
from src.runtime import start


def pretrained_features(config: Config):
    """(images) → [n, D] of `model.backbone` as `model.pretrained` fills it, or None and why not.

    images: image_id, path. Whatever the network of the experiment is, it is the plain backbone.
    """
    if not config.model.pretrained:
        return None, "model.pretrained is false"
    model = Model(
        **config.model.model_dump(exclude={"network", "head", "head_init", "neck", "tuning"})
    )
    classes = Classes(2, np.zeros(2, int), ("0", "1"), np.ones(2, int))
    try:
        network, prep = build_network(model, classes, pretrained=model.pretrained is True)
        load_pretrained(network, model, config.dataset, "fold0")
    except UserError as error:
        return None, str(error)
    accelerator = start(config.train.precision)
    network.to(accelerator.device)

    def features(images: pd.DataFrame) -> np.ndarray:
        found = run_network(
            network,
            images[["image_id", "path"]],
            EvalTransform(prep),
            prep,
            accelerator,
            batch_size=config.train.eval_batch_size,
            workers=config.data.workers,
            label="scenes",
        )
        return found.take(images["image_id"].to_numpy(str)).features

    return features, ""
