"""`model.head_init`: the heads of a network that is about to be trained begin where it says."""

from functools import partial

import pandas as pd
import torch
from accelerate import Accelerator

from src.artifacts.dataset import Classes
from src.config.schema import Config
from src.data.transforms import Preprocessing
from src.initialisers import Known, initial_arrays
from src.networks.base import Network
from src.networks.clip_projection import image_projection
from src.networks.forward import run_evaluation
from src.networks.kept import Kept


def initialise_heads(
    network: Network,
    prep: Preprocessing,
    images: pd.DataFrame,
    classes: Classes,
    config: Config,
    accelerator: Accelerator,
    kept: Kept | None = None,
) -> None:
    """Each head by the features that it acts on, of the network as it is now and the evaluation
    view of the images that it will be trained on. No image is read for random heads.

    kept: as `run_network` has it
    """

    def features():
        label = "features for model.head_init"
        return run_evaluation(network, prep, images, config, accelerator, label, kept).features

    ordered, init = images.sort_values("image_id"), config.model.head_init
    asked = getattr(init, "projection", "fitted")
    to_text = partial(image_projection, config.model, config.text, asked)
    known = Known(features, ordered["label"].to_numpy(), classes, to_text)
    for module, columns in network.classifiers().values():
        part = known if columns is None else known.only(columns)
        arrays = initial_arrays(init, part, module.kind)
        if arrays is not None:
            device = module.weight.device
            module.start_from({k: torch.from_numpy(v).to(device) for k, v in arrays.items()})
