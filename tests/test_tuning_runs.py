"""Tuned networks in stage 1: the frozen body stays as it was, and files hold what was trained."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, sha256
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST, RUNS
from src.errors import UserError
from src.networks.origins import read_ours
from src.networks.tuning import added
from src.networks.weights import load_network
from src.runtime import start
from src.training.fold import Fold
from src.training.job import build_trainer
from tests.training_kit import (
    DATASET,
    SIZE,
    random_batch,
    resumes_exactly,
    tiny_config,
    tiny_dataset,
    train_tiny,
)

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
BODY = "body.safetensors"
TUNINGS = {
    "adaptformer": {"name": "adaptformer", "bottleneck": 2},
    "lora": {"name": "lora", "rank": 2},
    "prompts": {"name": "prompts", "number": 2},
    "bias": "bias",
    "last_blocks": "last_blocks",
    "layer_norm": "layer_norm",
}


def write_body(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    found = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIZE, **VIT)
    save_file(found.state_dict(), BODY)
    return found.state_dict()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_body()
    return tiny_dataset()


def config(tuning, model: dict | None = None, **train):
    base = {
        "backbone": "vit_tiny_patch16_224",
        "kwargs": VIT | {"img_size": SIZE},
        "pretrained": BODY,
        "tuning": TUNINGS[tuning] if isinstance(tuning, str) else tuning,
    }
    return tiny_config(base | (model or {}), {"epochs": 2} | train)


def trainer_of(settings):
    directory = RUNS / DATASET / "exp" / "stage1" / "fold0"
    return build_trainer(Fold(settings, load_dataset(DATASET), 0, directory, start("fp32")))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_body_comes_out_as_it_went_in_and_files_lack_it(tuning, tiny):
    body = write_body()
    directory = train_tiny(config(tuning, ema=0.9), "exp")
    about, tensors = read_ours(directory / "weights.safetensors")
    network, _ = load_network(directory / "weights.safetensors", tiny)
    state = network.state_dict()
    kept = {name for name in state if name in tensors}
    same = {n for n, tensor in body.items() if torch.equal(state[f"backbone.{n}"], tensor)}
    assert {f"backbone.{n}" for n in same} == state.keys() - kept  # all else has learned
    if tuning in ("adaptformer", "lora", "prompts"):
        assert same == body.keys()
        assert any(added(name) for name in kept)
    assert about["frozen"]["source_sha256"] == sha256(BODY)
    last = torch.load(directory / "last.pt", weights_only=True)
    names = {name.removeprefix("network.") for name in last["objective"]}
    assert names - {"criterion.weight"} == {n.removeprefix("module.") for n in last["ema"]} == kept
    whole = sum(tensor.numel() for tensor in state.values())
    share = {"last_blocks": 0.6}.get(tuning, 0.2)
    assert sum(tensor.numel() for tensor in tensors.values()) < share * whole
    size = (directory / "weights.safetensors").stat().st_size
    assert size < sum(tensor.numel() for tensor in tensors.values()) * 4 + 16_000


@pytest.mark.parametrize("tuning", ["adaptformer", "lora"])
def test_a_delta_gives_identical_logits_and_refuses_another_body(tuning, tiny):
    directory = train_tiny(config(tuning), "exp")
    weights = directory / "weights.safetensors"
    network, prep = load_network(weights, tiny)
    found = load_predictions(directory / "oof.npz", tiny.num_classes)
    features = torch.from_numpy(found.features)
    with torch.inference_mode():
        np.testing.assert_array_equal(network.classifier(features).numpy(), found.logits)
        images, _ = random_batch()
        once, again = network(images).logits, load_network(weights, tiny)[0](images).logits
    assert torch.equal(once, again)
    digest = sha256(BODY)
    write_body(seed=1)
    with pytest.raises(UserError, match=f"sha256 {digest}, but the file there now has"):
        load_network(weights, tiny)


@pytest.mark.parametrize("tuning", ["adaptformer", "lora", "prompts", "last_blocks"])
def test_a_tuned_run_resumes_exactly(tuning, tiny, monkeypatch):
    more = {"ema": 0.9} if tuning in ("lora", "last_blocks") else {"select": "best"}
    whole = resumes_exactly(config(tuning, epochs=3, **more), monkeypatch)
    assert read_json(whole / MANIFEST)["metrics"]


@pytest.mark.parametrize(
    "network, tuning, train",
    [
        ({"name": "kt", "start_epoch": 0}, "adaptformer", {}),
        ("paco", "prompts", {"second_sampler": "same", "criterion": "balanced_softmax"}),
        ({"name": "transfg", "stride": 4}, "adaptformer", {}),
        ({"name": "transfg", "stride": 4}, "lora", {}),
        ({"name": "transfg", "stride": 4}, "last_blocks", {}),
    ],
)
def test_other_networks_are_tuned_as_well(network, tuning, train, tiny):
    model = {"network": network}
    if "transfg" in str(network):
        model["kwargs"] = VIT
    body = write_body()
    directory = train_tiny(config(tuning, model, **train), "exp")
    state = load_network(directory / "weights.safetensors", tiny)[0].state_dict()
    names = [n for n in body if "pos_embed" not in n and (tuning != "last_blocks" or ".0." in n)]
    assert all(torch.equal(state[f"backbone.{name}"], body[name]) for name in names)
    tensors = load_file(directory / "weights.safetensors")
    assert not any(f"backbone.{name}" in tensors for name in names)


def test_the_moving_average_shares_the_frozen_body(tiny):
    trainer, loader, epochs = trainer_of(config("adaptformer", ema=0.5))
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    for epochs.epoch in (0, 1):  # the average begins with the third step
        trainer.train_epoch(loader, epochs.epoch)
    mean = dict(trainer.evaluated.named_parameters())
    for name, parameter in trainer.network.named_parameters():
        assert (mean[name] is parameter) == (not parameter.requires_grad), name
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    apart = trainer.network.classifier.weight - trainer.evaluated.classifier.weight
    assert apart.abs().max() > 0


# ---- starting from a tuned network -------------------------------------------------------------


def test_lora_becomes_part_of_the_weights_of_what_starts_from_it(tiny):
    first = train_tiny(config("lora"), "lora")
    network, _ = load_network(first / "weights.safetensors", tiny)
    for tuning in (None, "bias", "adaptformer", "lora"):
        settings = config(tuning, {"pretrained": "experiment:lora"})
        other = trainer_of(settings)[0].network.eval()
        images, _ = random_batch()
        with torch.inference_mode():
            torch.testing.assert_close(other(images).logits, network(images).logits)
    second = train_tiny(config("bias", {"pretrained": "experiment:lora"}), "second")
    load_network(second / "weights.safetensors", tiny)


def test_what_was_added_to_a_body_is_not_lost_in_silence(tiny):
    first = train_tiny(config("adaptformer"), "adapted")
    network, _ = load_network(first / "weights.safetensors", tiny)
    same = config("adaptformer", {"pretrained": "experiment:adapted"})
    other = trainer_of(same)[0].network
    assert torch.equal(
        other.backbone.blocks[0].adapter.up.weight, network.backbone.blocks[0].adapter.up.weight
    )
    for tuning in (None, "bias", {"name": "adaptformer", "bottleneck": 3}):
        settings = config(tuning, {"pretrained": "experiment:adapted"})
        with pytest.raises(UserError, match="trained with model.tuning=adaptformer, and what that"):
            trainer_of(settings)


def test_a_tuned_network_starts_from_a_plain_one(tiny):
    plain = train_tiny(config(None), "plain")
    network, _ = load_network(plain / "weights.safetensors", tiny)
    settings = config("adaptformer", {"pretrained": "experiment:plain"})
    other = trainer_of(settings)[0].network.eval()
    images, _ = random_batch()
    with torch.inference_mode():
        torch.testing.assert_close(other(images).logits, network(images).logits)


# ---- tokens of the frozen prefix that are kept -------------------------------------------------

STILL = {"crop": "none", "hflip": False, "color_jitter": 0}
FAMILIES = {"augreg": "vit_tiny_patch16_224", "dinov3": "vit_small_patch16_dinov3"}


def kept_run(name: str, family: str, cache: float, **train):
    model = {"backbone": FAMILIES[family], "pretrained": False, "kwargs": VIT | {"img_size": SIZE}}
    model["kwargs"] = model["kwargs"] | {"depth": 3}
    train = {"augment": STILL, "prefix_cache": cache, "epochs": 3} | train
    return train_tiny(config({"name": "last_blocks", "blocks": 2}, model, **train), name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("more", [{}, {"micro_batch": 4, "ema": 0.5}], ids=str)
def test_kept_tokens_change_nothing_but_the_time(family, more, tiny, capsys):
    """In float32 to the last bits, which depend on how many images pass at once."""
    with_tokens, without = (kept_run(f"run{gib}", family, gib, **more) for gib in (4, 0))
    says = "1 of 3 blocks are frozen and ran once; the tokens of 20 images take 0.00 GiB"
    assert capsys.readouterr().out.count(says) == 1
    own, other = (load_file(d / "weights.safetensors") for d in (with_tokens, without))
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)
    assert own["backbone.blocks.1.mlp.fc1.bias"].any()  # it starts at zero


def test_a_run_on_kept_tokens_reads_no_image_but_of_validation(tiny, monkeypatch):
    settings = config("last_blocks", augment=STILL)
    trainer, loader, epochs = trainer_of(settings)
    monkeypatch.setattr("src.data.dataset.read_image", None)
    monkeypatch.setattr(type(trainer.network.backbone), "forward_features", None)
    batches = list(loader)
    assert [tuple(b.images.shape) for b in batches] == 2 * [(8, 5, 32)]
    labels = tiny.training(0)["label"].to_numpy()
    assert all((b.labels.numpy() == labels[b.rows.numpy()]).all() for b in batches)
    trainer.train_epoch(loader, 0)


def test_a_run_on_kept_tokens_resumes_exactly(tiny, monkeypatch):
    resumes_exactly(config("last_blocks", augment=STILL, epochs=3), monkeypatch)


@pytest.mark.parametrize(
    "tuning, model, train, says",
    [
        ("last_blocks", {}, {}, "train.augment changes images at random (crop padded, hflip, co"),
        ("adaptformer", {}, {"augment": STILL}, "training begins in the first block"),
        (
            "last_blocks",
            {"kwargs": VIT | {"img_size": SIZE, "pos_drop_rate": 0.1}},
            {"augment": STILL},
            "something is dropped at random before the first block that trains",
        ),
        (
            "last_blocks",
            {},
            {"augment": STILL, "mixing": {"mixup": 1.0}},
            "train.mixing, train.second_sampler and train.resizing need the images",
        ),
        (
            "last_blocks",
            {"network": {"name": "transfg", "stride": 4}, "kwargs": VIT},
            {"augment": STILL},
            "model.network=transfg runs the blocks in its own way",
        ),
        (
            "last_blocks",
            {},
            {"augment": STILL, "prefix_cache": 1e-6},
            "their tokens need more than train.prefix_cache=1e-06 GiB",
        ),
    ],
)
def test_why_tokens_are_not_kept_is_said(tuning, model, train, says, tiny, capsys):
    trainer_of(config(tuning, model, **train))
    out = capsys.readouterr().out
    assert f"the frozen prefix runs anew for each image, as {says}" in out
