"""WiSE-FT: weights between where a training began and where it ended, fitted out of fold."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_json
from src.artifacts.predictions import load_predictions
from src.artifacts.work import MANIFEST
from src.config.read import with_values
from src.errors import UserError
from src.inference.predict import predict
from src.metrics.gain import paired_gain
from src.networks.average import Average
from src.networks.cifar_resnet import DEPTHS, CifarResNet
from src.networks.weights import load_network
from src.posthoc.calibrate import posthoc
from src.rebalance.stage2 import stage2
from src.runtime import start
from src.training.kitchen import START, Kitchen, mixed, outcome_of, start_of
from src.training.soup import soup
from src.training.stage1 import stage1
from src.training.wise import between, fit_line
from tests.fabricate import seal
from tests.training_kit import tiny_config, tiny_dataset

TINY, SOURCE = Path("runs/tiny"), "body.safetensors"
MODEL = {"pretrained": SOURCE, "head_init": "class_means"}
SHORT = {"epochs": 2, "ema": 0.9}
PARTLY = SHORT | {"freeze": ["backbone.layer1.*", "backbone.layer2.*"], "freeze_batchnorm": True}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    """Experiments `tuned`, and `partly` of which files hold what was trained, both folds."""
    home, back = tmp_path_factory.mktemp("wise"), Path.cwd()
    os.chdir(home)
    try:
        tiny_dataset()
        torch.manual_seed(3)
        save_file(CifarResNet(DEPTHS["cifar_resnet20"]).state_dict(), SOURCE)
        for name, train in (("tuned", SHORT), ("partly", PARTLY)):
            stage1(tiny_config(MODEL, train), name, [], False)
    finally:
        os.chdir(back)
    return home


@pytest.fixture
def tiny(trained_once, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wise_config(member="tuned", **values):
    keys = {"members": [member], "mode": "wise", "grid": 4, "batchnorm": False}
    return with_values(tiny_config(MODEL), {"soup": keys, "metric": "accuracy"} | values, "test")


def kitchen_of(*args, **values) -> Kitchen:
    return Kitchen(wise_config(*args, **values), load_dataset("tiny"), start("fp32"))


def file_of(experiment: str, fold=0, name="weights.safetensors") -> Path:
    return TINY / experiment / f"stage1/fold{fold}" / name


def made_noise(experiment: str) -> None:
    """Trained weights that are noise, and held-out logits that are as wrong as can be."""
    generator = torch.Generator().manual_seed(0)
    for fold in (0, 1):
        path = file_of(experiment, fold)
        with safe_open(path, "pt") as file:
            about = file.metadata()
        state = load_file(path)
        for name, tensor in state.items():
            if "classifier" in name:
                state[name] = torch.randn(tensor.shape, generator=generator) * 100
        save_file(state, path, about)
        found = load_predictions(path.with_name("oof.npz"), 6)
        wrong = -np.eye(6, dtype=np.float32)[found.label]
        found.with_logits(wrong).save(path.with_name("oof.npz"))
        seal(path.parent)


# ---- the line ----------------------------------------------------------------------------------


def test_a_weighted_mean_is_that_of_the_formula_in_float64():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=1000).astype(np.float32) for _ in range(2))
    for alpha in (0.0, 0.1, 0.3, 0.5, 1.0):
        mean = Average()
        mean.add({"w": torch.from_numpy(a)}, 1 - alpha)
        mean.add({"w": torch.from_numpy(b)}, alpha)
        expected = (1 - alpha) * a.astype(np.float64) + alpha * b.astype(np.float64)
        np.testing.assert_allclose(mean.mean()["w"].numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("member", ["tuned", "partly"])
def test_the_ends_of_the_line_are_start_and_trained_bit_for_bit(tiny, member):
    kitchen = kitchen_of(member)
    began = start_of(kitchen, 0)[0].state_dict()
    trained = load_network(file_of(member), kitchen.data)[0].state_dict()
    for alpha, end in ((0.0, began), (1.0, trained)):
        found = mixed(kitchen, between(member, alpha), 0).network.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in end.items())
    middle = mixed(kitchen, between(member, 0.25), 0)
    for name, tensor in middle.network.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.75 * began[name].double() + 0.25 * trained[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_start_is_what_02_began_from(tiny):
    """With a learning rate of next to nothing, what is saved is that; and with no epoch at all."""
    still = {"epochs": 1, "lr": 1e-20, "min_lr": 1e-20, "freeze_batchnorm": True}
    for name, train, atol in (("still", still, 1e-15), ("none", {"epochs": 0}, 0)):
        stage1(tiny_config(MODEL, train), name, [], False)
        began = start_of(kitchen_of(name), 1)[0].state_dict()
        saved = load_network(file_of(name, 1), load_dataset("tiny"))[0].state_dict()
        for key, tensor in saved.items():
            if "batches" not in key:
                torch.testing.assert_close(began[key], tensor, rtol=0, atol=atol)
    assert any(not torch.equal(began[k], v) for k, v in load_file(file_of("tuned", 1)).items())


def test_clips_start_is_the_zero_shot_classifier(tiny):
    """Also of a network that trains with a text tower, which no file of ours holds."""
    pytest.importorskip("open_clip", reason="pip install -r requirements-text.txt")
    from tests.test_clip import CONTRASTIVE, MODEL, TEMPLATES, whole_clip

    clip = {k: v.contiguous() for k, v in whole_clip(custom=False).state_dict().items()}
    save_file(clip, "open_clip.safetensors")
    model = MODEL | {"network": CONTRASTIVE, "pretrained": "open_clip.safetensors"}
    for name, epochs in (("zero", 0), ("clip", 1)):
        config = tiny_config(model, {"epochs": epochs}, text={"templates": TEMPLATES})
        stage1(config, name, [], False)
    keys = {"members": ["clip"], "mode": "wise", "grid": 2}
    soup(with_values(config, {"soup": keys}, "test"), "wise", [], False)
    kitchen = Kitchen(
        with_values(config, {"soup": keys}, "test"), load_dataset("tiny"), start("fp32")
    )
    found = mixed(kitchen, between("clip", 0.0), 1).network.state_dict()
    zero = load_network(file_of("zero", 1), kitchen.data)[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in zero.items())
    scores = read_json(file_of("wise", 1, MANIFEST))["wise"]["scores"]
    assert set(scores) == {"0", "0.5", "1"}


def test_batch_norm_between_the_ends_is_that_of_the_network_there(tiny):
    plain = mixed(kitchen_of(), between("tuned", 0.5), 0).network
    asked = kitchen_of(**{"soup.batchnorm": True})
    fresh = mixed(asked, between("tuned", 0.5), 0).network.state_dict()
    for name, tensor in plain.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, fresh[name]) != ("running" in name), name


# ---- where on it -------------------------------------------------------------------------------


def test_alpha_is_the_best_of_all_on_the_other_folds(tiny):
    """Against a search by hand over networks that are mixed and scored one by one."""
    kitchen = kitchen_of(metric="macro_f1")
    line, right = fit_line(kitchen), {}
    other_kitchen = kitchen_of(metric="macro_f1")
    for fold in (0, 1):
        for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
            right[alpha, fold] = outcome_of(other_kitchen, between("tuned", alpha), fold)
    labels = {
        k: kitchen.data.held_out(k).sort_values("image_id")["label"].to_numpy() for k in (0, 1)
    }

    def f1(predicted, label):
        per_class = []
        for c in range(6):
            hit = ((predicted == c) & (label == c)).sum()
            both = (predicted == c).sum() + (label == c).sum()
            per_class.append(2 * hit / both if both else 0.0)
        return np.mean(per_class)

    for fold in (0, 1):
        other = 1 - fold
        score = {a: f1(right[a, other], labels[other]) for a in (1.0, 0.75, 0.5, 0.25, 0.0)}
        assert line.alphas[fold] == max(score, key=score.get)
    both = np.concatenate([labels[0], labels[1]])
    every = {
        a: f1(np.concatenate([right[a, 0], right[a, 1]]), both) for a in (1.0, 0.75, 0.5, 0.25, 0.0)
    }
    assert line.alphas[None] == max(every, key=every.get)
    assert line.scores == pytest.approx(every)
    after = np.concatenate([right[line.alphas[k], k] for k in (0, 1)])
    before = np.concatenate([right[1.0, k] for k in (0, 1)])
    assert line.gain == paired_gain(before, after, both, 6, "macro_f1")


def test_training_that_was_noise_is_left_out(tiny):
    made_noise("tuned")
    soup(wise_config(), "wise", [], False)
    for fold in (0, 1):
        facts = read_json(file_of("wise", fold, MANIFEST))["wise"]
        assert facts["alpha"] == 0 and facts["dropped"] is None and facts["gain"] > 0.1
        began = start_of(kitchen_of(), fold)[0].state_dict()
        kept = load_file(file_of("wise", fold))
        assert all(torch.equal(kept[name], began[name]) for name in kept)


def test_what_does_not_pass_the_judge_leaves_the_member_as_it_was(tiny):
    made_noise("tuned")  # a gain there is, and the rule asks for more
    soup(wise_config(**{"judge.min_gain": 0.9}), "wise", ["0"], False)
    facts = read_json(file_of("wise", 0, MANIFEST))["wise"]
    assert facts["alpha"] == 1 and facts["fitted"] == 0 and "is not above 0.9" in facts["dropped"]
    kept, member = load_file(file_of("wise")), load_file(file_of("tuned"))
    assert kept.keys() == member.keys() and all(torch.equal(kept[k], member[k]) for k in kept)
    with pytest.raises(UserError, match="judge.min_gain: 0.9 there"):
        soup(wise_config(), "wise", ["0"], False)


def test_ties_go_to_what_was_trained(tiny):
    for fold in (0, 1):  # sure and right, so that nothing is better
        path = file_of("tuned", fold, "oof.npz")
        found = load_predictions(path, 6)
        found.with_logits(np.eye(6, dtype=np.float32)[found.label]).save(path)
        seal(path.parent)
    line = fit_line(kitchen_of())
    assert set(line.alphas.values()) == {1.0} and line.dropped


# ---- an experiment of its own ------------------------------------------------------------------


def test_later_stages_go_on_and_files_hold_what_was_trained(tiny):
    made_noise("partly")
    values = {"stage2": ["ncm"], "posthoc.steps": ["temperature"], "predict.evidence": 0}
    config = wise_config("partly", **values)
    soup(config, "wise", [], False)
    own, theirs = load_file(file_of("wise")), load_file(file_of("partly"))
    assert own.keys() == theirs.keys() and "backbone.layer1.0.conv1.weight" not in own
    stage2(config, "wise", False)
    posthoc(config, "wise")
    assert all(path.is_file() for path in predict(config, "wise", False).values())


def test_full_goes_by_all_folds(tiny):
    stage1(tiny_config(MODEL, SHORT), "tuned", ["full"], False)
    soup(wise_config(**{"judge.standard_errors": 0}), "wise", ["full"], False)
    facts = read_json(TINY / "wise/stage1/full" / MANIFEST)["wise"]
    scores = {float(a): s for a, s in facts["scores"].items()}
    assert facts["fitted"] == max(sorted(scores, reverse=True), key=scores.get)


# ---- what is refused ---------------------------------------------------------------------------


def test_a_start_that_is_gone_or_another_is_named(tiny):
    shutil.copy(SOURCE, "kept")
    state = {name: -tensor for name, tensor in load_file(SOURCE).items()}
    save_file(state, SOURCE)
    with pytest.raises(UserError, match=r"began from body.safetensors .* now has sha256"):
        soup(wise_config(), "wise", [], False)
    Path(SOURCE).unlink()
    with pytest.raises(UserError, match="that file is missing; bring it back"):
        soup(wise_config(), "wise", [], False)
    shutil.copy("kept", SOURCE)
    path = file_of("tuned", 0, MANIFEST)
    write_json(path, read_json(path) | {"settings": {"soup": {"members": ["a", "b"]}}})
    with pytest.raises(UserError, match="tuned is a soup itself"):
        soup(wise_config(), "wise", [], False)
    assert not (TINY / "wise").exists()


def test_a_start_of_another_shape_is_named(tiny):
    path = file_of("tuned")
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(load_file(path) | {"classifier.weight": torch.zeros(6, 7)}, path, about)
    seal(path.parent)
    with pytest.raises(UserError, match=r"classifier.weight is \[6, 7\] in .* and \[6, 64\] in"):
        start_of(kitchen_of(), 0)


def test_the_network_must_be_the_members_with_its_start(tiny):
    with pytest.raises(UserError, match="model.head_init.name is 'class_means' there"):
        soup(wise_config(**{"model.head_init": "random"}), "wise", [], False)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"mode": "wise", "members": ["a", "b"]}, "name one in soup.members"),
        ({"mode": "greedy", "members": ["a", "b"], "grid": 5}, "soup.grid is used by mode wise"),
    ],
)
def test_a_mistake_in_the_section_is_named(keys, says):
    with pytest.raises(UserError, match=says):
        with_values(tiny_config(), {"soup": keys}, "test")


def test_no_experiment_has_the_name_of_the_start():
    assert " " in START
