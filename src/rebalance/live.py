"""Features from the backbone as it runs, with batch norm in training mode: `bn: train`.

In the code of Kang et al. (2020) the backbone's parameters are frozen in the second stage, but its
batch norm layers are not: they normalise by the batch, and their running statistics follow the
class-balanced sampler. Here, too, and nothing but these statistics changes: dropout and drop path
stay off. It costs a forward pass of every image in every epoch, and the changed statistics
(`batchnorm.safetensors`) make it a network of its own, which 05 runs once more.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from src.artifacts.dataset import Classes
from src.config.heads import Trained
from src.config.schema import Config
from src.data.dataset import Epochs, train_loader
from src.data.transforms import Preprocessing
from src.networks.base import Network
from src.networks.batchnorm import train_statistics
from src.rebalance.sgd import Batches, rows_of_epoch


@dataclass(frozen=True)
class LiveFeatures:
    """What cRT and LWS ask of a `FeatureSet`, without a cache. images: rows of folds.csv, [N] ·
    branch: of the network whose features these are"""

    network: Network
    prep: Preprocessing
    images: pd.DataFrame
    classes: Classes
    config: Config
    accelerator: Accelerator
    branch: str = ""

    @property
    def labels(self) -> np.ndarray:
        return self.images["label"].to_numpy()

    @property
    def num_classes(self) -> int:
        return self.classes.num

    @property
    def width(self) -> int:
        return self.classifier[1]["weight"].shape[1]

    @property
    def classifier(self) -> tuple[str, dict[str, np.ndarray]]:
        kind, arrays = self.network.heads()[self.branch]
        return kind, {name: array for name, array in arrays.items() if name != "columns"}

    @property
    def columns(self) -> np.ndarray | None:
        return self.network.heads()[self.branch][1].get("columns")

    def batches(self, spec: Trained, seed: int, device: torch.device) -> Batches:
        """Epochs by `spec.sampler`, augmented as in stage 1; the statistics change on the way."""
        from src.data.augment import TrainTransform  # slow to import

        labels = self.labels
        epochs = Epochs(
            lambda epoch: rows_of_epoch(spec, labels, self.num_classes, seed, epoch),
            spec.batch_size,
        )
        transform = TrainTransform(self.prep, self.config.train.augment, seed)
        workers, pin = self.config.data.workers, device.type == "cuda"
        loader = train_loader(self.images, transform, epochs, workers, pin)

        columns = slice(None) if self.columns is None else slice(*self.columns)

        def epoch_batches(epoch: int):
            epochs.epoch = epoch
            train_statistics(self.network)
            for batch in loader:
                batch = batch.to(device)
                images = self.prep.normalise(batch.images)
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.no_grad(), self.accelerator.autocast():
                    features = self.network(images).features.float()
                yield features[:, columns], batch.labels
            self.network.eval()

        return epoch_batches
