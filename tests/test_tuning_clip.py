"""The network clip on a frozen image tower of open_clip."""

import pytest
import torch
from safetensors.torch import load_file

from src.networks.weights import load_network

open_clip = pytest.importorskip("open_clip", reason="pip install -r requirements-text.txt")

from tests.test_clip import CONTRASTIVE, MODEL, TEMPLATES, weights  # noqa: E402
from tests.training_kit import random_batch, resumes_exactly, tiny_config, tiny_dataset  # noqa: E402

assert weights  # a fixture
TUNINGS = {
    "adaptformer": {"name": "adaptformer", "bottleneck": 2},
    "lora": {"name": "lora", "rank": 2},
    "prompts": {"name": "prompts", "number": 2},
}


@pytest.mark.parametrize(
    "network, tuning",
    [("clip", "adaptformer"), ("plain", "adaptformer"), ("clip", "prompts"),
     (CONTRASTIVE | {"text_tower": "frozen"}, "lora")],
    ids=str,
)  # fmt: skip
def test_a_tuned_tower_resumes_exactly_and_files_lack_the_body(
    network, tuning, tmp_path, monkeypatch, weights
):
    monkeypatch.chdir(tmp_path)
    data = tiny_dataset()
    keys = MODEL | {"network": network, "pretrained": str(weights[1]), "tuning": TUNINGS[tuning]}
    config = tiny_config(keys, {"ema": 0.9}, text={"templates": TEMPLATES})
    directory = resumes_exactly(config, monkeypatch)
    body = {f"backbone.{k}": v for k, v in weights[0].visual.state_dict().items()}
    kept = load_file(directory / "weights.safetensors")
    assert not kept.keys() & body.keys() and any("resblocks" in name for name in kept)
    network, _ = load_network(directory / "weights.safetensors", data)
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in body.items())
    assert network(random_batch()[0]).logits.isfinite().all()
