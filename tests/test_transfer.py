"""Warm starts: any network from any other on the same backbone, rows of heads by class_id, and
another backbone refused before a tensor is read."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import src.artifacts.tensors as tensors_module
import src.networks.origins as origins
from src.artifacts.dataset import load_dataset
from src.artifacts.files import read_json, write_table
from src.artifacts.work import MANIFEST, RUNS
from src.config.model import Model
from src.data.transforms import Preprocessing
from src.errors import UserError
from src.networks.build import NETWORKS, build_network
from src.networks.transfer import grouped, matched
from src.networks.weights import load_network, load_pretrained, save_network
from src.training.stage1 import stage1
from tests.fabricate import seal
from tests.test_every_network import METHODS
from tests.training_kit import SIZE, resumes_exactly, tiny_config, tiny_dataset, train_tiny

FBSD = {"name": "fbsd", "widths": [6, 8, 5]}
RIDE = {"name": "ride", "width": 1}  # as wide as other networks
KINDS = {"plain": "plain", "bbn": "bbn", "kt": "kt", "paco": "paco", "ride": RIDE}
KINDS |= {"task_separator": "task_separator", "fbsd": FBSD, "mmal": METHODS["mmal"][0]["network"]}
SMALL_VIT = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
VIT = {"backbone": "vit_tiny_patch16_224", "kwargs": SMALL_VIT | {"img_size": SIZE}}
PARTS = {"backbone": VIT["backbone"], "kwargs": SMALL_VIT}
PARTS["network"] = {"name": "transfg", "stride": 3}
WEIGHTS = "stage1/fold0/weights.safetensors"
PREP = Preprocessing(64, 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny_dataset()


def model_of(network="plain", **keys) -> Model:
    base = {"backbone": "cifar_resnet20", "pretrained": False, "image_size": SIZE}
    return Model(**base | {"network": network} | keys)


def built(model: Model, data, seed: int = 0):
    torch.manual_seed(seed)
    return build_network(model, data.classes_of(data.images))[0]


def save_source(model: Model, data, experiment: str = "source") -> dict[str, torch.Tensor]:
    """Weights of an experiment in which no two tensors are alike; returns them."""
    torch.manual_seed(1)
    network, prep = build_network(model, data.classes_of(data.images))
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim:
            tensor.normal_(std=0.05)
    path = RUNS / data.directory.parent.name / experiment / WEIGHTS
    save_network(path, network, model, prep, data)
    return {k: v.clone() for k, v in network.state_dict().items()}


def start(model: Model, data, source: str = "source"):
    """The network before and after a warm start, and what was said."""
    model = model.model_copy(update={"pretrained": f"experiment:{source}"})
    network = built(model, data)
    fresh = {k: v.clone() for k, v in network.state_dict().items()}
    told = load_pretrained(network, model, data.directory.parent.name, "fold0")
    return fresh, network.state_dict(), told


def with_classes(name: str, ids: list[str]):
    """A copy of the tiny dataset with these classes."""
    old, new = RUNS / "tiny" / "folds", RUNS / name / "folds"
    new.mkdir(parents=True)
    (new / "images").symlink_to((old / "images").resolve())
    for table in ("folds.csv", "test.csv"):
        (new / table).write_text((old / table).read_text())
    count, bins = len(ids), ["many", "few"] * len(ids)
    classes = {"label": range(count), "class_id": ids, "class_name": ids}
    write_table(
        new / "classes.csv", pd.DataFrame(classes | {"count": [4] * count, "bin": bins[:count]})
    )
    images = pd.read_csv(new / "folds.csv", dtype=str)
    images["label"] = images["label"].astype(int) % count
    write_table(new / "folds.csv", images)
    seal(new, status="finished")
    return load_dataset(name)


# ---- any network from any other ----------------------------------------------------------------


def plain_head(kind: str, source: dict) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight [K, 64] and bias [K] that a plain network takes over, from the formulae."""
    if kind == "fbsd":
        return None  # its heads see other features
    if kind == "ride":
        return source["classifier.heads.0.weight"], source["classifier.heads.0.bias"]
    weight, bias = source["classifier.weight"], source["classifier.bias"]
    if kind == "bbn":  # alpha = 1: z = W [2 f_c; 0] + b
        seen = torch.cat([2 * torch.eye(64), torch.zeros(64, 64)])
        return weight @ seen, bias
    return weight, bias


def copies(kind: str, body: dict, head) -> dict[str, torch.Tensor]:
    """Every tensor that a network of `kind` takes over from a plain one, by name."""
    found = {f"backbone.{k}": v for k, v in body.items()}
    heads = {} if head is None else dict(zip(("weight", "bias"), head, strict=True))
    names = dict.fromkeys(("plain", "paco", "task_separator", "mmal"), ["classifier."])
    for name in (names | {"kt": ["classifier.", "first."]}).get(kind, []):
        found |= {name + k: v for k, v in heads.items()}
    if kind == "bbn":
        block = "layer3.2."
        found |= {f"rebalancing.0.{k[len(block) :]}": body[k] for k in body if k.startswith(block)}
    if kind == "ride":
        for e in range(2):
            for i, stage in enumerate(("layer2.", "layer3.")):
                part = {k: v for k, v in body.items() if k.startswith(stage)}
                found |= {f"branches.{e}.{i}.{k[len(stage) :]}": v for k, v in part.items()}
    if kind == "task_separator":
        for b in range(3):
            found |= {f"experts.{b}.backbone.{k}": v for k, v in body.items()}
            found |= {f"experts.{b}.classifier.{k}": v for k, v in heads.items()}
    return found


@pytest.mark.parametrize("there", KINDS)
def test_any_network_starts_from_any_other(there, tiny):
    source = save_source(model_of(KINDS[there]), tiny)
    body = {k.removeprefix("backbone."): v for k, v in source.items() if k.startswith("backbone.")}
    for here, network in KINDS.items():
        fresh, found, told = start(model_of(network), tiny)
        if here == there:
            wanted = {k: v for k, v in source.items() if not k.startswith("queue")}
        else:
            wanted = copies(here, body, plain_head(there, source))
        for name, tensor in found.items():
            expected = wanted.get(name, fresh[name])
            assert torch.equal(tensor, expected), f"{there} to {here}: {name}"
        assert (told.copied, told.total) == (len(wanted), len(found)), f"{there} to {here}: {told}"
        assert told.head is None and not told.resized


DEEPER = {"stem_width": 8, "channels": [8, 8, 16, 16], "output_stride": 8}
TIMM = {  # two blocks per stage, none of them the identity, and one with layers after its blocks
    "resnet26t": DEEPER | {"zero_init_last": False},
    "test_efficientnet": {},
}


def save_working(model: Model, data):
    """Weights of an experiment that has features to compare; returns the network."""
    network = built(model, data, seed=1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of one batch
    network.train()(torch.randn(8, 3, 64, 64))
    for head, _ in network.classifiers().values():
        for p in head.parameters():
            torch.nn.init.normal_(p)
    save_network(RUNS / "tiny" / "source" / WEIGHTS, network, model, PREP, data)
    return network.eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    "kind, backbone",  # MMAL needs two blocks in the last stage
    [(k, b) for b in TIMM for k in ("bbn", "kt", "ride", "task_separator")]
    + [("mmal", "resnet26t")],
)
def test_what_came_computes_what_it_did(kind, backbone, tiny):
    """Every branch sees the features of the plain network that it started from, on timm's, too; and
    a plain network predicts what the head that it took over did."""
    keys = {"backbone": backbone, "kwargs": TIMM[backbone], "image_size": 64}
    images = torch.randn(3, 3, 64, 64)
    plain, branched = model_of(**keys), model_of(KINDS[kind], **keys)
    wanted = save_working(plain, tiny)(images)
    assert (wanted.features.std(0) > 1e-3).sum() > 8  # there is something to compare
    network = started(branched, tiny)
    found = network(images).features.split(wanted.features.shape[1], 1)
    for part in found[:1] if kind == "mmal" else found:  # its other ones see other images
        torch.testing.assert_close(part, wanted.features)
    if kind == "task_separator":
        for expert in network.experts:
            torch.testing.assert_close(expert(images).logits, wanted.logits)
    source = save_working(branched, tiny)
    features = source(images).features
    first = features[:, : wanted.features.shape[1]]
    if kind == "bbn":
        logits = source.classifier(torch.cat([2 * first, 0 * first], 1))
    elif kind == "ride":
        logits = source.classifier.each(features)[0]
    else:
        logits = source.classifier(first)
    torch.testing.assert_close(started(plain, tiny)(images).logits, logits)


def started(model: Model, data):
    """A network after a warm start, about to predict."""
    model = model.model_copy(update={"pretrained": "experiment:source"})
    network = built(model, data)
    load_pretrained(network, model, "tiny", "fold0")
    return network.eval()


def test_what_is_printed_names_modules(tiny):
    save_source(model_of("paco"), tiny)
    _, _, told = start(model_of("kt"), tiny)
    path = RUNS / "tiny" / "source" / WEIGHTS
    assert str(told) == (
        f"{path}: copied 118 of 120 tensors; left new: memory, met; "
        "unused: projection.* (4), queue, queue_labels"
    )
    assert told.facts() == {
        "source": str(path),
        "copied": 118,
        "of": 120,
        "left new": ["memory", "met"],
        "unused": ["projection.* (4)", "queue", "queue_labels"],
    }
    _, _, told = start(model_of("bbn"), tiny)
    assert "left new, other shape: classifier.* (2); unused: projection.* (4)" in str(told)


def test_names_are_grouped_by_whole_modules():
    every = ["a.b.w", "a.b.v", "a.c", "d.w", "e", "f.g.h", "f.g.i"]
    assert grouped(["a.b.w", "a.b.v", "d.w", "e"], every) == ("a.b.* (2)", "d.w", "e")
    assert grouped(["f.g.h", "f.g.i", "a.c"], every) == ("a.c", "f.* (2)")
    assert grouped([], every) == ()


@pytest.mark.parametrize("last", ["pretrained", "random"])
def test_between_a_transformer_and_its_parts(last, tiny):
    """Position embeddings go from the 4 x 4 grid of the one to the 5 x 5 grid of the other."""
    plain, parts = model_of(**VIT), model_of(**PARTS)
    parts = parts.model_copy(update={"network": parts.network.model_copy(
        update={"last_block": last})})  # fmt: skip
    for old, new in ((plain, parts), (parts, plain)):
        source = save_source(old, tiny)
        fresh, found, told = start(new, tiny)
        kept = {k for k in found if new is parts and last == "random" and "blocks.2." in k}
        assert told.resized == ("backbone.pos_embed",)
        assert told.new == (("backbone.blocks.2.* (12)",) if kept else ())
        for name, tensor in found.items():
            if name in kept:
                assert torch.equal(tensor, fresh[name]), name
            elif name != "backbone.pos_embed":
                assert torch.equal(tensor, source[name]), name
        grid = found["backbone.pos_embed"]
        assert grid.shape[1] in (17, 26) and not torch.equal(grid, fresh["backbone.pos_embed"])
        assert torch.equal(grid[:, 0], source["backbone.pos_embed"][:, 0])


def test_more_experts_start_as_the_first_and_their_heads_new(tiny):
    source = save_source(model_of({"name": "ride", "width": 1, "experts": 2}), tiny)
    fresh, found, told = start(model_of(RIDE), tiny)
    for key in (k for k in found if k.startswith("branches.1.")):
        stage = key.removeprefix("branches.1.").replace("0.", "layer2.", 1)
        if key.startswith("branches.1.1."):
            stage = "layer3." + key.removeprefix("branches.1.1.")
        assert torch.equal(found[key], source[f"backbone.{stage}"]), key
    assert told.new == ("classifier.heads.2.* (2)",)
    assert torch.equal(found["classifier.heads.2.weight"], fresh["classifier.heads.2.weight"])


def test_a_neck_goes_along_and_is_new_where_there_was_none(tiny):
    neck = {"width": 16}
    source = save_source(model_of(neck=neck), tiny)
    _, found, _ = start(model_of("task_separator", neck=neck), tiny)
    for part in ("", "experts.0.", "experts.2."):
        assert torch.equal(found[f"{part}neck.1.weight"], source["neck.1.weight"])
    save_source(model_of(), tiny, "without")
    _, _, told = start(model_of(neck=neck), tiny, "without")
    assert told.new == ("neck.* (6)",) and told.reshaped == ("classifier.* (2)",)


def test_the_scale_of_a_cosine_head_is_the_configs(tiny):
    source = save_source(model_of(head="cosine", cosine_scale=30.0), tiny)
    _, found, told = start(model_of(head="cosine", cosine_scale=16.0), tiny)
    assert found["classifier.scale"] == 16 and told.copied == told.total
    assert torch.equal(found["classifier.weight"], source["classifier.weight"])


# ---- classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "cosine", "subcentre"])
@pytest.mark.parametrize(
    "ids",
    [list("543210"), list("abcdef"), ["x", "3", "y", "0"], list("012345678")],
    ids=["permuted", "disjoint", "fewer", "more"],
)
def test_rows_of_heads_go_by_class_id(ids, head, tiny):
    source = save_source(model_of(head=head), tiny)
    fresh, found, told = start(model_of(head=head), with_classes("other", ids), "tiny/source")
    for name in (k for k in found if k.startswith("classifier.") and found[k].ndim):
        for label, class_id in enumerate(ids):
            known = class_id in "012345"
            row = source[name][int(class_id)] if known else fresh[name][label]
            assert torch.equal(found[name][label], row), (name, class_id)
    known = sum(c in "012345" for c in ids)
    assert str(told).endswith(f"; head: {known} of {len(ids)} classes by class_id")
    assert told.new == (() if known else told.new) and bool(told.new) == (known == 0)


@pytest.mark.parametrize("kind", ["kt", "task_separator"])
def test_what_else_is_about_classes_is_new_for_others(kind, tiny):
    source = save_source(model_of(kind), tiny)
    other = with_classes("other", list("543210"))
    fresh, found, told = start(model_of(kind), other, "tiny/source")
    of_classes = [k for k in found if k.startswith(NETWORKS[kind].of_classes)]
    assert len(of_classes) > 1 and all(torch.equal(found[k], fresh[k]) for k in of_classes)
    heads = {"kt": ["first.", "classifier."], "task_separator": ["experts.1.classifier."]}[kind]
    for head in heads:
        assert torch.equal(found[f"{head}weight"], source[f"{head}weight"].flip(0))
    assert ("memory" in told.new) == (kind == "kt")


def test_class_means_of_another_width_leave_no_count_behind(tiny):
    """Else a mean of zero would pass for one of many images."""
    save_source(model_of("kt"), tiny)
    fresh, found, told = start(model_of("kt", neck={"width": 16}), tiny)
    assert torch.equal(found["met"], fresh["met"]) and not found["met"].any()
    assert "met" in told.new and "memory" in told.reshaped


def test_equal_classes_in_another_table_are_the_same(tiny):
    """Counts and bins may differ; nothing is left new, not even what is about classes."""
    source = save_source(model_of("kt"), tiny)
    _, found, told = start(model_of("kt"), with_classes("other", list("012345")), "tiny/source")
    assert all(torch.equal(found[k], source[k]) for k in found) and told.head is None


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_without_the_sources_classes_the_head_is_new(how, tiny):
    save_source(model_of(), tiny)
    other = with_classes("other", list("012346"))
    table = RUNS / "tiny" / "folds" / "classes.csv"
    (table.parent / MANIFEST).unlink()
    table.unlink() if how == "missing" else table.write_text(table.read_text() + "6,6,6,1,few\n")
    fresh, found, told = start(model_of(), other, "tiny/source")
    says = "is missing" if how == "missing" else "has changed since"
    assert f"head: new, as {table} {says}" in str(told)
    assert told.new == ("classifier.* (2)",)
    assert torch.equal(found["classifier.weight"], fresh["classifier.weight"])


def test_matched_labels():
    assert matched(["a", "b"], ["a", "b"]) is None
    assert matched(["a", "b", "c"], ["c", "x", "a"]) == ([0, 2], [2, 0], None)
    assert matched(["a"], ["b"]) == ([], [], None)


# ---- another backbone --------------------------------------------------------------------------


def refused(model: Model, data, monkeypatch) -> str:
    """What is said, with nothing but the header read."""

    def loaded(*_):
        raise AssertionError("tensors were loaded")

    monkeypatch.setattr(origins, "read_tensors", loaded)
    monkeypatch.setattr(tensors_module, "read_tensors", loaded)
    with pytest.raises(UserError) as error:
        start(model, data)
    return str(error.value)


def test_another_backbone_is_refused_from_the_header(tiny, monkeypatch):
    save_source(model_of("bbn"), tiny)
    said = refused(model_of(backbone="cifar_resnet32"), tiny, monkeypatch)
    assert "model.backbone=cifar_resnet20, and here it is cifar_resnet32" in said
    assert "set model.backbone=cifar_resnet20" in said


def test_other_shapes_name_the_keys_that_differ(tiny, monkeypatch):
    save_source(model_of(**VIT), tiny)
    other = VIT | {"kwargs": VIT["kwargs"] | {"embed_dim": 16}}
    said = refused(model_of(**other), tiny, monkeypatch)
    assert "model.kwargs.embed_dim is 32 there and 16 here" in said
    assert "img_size" not in said.split("What differs")[1]


def test_narrow_experts_are_explained(tiny, monkeypatch):
    save_source(model_of("ride"), tiny)  # from random weights: fewer channels
    said = refused(model_of(), tiny, monkeypatch)
    assert "set model.network.width=1 in its config, or one width in both" in said


def test_names_may_differ_where_all_shapes_agree(tiny):
    source = save_source(model_of(**VIT), tiny)
    other = VIT | {"backbone": "vit_tiny_patch16_384.augreg_in21k_ft_in1k"}
    _, found, _ = start(model_of(**other), tiny)
    assert all(torch.equal(found[k], source[k]) for k in source)


def test_every_fold_is_checked_before_the_first_is_trained(tiny, monkeypatch):
    save_source(model_of(), tiny)
    monkeypatch.setattr("src.training.stage1.train_fold", lambda *_: pytest.fail("trained"))
    config = tiny_config({"pretrained": "experiment:source"})
    with pytest.raises(UserError, match="02_train_stage1.py .of source, fold1"):
        stage1(config, "target", [], False)
    config = tiny_config({"pretrained": "experiment:source", "backbone": "cifar_resnet32"})
    with pytest.raises(UserError, match="set model.backbone=cifar_resnet20"):
        stage1(config, "target", ["0"], False)
    (tiny.directory.parent / "target/stage1/fold0").mkdir(parents=True)
    (tiny.directory.parent / "target/stage1/fold0" / MANIFEST).write_text(
        json.dumps({"settings": {}})
    )
    with pytest.raises(UserError, match="fold1"):  # the finished one needs no source any more
        stage1(config, "target", [], False)


def test_a_damaged_header_is_a_sentence(tiny):
    save_source(model_of(), tiny)
    path = RUNS / "tiny" / "source" / WEIGHTS
    state = load_file(path)
    for about in ({"model": {"backbone": 3}}, {"model": 3}, {}):
        whole = {"preprocessing": {}, "classes_sha256": "x"} | about
        save_file(state, path, {"longtail": json.dumps(whole)})
        with pytest.raises(UserError, match="run 02 again"):
            start(model_of(), tiny)
    save_file(state, path)
    with pytest.raises(UserError, match="not written by 02"):
        start(model_of(), tiny)


# ---- training ----------------------------------------------------------------------------------


def test_a_warm_start_resumes_exactly_and_is_in_the_manifest(tiny, monkeypatch):
    """From a BBN on other classes, on smaller images: a head of old and of new rows."""
    save_source(model_of("bbn", image_size=8), with_classes("other", ["5", "x", "0", "1"]))
    settings = {"network": "kt", "pretrained": "experiment:other/source"}
    whole = resumes_exactly(tiny_config(settings, {"ema": 0.9}), monkeypatch)
    assert read_json(whole / MANIFEST)["warm_start"] == {
        "source": f"runs/other/source/{WEIGHTS}",
        "copied": 114,
        "of": 120,
        "left new": ["memory", "met"],
        "unused": ["rebalancing.* (12)"],
        "head": "3 of 6 classes by class_id",
    }
    fresh = train_tiny(tiny_config(train={"epochs": 2}), "fresh")
    assert "warm_start" not in read_json(fresh / MANIFEST)


def test_a_frozen_head_in_other_rows_is_found_again(tiny):
    """What is frozen is not in the file, and comes from the source by class_id again."""
    source = save_source(model_of(), with_classes("other", list("543210")))
    settings = tiny_config(
        {"pretrained": "experiment:other/source"},
        {"freeze": ["backbone.conv1.*", "classifier.*"], "epochs": 2},
    )
    weights = train_tiny(settings, "exp") / "weights.safetensors"
    assert "classifier.weight" not in load_file(weights)
    network, _ = load_network(weights, tiny)
    assert torch.equal(network.classifier.weight, source["classifier.weight"].flip(0))


def test_a_partly_frozen_source_goes_into_another_network(tiny):
    """Its file lacks what was frozen, which comes from where it came from."""
    first = save_source(model_of(), tiny, "first")
    settings = tiny_config(
        {"pretrained": "experiment:first"}, {"freeze": ["backbone.*"], "epochs": 2}
    )
    train_tiny(settings, "second")
    _, found, told = start(model_of("bbn"), tiny, "second")
    block = "backbone.layer3.2.conv1.weight"
    assert torch.equal(found[block], first[block])
    assert torch.equal(found["rebalancing.0.conv1.weight"], first[block])
    with pytest.raises(UserError, match="set model.backbone=cifar_resnet20"):
        start(model_of(backbone="cifar_resnet32"), tiny, "second")
