"""Hints: what a mistake's message sends its reader to is what was meant, and it comes at once."""

import re
import shlex
import time

import pytest

from src import cli
from src.artifacts.work import Work
from src.config.model import Model
from src.config.other_words import KEYS, METRICS
from src.config.read import load_config, parse_config
from src.config.walk import sure_keys
from src.errors import UserError
from src.metrics import metric_of
from src.networks.backbone import build_backbone
from src.networks.on_disk import instead_of_hub
from src.prepare.prepare import prepare
from tests.prepare_kit import folder_source


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("epochs=3", "did you mean `train.epochs`?"),  # `search` is as like, in letters
        ("lr=0.1", "did you mean `train.lr`?"),
        ("train.mixup=0.2", "did you mean `train.mixing.mixup`?"),
        ("cutmix=1", "did you mean `train.mixing.cutmix`?"),
        ("model.pool=gem", "did you mean `pooling`?"),
        ("model.size=64", "did you mean `image_size`?"),  # not `resize`
        ("criterion=focal", "did you mean `train.criterion`?"),
        ("train.loss=focal", "did you mean `criterion`?"),  # not maxnorm's, of stage 2
        ("network=bbn", "did you mean `model.network`?"),
        ("head=cosine", "did you mean `model.head`?"),  # not `seed`
        ("augment=1", "did you mean `train.augment`?"),  # not `judge`
        ("train.mixing.alpha=1", "known here: "),  # not that of a loss
        ("folds=3", "expected a section with keys of its own: k, seed"),
        ("metric=micro_f1", "did you mean 'accuracy'?"),
        ("metric=qwk", "did you mean 'kappa'?"),
    ],
)
def test_a_key_or_value_of_elsewhere_leads_to_ours(tmp_path, item, says):
    (tmp_path / "x.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(tmp_path / "x.yaml", [item])


def test_every_word_of_others_leads_to_a_key_or_a_metric_that_there_is():
    last = {key.rsplit(".", 1)[-1] for key in sure_keys()}
    assert set(KEYS.values()) <= last
    assert all(metric_of(name) for name in METRICS.values())


def test_f1_and_a_loss_by_its_name_alone_are_taken_as_what_they_say():
    config = parse_config({"metric": "f1", "train": {"criterion": "focal"}})
    assert config.metric == "macro_f1" and config.train.criterion.name == "focal"
    with pytest.raises(UserError, match="f1 is macro_f1"):
        parse_config({"metric": "f"})


def test_folds_of_other_settings_send_to_another_data_name(tmp_path, monkeypatch):
    """Another name of the config changes nothing: experiments of a dataset share its folds."""
    monkeypatch.chdir(tmp_path)
    folder_source(tmp_path / "photos", {"1_a": 4, "2_b": 4})
    tree = {"data": {"root": "photos", "workers": 0, "near_duplicates": None}, "folds": {"k": 2}}
    prepare(parse_config(tree))
    other = tree | {"folds": {"k": 4}}
    with pytest.raises(UserError, match=r"folds\.k: 2 there, 4 now\n.*set data\.name") as caught:
        prepare(parse_config(other))
    assert "copy the config" not in str(caught.value)
    other["data"] = other["data"] | {"name": "photos4"}
    assert prepare(parse_config(other)).parent.name == "photos4"


def test_an_experiment_of_other_settings_is_sent_to_another_name(tmp_path):
    Work(tmp_path / "stage1", {"lr": 1}, {}).finish([])
    with pytest.raises(UserError, match="copy the config to a new name"):
        Work(tmp_path / "stage1", {"lr": 2}, {}).finished()


@pytest.mark.parametrize("option", ["--config", "--folds", "--out"])
def test_an_option_that_is_given_twice_is_refused(option):
    parser = cli.parser("")
    parser.add_argument("--folds", nargs="+", default=[])
    parser.add_argument("--out")
    rest = [] if option == "--config" else ["--config", "c.yaml"]
    with pytest.raises(UserError, match=f"{option} is there twice, with a.yaml and b.yaml"):
        parser.parse_args([*rest, option, "a.yaml", option, "b.yaml"])
    assert parser.parse_args([*rest, option, "a.yaml"])  # the parser has no memory of it


def test_spaces_in_a_setting_are_told(tmp_path):
    (tmp_path / "c.yaml").write_text("{}")
    for words in (["train.epochs", "=", "8"], ["train.epochs=", "8"], ["train.epochs", "=8"]):
        with pytest.raises(UserError, match="expected key=value without spaces, for example"):
            load_config(tmp_path / "c.yaml", words)


def test_what_collects_still_collects():
    words = ["--config", "a", "b", "--config", "c", "--set", "x=1", "--set", "y=2"]
    args = cli.parser("", many_configs=True).parse_args(words)
    assert (args.config, args.set) == (["a", "b", "c"], ["x=1", "y=2"])


def no_network(*_, **__):
    raise OSError("Name or service not known")


def test_without_a_network_weights_of_the_hub_are_refused_at_once(tmp_path, monkeypatch):
    """With the local file of that backbone, where there is one; it took a minute."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    weights = tmp_path / "data" / "weights"
    weights.mkdir(parents=True)
    (weights / "resnet18.mine.safetensors").write_bytes(b"")
    (weights / "vit.safetensors").write_bytes(b"")
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        build_backbone(Model(backbone="resnet18"), pretrained=True)
    assert time.perf_counter() - began < 5
    said = str(caught.value)
    assert "model.pretrained=data/weights/resnet18.mine.safetensors" in said
    assert "vit.safetensors" not in said
    (weights / "resnet18.mine.safetensors").unlink()
    snapshot = tmp_path / "hub" / "models--timm--resnet18.tv_in1k" / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"set model\.backbone=resnet18\.tv_in1k"):
        build_backbone(Model(backbone="resnet18"), pretrained=True)
    with pytest.raises(
        UserError, match=r"resnet34\.safetensors and set .* model\.pretrained=false"
    ):
        build_backbone(Model(backbone="resnet34"), pretrained=True)


def test_the_keys_that_go_with_a_local_file_can_be_pasted_after_set(tmp_path, monkeypatch):
    """Of weights with TensorFlow's padding, which the file's name says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "mobilenetv2_100.same.pth").write_bytes(b"")
    words = shlex.split(instead_of_hub("mobilenetv2_100").split("--set ")[1])
    (tmp_path / "x.yaml").write_text("model: {backbone: mobilenetv2_100}\n")
    model = load_config(tmp_path / "x.yaml", words).model
    assert model.pretrained == "data/weights/mobilenetv2_100.same.pth"
    assert (model.kwargs, model.mean, model.std) == ({"pad_type": "same"}, (0.5,) * 3, (0.5,) * 3)


def test_without_a_network_the_hubs_client_is_told_so_before_it_looks(monkeypatch):
    """Or it asks six times, also for what is in its cache."""
    from huggingface_hub import constants

    import src.networks.backbone as backbone

    make, offline = backbone.timm.create_model, []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", no_network)

    def create(name, pretrained, **kwargs):
        offline.append(constants.HF_HUB_OFFLINE)
        return make(name, pretrained=False, **kwargs)

    monkeypatch.setattr(backbone.timm, "create_model", create)
    for pretrained in (False, True):
        build_backbone(Model(backbone="resnet18"), pretrained=pretrained)
    assert offline == [False, True]
