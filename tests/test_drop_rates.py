"""timm's own rates of dropout, through `model.kwargs`, reach what a network makes of its tokens."""

import pytest
import torch

from src.data.dataset import Batch
from src.errors import UserError
from src.losses import build_criterion
from src.networks.base import Progress
from src.networks.build import build_network
from tests.test_every_network import METHODS
from tests.training_kit import SIZE, random_batch, tiny_config, tiny_dataset

VIT = METHODS["transfg"][0]  # a small vision transformer
KINDS = {"plain": "plain", "transfg": VIT["network"]}
RATES = ("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")


@pytest.fixture
def classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    return data.classes_of(data.images)


def built(kind: str, rates: dict, classes):
    """A network, and the terms of its loss before any step, by the seed of what is dropped."""
    size = {"img_size": SIZE} if kind == "plain" else {}  # transfg makes its grid itself
    kwargs = VIT["kwargs"] | size | rates
    config = tiny_config(VIT | {"network": KINDS[kind], "kwargs": kwargs})
    torch.manual_seed(5)
    network = build_network(config.model, classes)[0].train()
    criterion, progress = build_criterion(config, classes), Progress(1, 0, 0.5, 2)
    criterion.set_progress(progress)
    batch = Batch(*random_batch())

    def terms(seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        return {k: v.item() for k, v in network.loss(batch, criterion, progress)[0].items()}

    return network, terms


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", RATES)
def test_a_vision_transformer_drops_what_its_kwargs_say(kind, rate, classes):
    """Tokens, attention and what blocks add; in training alone, and a seed repeats it."""
    _, still = built(kind, {rate: 0.0}, classes)
    assert still(0) == still(1)
    network, terms = built(kind, {rate: 0.5}, classes)
    first = terms(0)
    assert terms(0) == first
    assert all(value != first[name] for name, value in terms(1).items())
    network.eval()
    images, _ = random_batch()
    with torch.inference_mode():
        assert torch.equal(network(images).logits, network(images).logits)


def test_one_key_sets_drop_path():
    with pytest.raises(UserError, match="kwargs.drop_path_rate is what drop_path sets"):
        tiny_config({"drop_path": 0.1, "kwargs": {"drop_path_rate": 0.2}})
    tiny_config({"kwargs": {"drop_path_rate": 0.2}})  # as it always was
