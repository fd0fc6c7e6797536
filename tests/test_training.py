"""Stage 1: resume is bit-identical, memory errors are handled, several processes agree."""

import subprocess
import sys
import weakref
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import src.training.fit as fit_module
import src.training.keep as keep_module
import src.training.stage1 as stage1_module
import src.training.train as train_module
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, sha256
from src.artifacts.predictions import load_predictions
from src.config.model import Model
from src.config.training import Train
from src.errors import UserError
from src.networks.base import Body, Progress
from src.networks.build import build_network
from src.runtime import emulated, start
from src.training.fold import Fold
from src.training.job import build_trainer
from src.training.loop import Objective, Trainer
from src.training.optim import build_optimizer, build_schedule
from src.training.stage1 import stage1
from tests.conftest import ROOT, digits_config
from tests.fabricate import count, seal, some_classes
from tests.training_kit import resumes_exactly, tiny_config, tiny_dataset, train_tiny

STAGE1 = Path("runs/digits/exp/stage1")


def weights(name="fold0", experiment="exp") -> str:
    return sha256(Path(f"runs/digits/{experiment}/stage1/{name}/weights.safetensors"))


def oof(name="fold0", experiment="exp") -> str:
    return sha256(Path(f"runs/digits/{experiment}/stage1/{name}/oof.npz"))


# ---- what 02 leaves behind ---------------------------------------------------------------------


def test_folds_of_one_experiment_are_trained_with_one_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    stage1(tiny_config(), "exp", ["0"], False)
    other, about = tiny_config(train={"lr": 0.01}), Path("runs/tiny/exp/config.yaml")
    with pytest.raises(UserError, match="fold0/manifest.json: made with another config") as said:
        stage1(other, "exp", ["1"], False)
    assert "train.lr: 0.05 there, 0.01 now" in str(said.value) and "lr: 0.05" in about.read_text()
    stage1(other, "exp", ["0", "1"], True)  # all of them anew
    assert "lr: 0.01" in about.read_text()


def test_a_run_that_is_refused_leaves_no_config_and_all_that_it_was_to_replace(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    home, wrong = Path("runs/tiny/exp"), tiny_config({"backbone": "mobilnetv2_100"})
    with pytest.raises(UserError, match="timm has no model 'mobilnetv2_100'"):
        stage1(wrong, "exp", ["0"], False)
    assert not (home / "config.yaml").exists()
    stage1(tiny_config(), "exp", ["0"], False)
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"}
    with pytest.raises(UserError, match="timm has no model 'mobilnetv2_100'"):
        stage1(wrong, "exp", ["0"], True)
    assert {p: p.read_bytes() for p in before} == before
    other, save = tiny_config(train={"lr": 0.01}), fit_module.save_checkpoint

    def stopped(where: Path, state: dict) -> None:
        save(where, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_module, "save_checkpoint", stopped)
        stage1(other, "exp", ["0"], True)
    assert {p: p.read_bytes() for p in before} == before
    stage1(other, "exp", ["0"], False)
    assert "lr: 0.01" in (home / "config.yaml").read_text()
    assert read_json(home / "stage1/fold0/manifest.json")["settings"]["train"]["lr"] == 0.01
    assert not list((home / "stage1").glob(".*.new"))


def test_files_that_a_config_names_are_looked_for_before_it_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    train_tiny(tiny_config(), "exp", stop_after=1, monkeypatch=monkeypatch)
    for pretrained, said in (
        ("w.pth", r"model.pretrained: w.pth is missing \(working directory"),
        ("experiment:gone", "gone/stage1/fold0/weights.safetensors is missing"),
    ):
        wrong = tiny_config({"pretrained": pretrained})
        with pytest.raises(UserError, match=said):
            stage1(wrong, "exp", ["0"], False)
    Path("c.yaml").write_text("{data: {root: tiny}, model: {pretrained: w.pth}}")
    code = "import sys, runpy; sys.argv[1:] = ['--config', 'c.yaml']\ntry:\n"
    code += f"    runpy.run_path({str(ROOT / '02_train_stage1.py')!r}, run_name='__main__')\n"
    code += "finally:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert "w.pth is missing" in done.stderr and done.stdout == "False\n"


def test_out_of_fold_covers_every_image_that_is_not_always_train_exactly_once(digits, curves):
    stage1(digits_config("train.epochs=1"), "exp", [], False)
    data = load_dataset("digits")
    parts = [load_predictions(STAGE1 / f"fold{k}" / "oof.npz", 10) for k in data.folds]
    found = np.concatenate([p.image_id for p in parts])
    expected = data.images.loc[data.images["fold"] >= 0, "image_id"]
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found)
    for k, part in zip(data.folds, parts, strict=True):
        assert set(part.fold) == {k}
        assert part.features.shape == (len(part.image_id), 64)
    assert (STAGE1 / "curves.png").stat().st_size > 0
    assert Path("runs/digits/exp/config.yaml").is_file()


def test_full_trains_on_every_image_and_has_no_oof(digits):
    stage1(digits_config("train.epochs=1"), "exp", ["full"], False)
    assert not (STAGE1 / "full" / "oof.npz").exists()
    assert (STAGE1 / "full" / "weights.safetensors").is_file()
    assert read_json(STAGE1 / "full" / "manifest.json")["metrics"] == {}


def test_one_row_per_epoch_with_everything_a_curve_needs(digits):
    stage1(digits_config("train.epochs=3", "train.eval_every=2"), "exp", ["0"], False)
    rows = pd.read_csv(STAGE1 / "fold0" / "metrics.csv")
    assert rows["epoch"].tolist() == [1, 2, 3]
    assert rows["balanced_accuracy"].isna().tolist() == [True, False, False]
    columns = {"lr", "loss", "loss_criterion", "seconds", "images_per_second", "peak_memory_mib"}
    assert columns | {"many", "medium", "few", "nll", "top5"} <= set(rows.columns)


def test_the_same_command_twice_is_skipped_and_another_config_stops(digits, capsys):
    config = digits_config("train.epochs=1")
    first = stage1(config, "exp", ["0"], False)
    second = stage1(config, "exp", ["0"], False)
    assert "finished already, skipped" in capsys.readouterr().out
    pd.testing.assert_frame_equal(first, second)
    with pytest.raises(UserError, match="train.lr: 0.05 there, 0.2 now"):
        stage1(digits_config("train.epochs=1", "train.lr=0.2"), "exp", ["0"], False)
    before = weights()
    stage1(digits_config("train.epochs=1", "train.lr=0.2"), "exp", ["0"], True)
    assert weights() != before


def test_a_fold_is_trained_without_the_networks_of_those_before_it(digits, monkeypatch):
    """Weights, gradients and moments of five folds would fill a GPU that one fold fits in."""
    networks, alive = [], []

    def watched(*args, **options):
        alive.append(sum(network() is not None for network in networks))
        built = build_trainer(*args, **options)
        networks.append(weakref.ref(built[0].network))
        return built

    monkeypatch.setattr(train_module, "build_trainer", watched)
    stage1(digits_config("train.epochs=1", "train.ema=0.9"), "exp", ["0", "1"], False)
    assert alive == [0, 0]


@pytest.mark.parametrize(("every", "times"), [(60, 1), (0, 2)])
def test_curves_are_drawn_at_the_end_and_now_and_then(tmp_path, monkeypatch, every, times):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    monkeypatch.setattr(stage1_module, "DRAW_EVERY", every)
    drawn = count(monkeypatch, stage1_module, "_draw")
    stage1(tiny_config(train={"epochs": 1}), "exp", [], False)
    assert len(drawn) == times


def test_changed_folds_stop_a_finished_run(digits):
    stage1(digits_config("train.epochs=1"), "exp", ["0"], False)
    table = Path("runs/digits/folds/folds.csv")
    table.write_text(table.read_text().replace(",0,", ",1,", 1))
    seal(table.parent)
    with pytest.raises(UserError, match="another 'folds.csv'"):
        stage1(digits_config("train.epochs=1"), "exp", ["0"], False)


@pytest.mark.parametrize("fold", ["7", "x", "-1"])
def test_a_fold_that_does_not_exist_is_an_error(digits, fold):
    with pytest.raises(UserError, match="expected numbers of"):
        stage1(digits_config(), "exp", [fold], False)


# ---- resume ------------------------------------------------------------------------------------


def stop_after(monkeypatch, epochs: int) -> None:
    """Let a run die while it trains epoch number `epochs` (0-based)."""
    train_epoch = Trainer.train_epoch

    def dying(self, loader, epoch):
        if epoch == epochs:
            raise KeyboardInterrupt
        return train_epoch(self, loader, epoch)

    monkeypatch.setattr(Trainer, "train_epoch", dying)


@pytest.mark.parametrize(
    "model, train",
    [
        ({"dropout": 0.3}, {"ema": 0.9, "mixing": {"mixup": 0.4, "cutmix": 1.0}}),
        ({}, {"optimizer": "adamw", "lr": 0.001, "micro_batch": 4, "clip_grad": 1.0}),
        ({}, {"select": "best", "precision": "bf16", "schedule": "multistep"}),
    ],
    ids=["ema-mix-dropout", "adamw-accumulate-clip", "best-bf16-multistep"],
)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(model, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    config = tiny_config(model, train)
    stage1(config, "whole", ["0"], False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        stage1(config, "exp", ["0"], False)
    whole, fold = (Path("runs/tiny") / name / "stage1" / "fold0" for name in ("whole", "exp"))
    assert not (fold / "manifest.json").exists()
    stage1(config, "exp", ["0"], False)
    for name in ("weights.safetensors", "head.safetensors", "oof.npz"):
        assert sha256(fold / name) == sha256(whole / name)
    assert len(pd.read_csv(fold / "metrics.csv")) == 3


@pytest.mark.parametrize(
    "model, train",
    [
        ({}, {"deferred": {"sampling": True, "start": 0.6}}),  # begins where the run went on
        ({"anti_alias": True}, {}),
        ({}, {"criterion": {"name": "seesaw"}}),
        ({}, {"criterion": {"name": "lade"}, "deferred": {"weights": True, "start": 0.5}}),
        ({}, {"criterion": {"name": "focal"}, "sampler": "power", "sampler_power": 0.25}),
        ({}, {"criterion": {"name": "class_balanced", "form": "sigmoid", "gamma": 1.0}}),
        ({}, {"criterion": {"name": "balanced_softmax"}, "sampler": "instance"}),
        ({}, {"sampler": "progressive"}),
    ],
    ids=[
        "drs",
        "anti-alias",
        "seesaw",
        "lade-drw",
        "focal-power",
        "cb-focal",
        "balanced-softmax",
        "progressive",
    ],
)
def test_a_method_that_was_stopped_ends_with_the_same_bytes(model, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    whole = resumes_exactly(tiny_config(model, train), monkeypatch)
    assert (whole / "manifest.json").is_file()


def watch_evaluations(monkeypatch) -> list[np.ndarray]:
    """The logits of every evaluation, in order."""
    seen, evaluate = [], fit_module.evaluate

    def watched(*args):
        found = evaluate(*args)
        seen.append(found.logits)
        return found

    for module in (fit_module, train_module):
        monkeypatch.setattr(module, "evaluate", watched)
    return seen


def test_the_last_epoch_is_evaluated_once_also_after_a_kill(digits, monkeypatch):
    config = digits_config()
    seen = watch_evaluations(monkeypatch)
    stage1(config, "whole", ["0"], False)
    assert len(seen) == 2
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keep_module, "save_network", Mock(side_effect=KeyboardInterrupt))
        stage1(config, "exp", ["0"], False)
    assert (STAGE1 / "fold0" / "last.pt").is_file() and len(seen) == 4
    stage1(config, "exp", ["0"], False)
    assert len(seen) == 5  # what was in memory is gone
    assert weights() == weights(experiment="whole") and oof() == oof(experiment="whole")


@pytest.mark.parametrize("best", [0, 1])
def test_the_out_of_fold_logits_are_those_of_the_kept_epoch(digits, monkeypatch, best):
    seen, scores = watch_evaluations(monkeypatch), fit_module.scores

    def planted(job, found):
        return scores(job, found) | {"balanced_accuracy": float(len(seen) - 1 == best)}

    monkeypatch.setattr(fit_module, "scores", planted)
    stage1(digits_config("train.select=best"), "exp", ["0"], False)
    assert len(seen) == (3 if best == 0 else 2)
    assert not np.array_equal(seen[0], seen[1])
    found = load_predictions(STAGE1 / "fold0" / "oof.npz", 10)
    np.testing.assert_array_equal(found.logits, seen[best])


def test_a_stopped_run_does_not_go_on_with_another_config(digits, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        stage1(digits_config(), "exp", ["0"], False)
    with pytest.raises(UserError, match="train.epochs: 2 there, 5 now"):
        stage1(digits_config("train.epochs=5"), "exp", ["0"], False)


def test_a_damaged_checkpoint_is_named(digits, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 1)
        stage1(digits_config(), "exp", ["0"], False)
    path = STAGE1 / "fold0" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="last.pt: damaged checkpoint"):
        stage1(digits_config(), "exp", ["0"], False)


def test_select_best_keeps_the_best_epoch_and_says_so(digits):
    config = digits_config("train.epochs=4", "train.select=best", "train.lr=0.3")
    stage1(config, "exp", ["0"], False)
    rows = pd.read_csv(STAGE1 / "fold0" / "metrics.csv")
    manifest = read_json(STAGE1 / "fold0" / "manifest.json")
    assert manifest["select"] == "best"
    best = rows["balanced_accuracy"].max()
    assert manifest["metrics"]["balanced_accuracy"] == pytest.approx(best, abs=1e-9)


# ---- memory and numbers ------------------------------------------------------------------------


def small_memory(monkeypatch, images: int) -> list[int]:
    """A device on which more than `images` per forward pass do not fit; lists what was tried."""
    tried: list[int] = []
    forward = Objective.forward

    def limited(self, batch, progress):
        tried.append(len(batch.labels))
        if len(batch.labels) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, progress)

    monkeypatch.setattr(Objective, "forward", limited)
    return tried


def test_out_of_memory_says_which_size_fits(digits, monkeypatch):
    small_memory(monkeypatch, 20)
    with pytest.raises(UserError, match="64 images per forward pass; micro-batches of 16 fit"):
        stage1(digits_config(), "exp", ["0"], False)
    small_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="not even one image fits"):
        stage1(digits_config(), "exp", ["0"], False)


def test_out_of_memory_goes_on_with_accumulation_when_asked(digits, monkeypatch):
    tried = small_memory(monkeypatch, 20)
    stage1(digits_config("train.on_oom=accumulate"), "exp", ["0"], False)
    assert tried[:3] == [64, 32, 16] and set(tried[3:]) == {16}


def build(*settings: str):
    config = digits_config(*settings)
    data = load_dataset("digits")
    return build_trainer(Fold(config, data, 0, Path("x"), start("fp32")))


def test_accumulated_gradients_are_those_of_the_whole_batch(digits):
    grads = []
    for micro in ("64", "16"):
        trainer, loader, _ = build(f"train.micro_batch={micro}")
        trainer.objective.eval()  # batch norm is the one thing that sees the micro-batch
        trainer._backward(next(iter(loader)), Progress(0, 0, 0.0))
        grads.append(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_a_loss_that_explodes_is_said_in_words(digits):
    with pytest.raises(UserError, match="Lower train.lr"):
        stage1(digits_config("train.lr=1e18"), "exp", ["0"], False)


def test_the_batch_must_divide_among_the_processes(digits, monkeypatch):
    accelerator = start("fp32")
    monkeypatch.setattr(type(accelerator), "num_processes", property(lambda self: 3))
    monkeypatch.setattr(stage1_module, "start", lambda *_: accelerator)
    with pytest.raises(UserError, match="multiple of the number of processes"):
        stage1(digits_config(), "exp", ["0"], False)


@pytest.mark.parametrize(
    "model, train",
    [
        ({}, {"ema": 0.9, "auxiliaries": [{"name": "frequency"}]}),
        ({"network": "kt"}, {}),
        ({"network": {"name": "fbsd", "widths": [16, 32, 16]}}, {}),
        (
            {"network": "paco"},
            {"second_sampler": "same", "criterion": {"name": "balanced_softmax"}},
        ),
        (
            {
                "backbone": "vit_tiny_patch16_224",
                "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
                "network": {"name": "transfg", "stride": 3},
            },
            {},
        ),
    ],
)
def test_a_compiled_network_learns_and_keeps_the_same_weights(model, train, tmp_path, monkeypatch):
    """Traced, and run with the kernels that are used without compiling."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    graphs = []

    def traced_only(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=traced_only))
    plain = train_tiny(tiny_config(model, train), "plain")
    traced = train_tiny(tiny_config(model, train | {"compile": True}), "compiled")
    assert graphs
    heads = [path.name for path in plain.glob("head*.safetensors")]
    assert heads
    for name in ("weights.safetensors", *heads, "oof.npz"):
        assert sha256(plain / name) == sha256(traced / name), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_compiler_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(UserError, match="C\\+\\+ compiler .* train.compile=false"):
        train_tiny(tiny_config(train={"compile": True}), "exp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("known", [True, False])
def test_bf16_that_the_cpu_only_imitates_is_said(known, tmp_path, capsys, monkeypatch):
    """Of x86, AVX2 converts every number; AVX-512 and ARM do not need the note."""
    monkeypatch.setattr(
        torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if known else "AVX2"
    )
    monkeypatch.chdir(tmp_path)
    tiny_dataset()
    stage1(tiny_config(train={"precision": "bf16", "epochs": 1}), "exp", ["0"], False)
    assert ("no instructions for bf16" in capsys.readouterr().out) == (not known)
    others = {"no": "cpu", "bf16": "cuda"}  # fp32 there, and a GPU in such a machine
    for precision, device in others.items():
        assert not emulated(SimpleNamespace(mixed_precision=precision, device=torch.device(device)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_without_a_gpu_is_refused_in_words(digits):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        stage1(digits_config("train.precision=fp16"), "exp", ["0"], False)


def test_a_tracker_that_is_not_installed_is_named(digits):
    with pytest.raises(UserError, match="pip install trackio"):
        stage1(digits_config("train.tracker=trackio"), "exp", ["0"], False)


# ---- optimizer and schedule -------------------------------------------------------------------


def lrs(train: Train, steps=10) -> list[float]:
    module = nn.Sequential(nn.Linear(2, 2))
    optimizer = build_optimizer(train, module, [Body(module)])
    schedule = build_schedule(train, optimizer, steps)
    found = []
    for step in range(train.epochs * steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_cosine_warms_up_and_falls_to_the_end():
    found = lrs(Train(epochs=10, lr=1.0, warmup_epochs=2, min_lr=0.0))
    assert found[0] == pytest.approx(0.01)
    assert np.all(np.diff(found[:20]) > 0) and np.all(np.diff(found[21:]) < 0)
    middle = 0.5 * (1 + np.cos(np.pi * 0.5))
    assert found[50] == pytest.approx(middle, abs=1e-6) and found[-1] < 0.01


def test_multistep_drops_at_its_milestones():
    train = Train(epochs=10, lr=1.0, warmup_epochs=0, schedule="multistep", milestones=(0.5, 0.8))
    found = lrs(train)
    assert (found[49], found[50], found[80]) == pytest.approx((1.0, 0.1, 0.01))


def test_layer_decay_lowers_the_lr_towards_the_input_and_norms_do_not_decay():
    model = Model(backbone="resnet18", pretrained=False, image_size=32)
    network, _ = build_network(model, some_classes(5))
    train = Train(layer_decay=0.5, head_lr_factor=10.0, lr=1.0, weight_decay=0.1)
    optimizer = build_optimizer(train, network, network.bodies())
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    first, last = network.backbone.conv1.weight, network.backbone.layer4[1].conv2.weight
    assert scale[id(first)] < scale[id(last)] <= 1
    assert scale[id(network.classifier.weight)] == 10
    assert decay[id(first)] == 0.1 and decay[id(network.backbone.bn1.weight)] == 0
    assert len(scale) == len(list(network.parameters()))
    small, _ = build_network(
        Model(backbone="cifar_resnet20", pretrained=False, image_size=16), some_classes(5)
    )
    with pytest.raises(UserError, match="layer_decay"):
        build_optimizer(train, small, small.bodies())


def decays(train: Train, network) -> dict[str, float]:
    """The weight decay of each parameter of a network, by name; every one is in a single group."""
    optimizer = build_optimizer(train, network, network.bodies())
    found = [(id(p), g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    names = {id(p): name for name, p in network.named_parameters()}
    assert sorted(i for i, _ in found) == sorted(names)
    return {names[i]: decay for i, decay in found}


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_for_matrices_alone_or_for_everything(optimizer, layer_decay):
    model = Model(backbone="resnet18", pretrained=False, image_size=32)
    network, _ = build_network(model, some_classes(5))
    keys = {"optimizer": optimizer, "layer_decay": layer_decay, "weight_decay": 2e-4}
    found = decays(Train(**keys), network)
    assert {found["backbone.bn1.weight"], found["classifier.bias"]} == {0.0}
    assert {found["backbone.conv1.weight"], found["classifier.weight"]} == {2e-4}
    assert set(decays(Train(**keys, decay_all=True), network).values()) == {2e-4}


@pytest.mark.parametrize(
    "keys, nesterov",
    [({}, True), ({"nesterov": False}, False), ({"momentum": 0.0}, False)],
)
def test_momentum_is_nesterovs_unless_asked_otherwise(keys, nesterov):
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(Train(optimizer="sgd", **keys), module, [Body(module)])
    assert all(group["nesterov"] is nesterov for group in optimizer.param_groups)


def test_the_published_cifar_optimizer_takes_the_very_steps_of_plain_sgd():
    """v ← 0.9 v + g + λ w, w ← w − lr v, on weights and biases alike."""
    keys = {"optimizer": "sgd", "nesterov": False, "decay_all": True, "weight_decay": 2e-4}
    module = nn.Linear(3, 2)
    optimizer = build_optimizer(Train(lr=0.1, **keys), module, [Body(module)])
    wanted = [p.detach().clone() for p in module.parameters()]
    speed = [torch.zeros_like(p) for p in wanted]
    for step in range(3):
        optimizer.zero_grad()
        module(torch.full((1, 3), float(step))).square().sum().backward()
        for w, v, p in zip(wanted, speed, module.parameters(), strict=True):
            v.mul_(0.9).add_(p.grad + 2e-4 * w)
            w.sub_(0.1 * v)
        optimizer.step()
        for w, p in zip(wanted, module.parameters(), strict=True):
            torch.testing.assert_close(w, p.detach())


def test_classical_momentum_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="nesterov: false is for the optimizer sgd"):
        Train(optimizer="adamw", nesterov=False)
    dumped = Train(optimizer="adamw").model_dump()
    assert Train.model_validate(dumped).nesterov  # a full dump of the defaults is fine


# ---- several processes -------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_cover_every_image_once_and_learn_the_same(digits):
    sets = ["folds.k=3", "train.epochs=4", "train.lr=0.05", "train.warmup_epochs=0"]
    config = str(ROOT / "configs" / "digits.yaml")
    script = str(ROOT / "02_train_stage1.py")
    arguments = [script, "--config", config, "--folds", "0", "--set", *sets]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for command, name in (([sys.executable], "one"), (launch, "two")):
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/folds").symlink_to(Path("runs/digits/folds").resolve())
        found = subprocess.run(
            [*command, *arguments, f"data.name={name}"], capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        assert found.stdout.count("epoch 1/4") == 1  # one process speaks
    parts = [
        load_predictions(Path(f"runs/{n}/digits/stage1/fold0/oof.npz"), 10) for n in ("one", "two")
    ]
    held_out = load_dataset("digits").held_out(0)["image_id"]
    for part in parts:
        assert part.image_id.tolist() == held_out.tolist()
    facts = [read_json(Path(f"runs/{n}/digits/stage1/fold0/manifest.json")) for n in ("one", "two")]
    assert [f["processes"] for f in facts] == [1, 2]
    agree = np.mean(parts[0].logits.argmax(1) == parts[1].logits.argmax(1))
    assert agree > 0.7  # batch norm sees half batches, everything else is the same
