"""src/networks/forward.py: every row once, in order, and no more in memory than is asked for."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from src.data.transforms import EvalTransform, Preprocessing
from src.networks.base import Output
from src.networks.forward import run_network
from src.runtime import start
from tests.training_kit import tiny_dataset

CLASSES = 20_000


class Mean(nn.Module):
    """Features: the mean of each channel; logits: the features, repeated to [N, CLASSES]."""

    def forward(self, images: torch.Tensor) -> Output:
        features = images.mean((2, 3))  # [N, 3]
        return Output(features[:, :1].expand(-1, CLASSES), features)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_dataset().images


def run(table, **options):
    prep = Preprocessing(16, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    accelerator = start("fp32", keep_memory=False)
    return run_network(
        Mean(), table, EvalTransform(prep), prep, accelerator, batch_size=5, workers=0, **options
    )


def test_rows_in_any_order_are_predicted_in_that_of_their_ids(table):
    found, mixed = run(table), run(table.sample(frac=1, random_state=0))
    assert (found.image_id == np.sort(table["image_id"].to_numpy(str))).all()
    label_of = dict(zip(table["image_id"], table["label"], strict=True))
    assert [label_of[name] for name in mixed.image_id] == mixed.label.tolist()
    for name, array in found.arrays().items():
        np.testing.assert_array_equal(getattr(mixed, name), array)
    assert len(np.unique(found.features, axis=0)) > len(table) / 2  # images differ, rows are told


def test_features_alone_are_the_same_without_logits(table):
    found, alone = run(table), run(table, logits=False)
    assert found.logits.shape == (len(table), CLASSES) and alone.logits.shape == (len(table), 0)
    np.testing.assert_array_equal(alone.features, found.features)


@pytest.mark.parametrize("wanted", [True, False])
def test_logits_are_in_memory_once_or_not_at_all(table, wanted):
    """A list of batches and the array made of it would be twice."""
    table = table.sample(frac=1, random_state=0)
    run(table[:5])  # what is imported and opened once
    tracemalloc.start()
    try:
        run(table, logits=wanted)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 4 * len(table) * CLASSES  # bytes
    assert peak < 1.4 * whole if wanted else peak < 0.4 * whole
