"""Partly frozen networks: what is frozen stays, and files hold what was trained alone."""

import json
import os
import subprocess
import sys
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import src.networks.backbone as backbone_module
import src.training.stage1 as stage1_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_arrays, read_json, sha256, write_json
from src.artifacts.work import MANIFEST, RUNS
from src.config.read import with_values
from src.config.schedules import Frozen
from src.errors import UserError
from src.inference.predict import predict
from src.networks.build import build_network
from src.networks.cifar_resnet import DEPTHS, CifarResNet
from src.networks.freeze import freeze, tensors_sha256, thaw, thawing, training_mode
from src.networks.weights import load_network, save_network
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.training.fold import Fold
from src.training.job import build_trainer
from src.training.trials import proxy
from tests.fabricate import some_classes
from tests.training_kit import DATASET, random_batch, resumes_exactly, tiny_config, train_tiny
from tests.training_kit import tiny_dataset as make_dataset

ROOT = Path(__file__).parents[1]
SOURCE = Path("source.safetensors")
LOW = ("backbone.conv1.*", "backbone.bn1.*", "backbone.layer1.*", "backbone.layer2.*")
BODY = ("backbone.*",)


def write_source(seed: int = 0) -> dict[str, torch.Tensor]:
    """A CIFAR ResNet with statistics that are not those of a fresh one."""
    torch.manual_seed(seed)
    body = CifarResNet(DEPTHS["cifar_resnet20"])
    for name, buffer in body.named_buffers():
        if name.endswith("mean"):
            torch.nn.init.normal_(buffer, std=0.1)
        elif name.endswith("var"):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    state = body.state_dict()
    save_file(state, SOURCE)
    return state


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The tiny dataset, and weights to start from."""
    monkeypatch.chdir(tmp_path)
    write_source()
    return make_dataset()


def config(freeze=LOW, model: dict | None = None, **train):
    model = {"pretrained": str(SOURCE)} | (model or {})
    return tiny_config(model, {"freeze": list(freeze)} | train)


def tensors_of(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Header and tensors of a weights file."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["longtail"])
        return about, {key: file.get_tensor(key) for key in file.keys()}


def fresh(**model):
    return build_network(config(model=model).model, some_classes(6))[0]


# ---- what is frozen ----------------------------------------------------------------------------


def test_patterns_take_parameters_and_the_statistics_of_their_layers():
    network = fresh()
    frozen = freeze(network, ["backbone.layer1.*", "backbone.bn1.w*"], batchnorm=False)
    names = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert "backbone.layer1.0.conv1.weight" in names and "backbone.bn1.weight" in names
    assert {n.split(".")[1] for n in names} == {"layer1", "bn1"}
    assert "backbone.layer1.0.bn1.running_var" in frozen
    assert not frozen & {"backbone.bn1.running_var", "backbone.bn1.bias"}  # its bias learns
    everything = freeze(fresh(), [], batchnorm=True)
    assert everything == {n for n, _ in fresh().named_buffers() if "bn" in n or "running" in n}


def test_frozen_batchnorm_stays_in_eval_mode_and_the_rest_trains():
    network = fresh()
    objective = torch.nn.ModuleList([network])
    freeze(network, ["backbone.layer1.*"], batchnorm=False)
    training_mode(objective, network, batchnorm=False)
    assert not network.backbone.layer1[0].bn1.training
    assert network.backbone.layer1[0].conv1.training and network.backbone.bn1.training
    training_mode(objective, network, batchnorm=True)
    assert not network.backbone.bn1.training and network.classifier.training


@pytest.mark.parametrize(
    "patterns, says",
    [
        (["backbone.layer9.*"], "matches 'backbone.layer9.*'; did you mean backbone.layer"),
        (["layer1"], "There are 'backbone.conv1.weight'"),
        (["backbone.conv1.weigth"], "did you mean backbone.conv1.weight"),
        (["*"], "all 59 parameters of the network, the classifier too"),
    ],
)
def test_what_cannot_be_frozen_is_said(patterns, says):
    with pytest.raises(UserError) as error:
        freeze(fresh(), patterns, batchnorm=False)
    assert says in str(error.value)


def test_freezing_statistics_that_there_are_none_of_is_said():
    network = fresh(
        backbone="vit_tiny_patch16_224",
        kwargs={"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32},
    )
    with pytest.raises(UserError, match="freeze_batchnorm: this network has no batch norm"):
        freeze(network, [], batchnorm=True)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [{}, {"ema": 0.9}, {"freeze_batchnorm": True}], ids=str)
def test_what_is_frozen_comes_out_as_it_went_in_and_the_rest_learns(train, tiny):
    origin = write_source()
    directory = train_tiny(config(**train), "exp")
    network, _ = load_network(directory / "weights.safetensors", tiny)
    still = freeze(fresh(), LOW, train.get("freeze_batchnorm", False))
    for name, tensor in network.backbone.state_dict().items():
        same = torch.equal(tensor, origin[name])
        assert same == (f"backbone.{name}" in still), name
    assert len(still) > 40


def test_frozen_parameters_are_in_no_group_and_get_no_gradient(tiny):
    job = Fold(config(), tiny, 0, RUNS / DATASET / "exp" / "stage1" / "fold0", start("fp32"))
    trainer, loader, _ = build_trainer(job)
    inside = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    for name, p in trainer.network.named_parameters():
        assert (id(p) in inside) == p.requires_grad, name
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.train_epoch(loader, 0)
    moved = {k for k, v in trainer.network.state_dict().items() if not torch.equal(v, before[k])}
    assert not moved & trainer.rest.names and "classifier.weight" in moved
    assert all(p.grad is None for p in trainer.network.parameters() if not p.requires_grad)


@pytest.mark.parametrize("train", [{"ema": 0.9}, {"select": "best"}], ids=str)
def test_a_frozen_run_resumes_exactly(train, tiny, monkeypatch):
    whole = resumes_exactly(config(freeze_batchnorm=True, **train), monkeypatch)
    assert read_json(whole / MANIFEST)["metrics"]


@pytest.mark.parametrize("kind", ["bbn", "ride", "task_separator"])
def test_every_copy_of_a_backbone_can_be_frozen(kind, tiny, monkeypatch):
    keys = {"second_sampler": "reversed"} if kind == "bbn" else {}
    patterns = {"bbn": "rebalancing.*", "ride": "branches.0.*", "task_separator": "experts.0.back*"}
    settings = config((*BODY, patterns[kind]), {"network": kind}, **keys)
    whole = resumes_exactly(settings, monkeypatch)
    about, tensors = tensors_of(whole / "weights.safetensors")
    assert not any(name.startswith("backbone.") for name in tensors) and about["frozen"]


# ---- thawing by epoch --------------------------------------------------------------------------

LATER = [{"name": "backbone.*", "until": 2}, {"name": "backbone.layer3.*", "until": 1}]


def test_the_latest_epoch_counts_and_what_never_thaws_stays():
    network = fresh()
    freeze(network, ["backbone.conv1.*"], batchnorm=False)
    items = ("backbone.*", 2), ("backbone.layer3.*", 4), ("backbone.bn1.*", 1)
    found = thawing(network, [Frozen(name=name, until=until) for name, until in items])
    epochs = {n.split(".")[1] if n[0] == "b" else n: e for n, e in found.items()}
    assert epochs == {"bn1": 2, "layer1": 2, "layer2": 2, "layer3": 4}
    parts = {"conv1": 99, "classifier": 0} | epochs  # in words of the test: trains from then on
    for epoch in (0, 4, 1, 2, 3):  # a function of the epoch, not of what was before
        thaw(network, found, epoch)
        for name, p in network.named_parameters():
            part = name.split(".")[1] if name.startswith("backbone") else "classifier"
            assert p.requires_grad == (epoch >= parts[part]), (epoch, name)


@pytest.mark.parametrize(
    "items, says",
    [
        ([("backbone.layer9.*", 2)], "matches 'backbone.layer9.*'; did you mean backbone.layer"),
        ([("*", 2), ("classifier.*", 1)], "until epoch 2 there is nothing to train"),
    ],
)
def test_what_cannot_thaw_is_said(items, says):
    with pytest.raises(UserError) as error:
        thawing(fresh(), [Frozen(name=name, until=until) for name, until in items])
    assert says in str(error.value)


@pytest.mark.parametrize(
    "item, says",
    [
        ({"name": "backbone.*", "until": 3}, "backbone.* until 3 never thaws in 3 epochs; remove"),
        ({"name": "backbone.*", "until": 0}, "train.freeze.0.until"),
        ({"until": 1}, "train.freeze.0.name"),
        ({"name": "backbone.*", "untill": 1}, "did you mean `until`?"),
    ],
)
def test_items_that_make_no_sense_are_refused(item, says):
    with pytest.raises(UserError) as error:
        config([item])
    assert says in str(error.value)


def snapshots(settings, data, epochs: int) -> tuple[list[dict], object]:
    """Weights, moving average and optimizer state before training and after each epoch."""
    job = Fold(settings, data, 0, RUNS / DATASET / "exp" / "stage1" / "fold0", start("fp32"))
    trainer, loader, sampler = build_trainer(job)
    found = []
    for epoch in range(-1, epochs):
        if epoch >= 0:
            sampler.epoch = epoch
            trainer.train_epoch(loader, epoch)
        inside = trainer.optimizer.state
        found.append(
            {
                "network": {k: v.clone() for k, v in trainer.network.state_dict().items()},
                "ema": {k: v.clone() for k, v in trainer.evaluated.state_dict().items()},
                "state": {n for n, p in trainer.network.named_parameters() if inside.get(p)},
            }
        )
    return found, trainer


@pytest.mark.parametrize(
    "train",
    [
        {"ema": 0.9},
        {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.5, "decay_all": True},
        {"freeze_batchnorm": True, "weight_decay": 0.1},
        {"micro_batch": 4, "clip_grad": 1.0},
    ],
    ids=str,
)
def test_what_thaws_is_held_bit_for_bit_until_its_epoch(train, tiny):
    items = ["backbone.conv1.*", *LATER[:1], {"name": "backbone.layer2.*", "until": 1}]
    thawed_at = {"conv1": 99, "bn1": 2, "layer1": 2, "layer2": 2, "layer3": 2, "classifier": 0}
    found, trainer = snapshots(config(items, **train), tiny, 3)
    parameters = {n for n, _ in trainer.network.named_parameters()}
    for epoch in range(3):
        before, after = found[epoch], found[epoch + 1]
        for name in after["network"]:
            part = name.split(".")[1] if name.startswith("backbone") else "classifier"
            held = epoch < thawed_at[part]
            if name not in parameters:  # of a batch norm layer
                held = held or train.get("freeze_batchnorm", False)
            for kind in ("network", "ema"):
                assert torch.equal(after[kind][name], before[kind][name]) == held, (epoch, name)
            if name in parameters:
                assert (name in after["state"]) == (epoch >= thawed_at[part]), (epoch, name)
    saved = trainer.rest.names & parameters  # what never thaws is left out of files, no other
    assert saved == {"backbone.conv1.weight"}


def test_until_then_it_is_a_training_with_all_of_it_frozen(tiny):
    """The head learns as if the backbone were frozen for good, up to the thaw."""
    thawing_run, _ = snapshots(config(LATER[:1]), tiny, 3)
    frozen_run, _ = snapshots(config(BODY), tiny, 3)
    for epoch, equal in enumerate([True, True, True, False]):  # 0: before training
        one, two = thawing_run[epoch]["network"], frozen_run[epoch]["network"]
        assert equal == all(torch.equal(v, two[k]) for k, v in one.items())


@pytest.mark.parametrize(
    "items, train",
    [
        (LATER[:1], {"ema": 0.9}),  # killed at the thaw
        (LATER, {"optimizer": "adamw", "lr": 1e-3, "select": "best"}),
        ([*LOW, {"name": "backbone.layer3.*", "until": 1}], {"freeze_batchnorm": True}),
    ],
    ids=["at the thaw", "two steps", "part for good"],
)
def test_a_thawing_run_resumes_exactly(items, train, tiny, monkeypatch):
    whole = resumes_exactly(config(items, **train), monkeypatch)
    about, tensors = tensors_of(whole / "weights.safetensors")
    assert ("frozen" in about) == (LOW[0] in items)
    assert "backbone.layer3.0.conv1.weight" in tensors


@pytest.mark.slow
def test_compiled_code_is_made_anew_when_something_thaws(tiny, monkeypatch):
    graphs = []

    def traced_only(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_ = partialmethod(torch.nn.Module.compile, backend=traced_only)
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    steps = [{"size": 8, "share": 0.4}]
    plain = train_tiny(config(LATER, resizing=steps), "plain")
    traced = train_tiny(config(LATER, resizing=steps, compile=True), "compiled")
    assert len(graphs) > 1
    for name in ("weights.safetensors", "oof.npz"):
        assert sha256(plain / name) == sha256(traced / name), name


@pytest.mark.parametrize(
    "until, short, expected", [(6, 10, 2), (29, 10, 9), (28, 4, 3), (1, 10, 1)]
)
def test_a_search_shrinks_the_epochs_of_a_thaw(until, short, expected):
    """What thaws late in 30 epochs thaws late in a trial, and not never."""
    settings = config([*LOW, {"name": "backbone.layer3.*", "until": until}], epochs=30)
    small = proxy(with_values(settings, {"search.epochs": short}, "test")).train
    assert small.thaws == [Frozen(name="backbone.layer3.*", until=expected)]
    assert small.frozen == list(LOW)


@pytest.mark.slow
def test_two_processes_hold_and_thaw_together(tiny):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__]
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(launch, capture_output=True, text=True, env=os.environ | paths)
    assert found.returncode == 0, found.stderr
    one = [torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone, _ = snapshots(config(LATER[:1], weight_decay=0.1, freeze_batchnorm=True), tiny, 3)
    for epoch in range(4):
        for name, tensor in alone[epoch]["network"].items():
            assert torch.equal(one[0][epoch][name], one[1][epoch][name]), (epoch, name)
            torch.testing.assert_close(one[0][epoch][name], tensor, rtol=1e-3, atol=1e-4)
            if name.startswith("backbone.") and 0 < epoch < 3:
                assert torch.equal(one[0][epoch][name], one[0][0][name]), (epoch, name)
    assert not torch.equal(one[0][3]["backbone.conv1.weight"], one[0][2]["backbone.conv1.weight"])


def in_each_process() -> None:
    """What the launched processes run."""
    settings = config(LATER[:1], weight_decay=0.1, freeze_batchnorm=True)
    found, trainer = snapshots(settings, load_dataset(DATASET), 3)
    states = [{k: v.contiguous() for k, v in s["network"].items()} for s in found]
    torch.save(states, f"rank{trainer.accelerator.process_index}.pt")


# ---- files -------------------------------------------------------------------------------------


def test_files_are_smaller_by_the_frozen_share(tiny, monkeypatch):
    sizes = {}
    for name, patterns in (("whole", ()), ("part", LOW), ("head", BODY)):
        directory = train_tiny(config(patterns, ema=0.9, select="best"), name)
        weights, last = directory / "weights.safetensors", directory / "last.pt"
        sizes[name] = weights.stat().st_size, last.stat().st_size
    frozen = sum(
        v.numel() * v.element_size()
        for k, v in fresh().state_dict().items()
        if k in freeze(fresh(), LOW, batchnorm=False)
    )
    assert frozen > 200_000
    weights, last = (sizes["whole"][i] - sizes["part"][i] for i in (0, 1))
    assert frozen < weights < 1.1 * frozen
    assert last > 3.9 * frozen  # objective, momentum, moving average and the best epoch
    assert sizes["head"][0] < 0.02 * sizes["whole"][0]


def test_a_part_and_its_rest_give_what_a_whole_file_gives(tiny):
    job = Fold(config(ema=0.9), tiny, 0, RUNS / DATASET / "exp" / "stage1" / "fold0", start("fp32"))
    trainer, loader, _ = build_trainer(job)
    trainer.train_epoch(loader, 0)
    save = partial(save_network, model=job.config.model, prep=trainer.prep, data=tiny)
    whole = save(Path("whole.safetensors"), trainer.evaluated)
    part = save(Path("part.safetensors"), trainer.evaluated, rest=trainer.rest)
    images, _ = random_batch()
    one, two = (load_network(path, tiny)[0](images).logits for path in (whole, part))
    assert torch.equal(one, two)
    about, tensors = tensors_of(part)
    rest = {k: v for k, v in trainer.network.state_dict().items() if k not in tensors}
    assert about["frozen"] == {
        "source": str(SOURCE),
        "source_sha256": sha256(SOURCE),
        "sha256": tensors_sha256(rest),
        "body": False,
    }
    assert "frozen" not in tensors_of(whole)[0]


def test_another_rest_makes_another_file(tiny):
    """So that what 03 and 05 keep by the hash of the file is right."""
    found = []
    for seed in (0, 1):
        write_source(seed)
        job = Fold(config(), tiny, 0, RUNS / DATASET / "exp", start("fp32"))
        rest = build_trainer(job)[0].rest
        network, prep = build_network(job.config.model, some_classes(6))
        for p in network.parameters():
            torch.nn.init.zeros_(p)
        found.append(save_network(Path(f"{seed}"), network, job.config.model, prep, tiny, rest))
    tensors = [tensors_of(path)[1] for path in found]
    assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])
    assert sha256(found[0]) != sha256(found[1])


def test_random_weights_are_all_saved_and_so_is_what_the_source_lacks(tiny):
    directory = train_tiny(config(model={"pretrained": False}), "random")
    about, tensors = tensors_of(directory / "weights.safetensors")
    assert "frozen" not in about and tensors.keys() == fresh().state_dict().keys()
    SOURCE.unlink()
    load_network(directory / "weights.safetensors", tiny)
    state = write_source()
    save_file({k: v for k, v in state.items() if k != "conv1.weight"}, SOURCE)
    directory = train_tiny(config(), "lacking")
    about, tensors = tensors_of(directory / "weights.safetensors")
    assert "backbone.conv1.weight" in tensors and "backbone.layer1.0.conv1.weight" not in tensors
    load_network(directory / "weights.safetensors", tiny)


def test_a_missing_or_other_source_is_named_with_its_hash(tiny):
    weights = train_tiny(config(), "exp") / "weights.safetensors"
    digest = sha256(SOURCE)
    write_source(seed=1)
    with pytest.raises(UserError) as error:
        load_network(weights, tiny)
    says = f"comes from {SOURCE}, sha256 {digest}, but the file there now has {sha256(SOURCE)}"
    assert says in str(error.value)
    SOURCE.unlink()
    with pytest.raises(UserError) as error:
        load_network(weights, tiny)
    assert f"{SOURCE}, sha256 {digest}, which is missing; put it there" in str(error.value)
    write_source()
    load_network(weights, tiny)


def test_a_run_goes_on_from_the_same_frozen_weights_alone(tiny, monkeypatch):
    name = "runs/tiny/old/stage1/fold0/weights.safetensors"
    train_tiny(config(()), "old")
    settings = config(model={"pretrained": "experiment:old"})
    train_tiny(settings, "killed", stop_after=2, monkeypatch=monkeypatch)
    write_source(seed=1)
    Path(name).unlink()
    (Path(name).parent / MANIFEST).unlink()
    (Path(name).parent / "last.pt").unlink()
    train_tiny(config(()), "old")
    with pytest.raises(UserError, match="trained on frozen weights of runs/tiny/old"):
        train_tiny(settings, "killed")


def test_a_chain_of_frozen_experiments_is_followed_to_its_end(tiny):
    train_tiny(config(BODY), "first")
    chained = config(BODY, model={"pretrained": "experiment:first"})
    weights = train_tiny(chained, "second") / "weights.safetensors"
    about, tensors = tensors_of(weights)
    assert about["frozen"]["source"] == "runs/tiny/first/stage1/fold0/weights.safetensors"
    assert tensors.keys() == {"classifier.weight", "classifier.bias"}
    network, _ = load_network(weights, tiny)
    for name, tensor in write_source().items():
        assert torch.equal(network.backbone.state_dict()[name], tensor)
    SOURCE.unlink()
    with pytest.raises(UserError, match="runs/tiny/first.*source.safetensors.*missing"):
        load_network(weights, tiny)


def test_the_hubs_weights_are_fetched_again(tiny, monkeypatch):
    create, offline = backbone_module.timm.create_model, []
    torch.manual_seed(3)
    save_file(create("resnet10t", num_classes=1000).state_dict(), "hub.safetensors")

    def from_the_hub(name, pretrained, **kwargs):
        if pretrained and offline:
            raise OSError("no network")
        if pretrained:
            kwargs["pretrained_cfg_overlay"] = {"file": "hub.safetensors"}
        return create(name, pretrained=pretrained, **kwargs)

    monkeypatch.setattr(backbone_module.timm, "create_model", from_the_hub)
    settings = config(BODY, {"backbone": "resnet10t", "pretrained": True, "image_size": 32})
    weights = train_tiny(settings, "exp") / "weights.safetensors"
    about, tensors = tensors_of(weights)
    assert about["frozen"]["source"] == "timm's hub (resnet10t)" and len(tensors) == 2
    load_network(weights, tiny)
    offline.append(True)
    with pytest.raises(UserError) as error:
        load_network(weights, tiny)
    assert about["frozen"]["sha256"] in str(error.value) and "no network" in str(error.value)


def test_a_resampled_grid_is_resampled_again(tiny):
    import timm

    name, small = "vit_tiny_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}
    save_file(timm.create_model(name, **small, img_size=32).state_dict(), "vit.safetensors")
    model = {"backbone": name, "kwargs": small | {"img_size": 48}, "image_size": 48}
    settings = config(BODY, model | {"pretrained": "vit.safetensors"}, epochs=2)
    weights = train_tiny(settings, "exp") / "weights.safetensors"
    assert len(tensors_of(weights)[1]) == 2
    network, _ = load_network(weights, tiny)
    assert network.backbone.pos_embed.shape[1] == 10


# ---- the stages after it, and runs from before --------------------------------------------------


def test_stages_after_it_work(tiny):
    settings = config(epochs=2)
    heads = [{"head": "crt", "epochs": 2}]
    heads.append({"head": "crt", "name": "live", "bn": "train", "epochs": 2})
    settings = with_values(settings, {"stage2": heads}, "test")
    for fold in (0, 1):
        directory = RUNS / DATASET / "exp" / "stage1" / f"fold{fold}"
        stage1_module.train_fold(Fold(settings, tiny, fold, directory, start("fp32")), False)
    assert len(stage2(settings, "exp", False)) == 4
    posthoc(settings, "exp")
    paths = predict(settings, "exp", False)
    for name in ("stage1", "crt", "live"):
        assert np.isfinite(read_arrays(paths[name])["logits"]).all()


def test_a_run_from_before_these_keys_is_finished_already(tiny, capsys):
    settings = config(())
    directory = train_tiny(settings, "old")
    manifest = read_json(directory / MANIFEST)
    for key in ("freeze", "freeze_batchnorm"):
        del manifest["settings"]["train"][key]
    write_json(directory / MANIFEST, manifest)
    before = (directory / "weights.safetensors").stat().st_mtime_ns
    train_tiny(settings, "old")
    assert "finished already, skipped" in capsys.readouterr().out
    assert (directory / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="train.freeze.0.name: None there, .* now"):
        train_tiny(config(), "old")


def test_nothing_frozen_leaves_checkpoint_and_file_as_they_were(tiny):
    directory = train_tiny(config(()), "exp")
    last = torch.load(directory / "last.pt", weights_only=True)
    keys = {"settings", "inputs", "history", "best", "objective", "optimizer", "ema", "scaler"}
    assert last.keys() == keys
    assert tensors_of(directory / "weights.safetensors")[0].keys() == {
        "model",
        "preprocessing",
        "classes_sha256",
        "num_classes",
    }


def test_a_run_in_which_what_was_frozen_were_names_is_finished_already(tiny, capsys):
    directory = train_tiny(config(), "old")
    manifest = read_json(directory / MANIFEST)
    manifest["settings"]["train"]["freeze"] = list(LOW)
    write_json(directory / MANIFEST, manifest)
    train_tiny(config(), "old")
    assert "finished already, skipped" in capsys.readouterr().out
    with pytest.raises(UserError, match="train.freeze.0.until: None there, 1 now"):
        train_tiny(config([{"name": LOW[0], "until": 1}, *LOW[1:]]), "old")


if __name__ == "__main__":
    in_each_process()
