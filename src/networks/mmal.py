"""MMAL-Net (Zhang, Li, Zhai, Liu, Wang: "Multi-branch and multi-scale attention learning for
fine-grained visual categorization", MMM 2021): one backbone and one classifier look at the image,
at the object in it, and at parts of the object.

    object   AOLM on the last two maps of the image (localise.py), cut out of the image and resized
             to the size of the image
    parts    APPM on the last map of the object (windows.py): Σ_k N_k windows, cut out of the object
             and resized to half of that size

    L       = L(z_raw, y) + L(z_object, y) + mean over parts of L(z_part, y)
    logits  = z_object

During the first `raw_epochs` epochs there is L(z_raw, y) alone, as the maps of a fresh network say
nothing; the object's features are then the image's. No gradient passes through the choice of a box,
every pass of the backbone has one. Batch norm sees images, objects and parts one after the other,
as in the authors' code, so its running statistics are a mixture of the three.

Features are those of the image and of the object, [N, 2D], each with the same classifier as a head:
`raw` and `object`. With `parts_at_inference` the mean of the parts' features stands behind them,
under a head `parts` whose logits (of a linear head) are the mean of theirs: an extension, as the
authors do not look at parts once trained. 04 fuses the heads.
"""

from dataclasses import replace

import torch
from torch import nn

from src.artifacts.dataset import Classes
from src.config.model import Model
from src.config.networks import MMAL as Settings
from src.data.dataset import Batch, Targets
from src.errors import UserError
from src.networks.base import Evidence, Output, Progress, mixed
from src.networks.last_maps import Maps, find_last_maps, look
from src.networks.localise import crop, object_boxes
from src.networks.plain import Plain
from src.networks.windows import KEPT, PUBLISHED, PartWindows, fitted


class MMAL(Plain):
    """Errors: UserError for a backbone without the two maps, an image size that is no whole number
    of their cells, or a window that is larger than they are."""

    def __init__(self, model: Model, backbone: nn.Module, classes: Classes):
        super().__init__(model, backbone, classes)
        self.settings = model.network
        self.places = find_last_maps(backbone, model.image_size)
        self.windows = part_windows(model.network, self.places.grid, model.image_size)

    def classifiers(self) -> dict[str, tuple[nn.Module, tuple[int, int] | None]]:
        """The one classifier, on the features of each branch."""
        width = self.classifier.weight.shape[-1]
        return {
            name: (self.classifier, (i * width, (i + 1) * width))
            for i, name in enumerate(self.settings.branches)
        }

    def forward(self, images: torch.Tensor) -> Output:
        """features: [N, 2D], or [N, 3D] with the parts"""
        raw = self._look(images)
        seen, objects, _ = self._object(images, raw)
        found = [raw.features, seen.features]
        if self.settings.parts_at_inference:
            found.append(self._mean(self._parts(objects, seen)))
        return Output(self._classify(seen.features), torch.cat(found, 1))

    def loss(
        self, batch: Batch, criterion: nn.Module, progress: Progress
    ) -> tuple[dict[str, torch.Tensor], Output]:
        """One term per branch that is trained now, and the logits of the object."""
        raw = self._look(batch.images)
        logits = self._classify(raw.features)
        terms = {"raw": mixed(criterion, logits, batch)}
        found = [raw.features] * len(self.settings.branches)
        if progress.epoch >= self.settings.raw_epochs:
            seen, objects, _ = self._object(batch.images, raw)
            logits = self._classify(seen.features)
            parts = self._parts(objects, seen)
            repeated = _repeated(batch, self.windows.count)
            terms["object"] = mixed(criterion, logits, batch)
            terms["parts"] = mixed(criterion, self._classify(parts), repeated)
            found = [raw.features, seen.features, self._mean(parts)][: len(found)]
        return terms, Output(logits, torch.cat(found, 1))

    def evidence(self, images: torch.Tensor) -> Evidence:
        """Boxes `object` [N, 1, 4] and `parts` [N, n, 4]."""
        seen, _, box = self._object(images, self._look(images))
        width, height = images.shape[3], images.shape[2]
        x0, y0, x1, y1 = self.windows(seen.last).unbind(-1)  # in the object's image, [N, n]
        left, top, right, bottom = box.unbind(-1)  # [N, 1]
        x, y = (right - left) / width, (bottom - top) / height
        parts = [left + x * x0, top + y * y0, left + x * x1, top + y * y1]
        return Evidence({"object": box, "parts": torch.stack(parts, -1)})

    def _look(self, images: torch.Tensor) -> Maps:
        maps = look(self.backbone, self.places, images)
        return maps._replace(features=self.neck(maps.features))

    def _object(self, images: torch.Tensor, raw: Maps) -> tuple[Maps, torch.Tensor, torch.Tensor]:
        """A look at the objects of images, [N, 3, H, W], their images, [N, 3, H, W], and their
        boxes [N, 1, 4] in the images."""
        size = tuple(images.shape[2:])
        box = object_boxes(raw.last, raw.before, size)
        objects = crop(images, box, size)
        return self._look(objects), objects, box

    def _parts(self, objects: torch.Tensor, seen: Maps) -> torch.Tensor:
        """Features [N n, D] of the parts of objects, those of an image beside each other."""
        half = (objects.shape[2] // 2, objects.shape[3] // 2)
        return self._look(crop(objects, self.windows(seen.last), half)).features

    def _mean(self, parts: torch.Tensor) -> torch.Tensor:
        """[N n, D] → [N, D]"""
        return parts.unflatten(0, (-1, self.windows.count)).mean(1)

    def _classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropped(features))


def part_windows(settings: Settings, grid: tuple[int, int], size: int) -> PartWindows:
    """Those of the config for the grid of images of `size` pixels.

    Errors: UserError for one that is larger than the grid.
    """
    if isinstance(settings.windows, str):
        scales = fitted(PUBLISHED[settings.windows], grid)
        return PartWindows(scales, settings.kept or KEPT[settings.windows], grid, (size, size))
    for h, w in (shape for shapes in settings.windows for shape in shapes):
        if h > grid[0] or w > grid[1]:
            raise UserError(
                f"model.network.windows: a window of {h} x {w} cells is larger than the map of an "
                f"image of {size} pixels, {grid[0]} x {grid[1]} cells. Choose smaller ones, a "
                "larger model.image_size, or windows: cub, which are fitted to any map"
            )
    return PartWindows(settings.windows, settings.kept, grid, (size, size))


def _repeated(batch: Batch, count: int) -> Batch:
    """The labels of `count` parts of each image, those of an image beside each other."""

    def each(values):
        is_rows = isinstance(values, torch.Tensor)
        return values.repeat_interleave(count, 0) if is_rows else values

    def every(targets: Targets | None) -> Targets | None:
        return targets and Targets(each(targets.labels), each(targets.shares))

    return replace(
        batch,
        labels=each(batch.labels),
        partner=each(batch.partner),
        share=each(batch.share),
        targets=every(batch.targets),
        partner_targets=every(batch.partner_targets),
    )
