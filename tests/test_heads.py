"""Heads of stage 2 on small features: hand-computed values, limit cases, what each must keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.artifacts.heads import load_head, save_head
from src.config.heads import (
    CRT,
    KNN,
    LWS,
    NCM,
    CosineHead,
    LabelEmbedding,
    MaxNorm,
    TextSimilarity,
)
from src.config.read import parse_config
from src.errors import UserError
from src.fusion import STEPS
from src.fusion.step import State
from src.logits import class_means, cosine_logits, head_logits, linear_logits, to_range, unit
from src.metrics import recalls
from src.networks.heads import build_head
from src.rebalance import HEADS, crt, maxnorm
from src.rebalance.features import FeatureSet
from src.rebalance.lws import Scale
from src.rebalance.maxnorm import cb_ce, cb_softmax_bce, project_
from tests.fabricate import some_classes

CPU = torch.device("cpu")
COUNTS = [240, 120, 60, 30, 12, 6]
NAMES = np.random.default_rng(7).normal(size=(6, 5)).astype(np.float32)
CLASSES = some_classes(6, [0, 0, 1, 1, 2, 2], text=NAMES)
MANY, FEW = CLASSES.bins == 0, CLASSES.bins == 2


def planted(counts=COUNTS, width=8, seed=0, noise=0.6) -> FeatureSet:
    """Classes around means of equal length; the classifier is what a long tail teaches."""
    rng = np.random.default_rng(seed)
    means = 1.2 * np.random.default_rng(99).normal(size=(len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    f = (1 + means[labels] + noise * rng.normal(size=(len(labels), width))).astype(np.float32)
    weight = torch.zeros(len(counts), width, requires_grad=True)
    bias = torch.zeros(len(counts), requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.05)
    for _ in range(250):
        optimizer.zero_grad()
        z = torch.from_numpy(f) @ weight.T + bias
        F.cross_entropy(z, torch.from_numpy(labels)).backward()
        optimizer.step()
    head = {"weight": weight.detach().numpy(), "bias": bias.detach().numpy()}
    return FeatureSet(f, [f + 0.1, f - 0.1], labels, CLASSES, ("linear", head))


@pytest.fixture(scope="module")
def data() -> FeatureSet:
    return planted()


def fit(spec, data, seed=0):
    return HEADS[spec.head](spec, data, seed, CPU)


def balanced(head, seed=5) -> np.ndarray:
    """Recall per class on a balanced test set of the same problem."""
    test = planted([60] * len(COUNTS), seed=seed)
    return recalls(head_logits(test.plain, head[1], head[0]), test.labels)


# ---- all of them -------------------------------------------------------------------------------

SPECS = [
    CRT(epochs=3),
    CRT(epochs=3, adapter=4, frequency_weight=0.5, views=2),
    LWS(epochs=3),
    MaxNorm(epochs=3),
    MaxNorm(epochs=3, loss="cb_softmax_bce"),
    CosineHead(epochs=3, views=1),
    CRT(epochs=3, init={"name": "text"}),
    LabelEmbedding(epochs=3, init="random"),
    LabelEmbedding(epochs=3, correct=True, views=1),
    TextSimilarity(views=2),
    NCM(),
    NCM(features="cl2n", distance="l2", views=2),
    KNN(k=5, views=2),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.head)
def test_a_head_is_a_function_of_the_seed_and_comes_back_from_disk(spec, data, tmp_path):
    kind, arrays = fit(spec, data, seed=3)
    again = fit(spec, data, seed=3)
    assert kind == again[0] and arrays.keys() == again[1].keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], again[1][name])
    save_head(tmp_path / "head.safetensors", kind, arrays)
    found_kind, found = load_head(tmp_path / "head.safetensors")
    z = head_logits(data.plain, found, found_kind)
    assert z.shape == (len(data.labels), 6) and np.isfinite(z).all()
    np.testing.assert_array_equal(z, head_logits(data.plain, arrays, kind))


@pytest.mark.parametrize("spec", [CRT(), LWS(), MaxNorm(), CosineHead()])
def test_rebalancing_raises_the_few_shot_classes(spec, data):
    before, after = balanced(data.classifier), balanced(fit(spec, data))
    assert after[FEW].mean() > before[FEW].mean() + 0.1
    assert after.mean() > before.mean()


def test_the_sampler_is_what_raises_them(data):
    instance = balanced(fit(CRT(sampler="instance", epochs=8), data))
    by_class = balanced(fit(CRT(epochs=8), data))
    assert by_class[FEW].mean() > instance[FEW].mean() + 0.05


def test_a_diverged_head_is_an_error_in_words(data):
    with pytest.raises(UserError, match="head crt: .* no longer finite; lower its lr"):
        fit(CRT(lr=1e30, weight_decay=1e30), data)


# ---- cRT and its multi-task form ---------------------------------------------------------------


def test_a_second_head_on_frozen_features_changes_nothing_without_an_adapter(data):
    alone = fit(CRT(epochs=2), data)[1]
    both = fit(CRT(epochs=2).model_copy(update={"frequency_weight": 1.0}), data)[1]
    np.testing.assert_array_equal(alone["weight"], both["weight"])
    np.testing.assert_array_equal(alone["bias"], both["bias"])
    with pytest.raises(UserError, match="share nothing.*set adapter"):
        parse_config({"stage2": [{"head": "crt", "frequency_weight": 1.0}]})


def test_with_an_adapter_it_does_and_the_result_is_one_linear_head(data):
    without = fit(CRT(epochs=2, adapter=4), data)
    with_it = fit(CRT(epochs=2, adapter=4, frequency_weight=2.0), data)
    assert with_it[0] == "linear" and with_it[1]["weight"].shape == (6, 8)
    assert np.abs(without[1]["weight"] - with_it[1]["weight"]).max() > 1e-4


def test_the_loss_of_the_multi_task_form_by_hand(data, monkeypatch):
    """CE(class) + w CE(bin), both on the adapter's features; smoothing is of the classes alone."""
    caught = {}
    monkeypatch.setattr(crt, "train", lambda heads, loss, *_: caught.update(heads=heads, loss=loss))
    fit(CRT(adapter=3, frequency_weight=0.7, smoothing=0.1), data)
    heads = caught["heads"]
    f, labels = torch.randn(5, 8), torch.tensor([0, 5, 2, 3, 1])
    with torch.no_grad():
        for p in heads.parameters():
            p.normal_()
        g = f + f @ heads.adapter.down.weight.T @ heads.adapter.up.weight.T
        z = g @ heads.classes.weight.T + heads.classes.bias
        log_p = z.log_softmax(1).numpy()
        log_b = (g @ heads.bins.weight.T + heads.bins.bias).log_softmax(1).numpy()
        found = caught["loss"](f, labels).item()
    rows = np.arange(5)
    classes = -(0.9 * log_p[rows, labels] + 0.1 * log_p.mean(1)).mean()
    bins = -log_b[rows, [0, 2, 1, 1, 0]].mean()
    assert found == pytest.approx(classes + 0.7 * bins, rel=1e-5)


def test_the_gradient_of_the_multi_task_form(data, monkeypatch, double):
    caught = {}
    monkeypatch.setattr(crt, "train", lambda heads, loss, *_: caught.update(heads=heads, loss=loss))
    fit(CRT(adapter=3, frequency_weight=0.7), data)
    heads, labels = caught["heads"].double(), torch.tensor([0, 5, 2])
    f = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        heads.adapter.up.weight.normal_()
    trained = (heads.classes.weight, heads.bins.weight, heads.adapter.up.weight)
    assert torch.autograd.gradcheck(lambda f, *_: caught["loss"](f, labels), (f, *trained))


def test_a_frequency_head_with_nothing_to_tell_apart_is_refused(data):
    one = replace(data, classes=some_classes(6))
    with pytest.raises(UserError, match="crt: frequency_weight needs classes in two bins"):
        fit(CRT(adapter=4, frequency_weight=1.0), one)
    fit(CRT(epochs=1, adapter=4), one)


def test_the_adapter_folds_into_the_weights():
    from src.rebalance.crt import Adapter

    torch.manual_seed(0)
    adapter, weight, f = Adapter(5, 2), torch.randn(3, 5), torch.randn(7, 5)
    torch.testing.assert_close(adapter(f), f)  # the identity at the start
    torch.nn.init.normal_(adapter.up.weight)
    torch.testing.assert_close(adapter(f) @ weight.T, f @ adapter.folded_into(weight).T)


# ---- LWS ---------------------------------------------------------------------------------------


def test_lws_starts_as_stage_1(data):
    kind, arrays = fit(LWS(epochs=0), data)
    assert kind == "linear"
    for name, array in data.classifier[1].items():
        np.testing.assert_array_equal(arrays[name], array)


def test_lws_scales_rows_and_biases_by_one_number_each(data):
    arrays, stage1 = fit(LWS(epochs=5), data)[1], data.classifier[1]
    scale = arrays["bias"] / stage1["bias"]
    np.testing.assert_allclose(arrays["weight"], scale[:, None] * stage1["weight"], rtol=1e-4)
    assert scale[FEW].mean() > scale[MANY].mean()
    z = scale * linear_logits(data.plain, stage1["weight"], stage1["bias"])
    np.testing.assert_allclose(head_logits(data.plain, arrays, "linear"), z, rtol=1e-3, atol=1e-4)


def test_the_gradients_of_scaling_and_of_the_cosine_head(double):
    torch.manual_seed(0)
    f = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1])
    scaled = Scale(weight.detach(), torch.randn(3, dtype=torch.float64))
    cosine = build_head("cosine", 5, 3, 16.0).double()

    def loss(head, f, **parameters):
        return F.cross_entropy(torch.func.functional_call(head, parameters, (f,)), labels)

    assert torch.autograd.gradcheck(lambda f, s: loss(scaled, f, scale=s), (f, scale))
    assert torch.autograd.gradcheck(lambda f, w: loss(cosine, f, weight=w), (f, weight))


@pytest.mark.parametrize("spec", [LWS(), MaxNorm()])
def test_what_starts_from_stage_1_needs_a_linear_classifier(spec, data):
    cosine = ("cosine", {"weight": data.classifier[1]["weight"], "scale": np.float32(1)})
    other = FeatureSet(data.plain, [], data.labels, CLASSES, cosine)
    with pytest.raises(UserError, match=f"head {spec.head} starts from .* it is cosine"):
        fit(spec, other)
    with pytest.raises(UserError, match="linear"):
        parse_config({"model": {"head": "cosine"}, "stage2": [{"head": spec.head}]})


# ---- MaxNorm -----------------------------------------------------------------------------------


def test_projection_cuts_long_rows_to_the_ball_and_leaves_the_others():
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, 1.0]])
    project_(weight, 1.0)
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(weight, expected)


def test_maxnorm_projects_after_every_epoch(data, monkeypatch):
    norms = []

    def watched(weight, radius):
        before = float(weight.detach().norm(dim=1).max())
        project_(weight, radius)
        norms.append((before, radius))

    monkeypatch.setattr(maxnorm, "project_", watched)
    fit(MaxNorm(epochs=4, ratio=0.0), data)
    assert len(norms) == 4
    assert all(before > radius for before, radius in norms)  # it grew out of the ball each time


@pytest.mark.parametrize("sampler", ["class_balanced", "reversed", "progressive", "square_root"])
def test_maxnorm_balances_once(sampler):
    with pytest.raises(UserError, match=f"sampler={sampler} balances them once more"):
        parse_config({"stage2": [{"head": "maxnorm", "sampler": sampler}]})
    parse_config({"stage2": [{"head": "maxnorm", "sampler": sampler, "beta": 0}]})


@pytest.mark.parametrize("power, same", [(0.0, "class_balanced"), (0.5, "square_root")])
def test_powers_of_the_counts_tie_the_samplers_together(power, same, data):
    powered = fit(CRT(sampler="power", sampler_power=power, epochs=3), data)[1]["weight"]
    assert np.array_equal(powered, fit(CRT(sampler=same, epochs=3), data)[1]["weight"])
    other = fit(CRT(sampler="power", sampler_power=-1, epochs=3), data)[1]["weight"]
    assert not np.array_equal(powered, other)


def test_a_power_that_no_sampler_reads_is_refused():
    with pytest.raises(UserError, match="sampler_power is used by the sampler `power` alone"):
        parse_config({"stage2": [{"head": "crt", "sampler_power": 0.25}]})


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("loss", ["cb_ce", "cb_softmax_bce"])
def test_maxnorm_never_leaves_the_ball(ratio, loss, data):
    norms = np.linalg.norm(data.classifier[1]["weight"], axis=1)
    radius = norms.min() + ratio * (norms.max() - norms.min())
    spec = MaxNorm(ratio=ratio, loss=loss, lr=1.0, weight_decay=0, epochs=4)
    found = np.linalg.norm(fit(spec, data)[1]["weight"], axis=1)
    assert found.max() <= radius * (1 + 1e-5)


def test_the_losses_by_hand():
    z = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
    labels, share = torch.tensor([0, 2]), torch.tensor([1.0, 3.0])
    ce = (-np.log(0.5) - 3 * np.log(0.6)) / 4
    assert cb_ce(z, labels, share).item() == pytest.approx(ce, rel=1e-5)
    first = -np.log(0.5) - 2 * np.log(0.75)
    second = 3 * (-np.log(0.6) - 2 * np.log(0.8))
    assert cb_softmax_bce(z, labels, share).item() == pytest.approx((first + second) / 6, rel=1e-5)


def test_equal_shares_are_plain_cross_entropy_and_the_largest_ball_holds_every_row():
    z, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    torch.testing.assert_close(cb_ce(z, labels, torch.full((5,), 0.3)), F.cross_entropy(z, labels))
    weight = torch.randn(4, 3)
    before = weight.clone()
    project_(weight, float(weight.norm(dim=1).max()))
    torch.testing.assert_close(weight, before)


def test_the_gradients_of_the_losses_are_right():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels, share = torch.tensor([0, 1, 2, 2]), torch.rand(4, dtype=torch.float64)
    for loss in (cb_ce, cb_softmax_bce):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x, labels, share), z)


# ---- cosine and NCM ----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [CRT, CosineHead])
def test_where_a_head_begins_is_chosen_by_the_config(spec, data):
    """A learning rate of next to nothing leaves a head where it began."""
    still = {"epochs": 1, "lr": 1e-9, "weight_decay": 0}
    _, means = fit(spec(init="class_means", **still), data)
    _, random = fit(spec(init="random", **still), data)
    expected = unit(class_means(data.plain, data.labels, data.num_classes))
    np.testing.assert_allclose(unit(means["weight"]), expected, atol=1e-4)
    assert not np.allclose(unit(random["weight"]), expected, atol=0.1)
    if spec is CRT:
        z = head_logits(data.plain, means, "linear")
        cosines = unit(data.plain) @ expected.T
        assert 8 < np.median(z / cosines) < 32 and not means["bias"].round(4).any()
        with pytest.raises(ValueError, match="init: class_means looks at cached features"):
            CRT(init="class_means", bn="train")


def test_an_untrained_cosine_head_is_ncm_with_a_scale(data):
    kind, arrays = fit(CosineHead(epochs=0, scale=7.0), data)
    z, ncm = head_logits(data.plain, arrays, kind), fit(NCM(), data)
    expected = 7 * head_logits(data.plain, ncm[1], ncm[0])
    np.testing.assert_allclose(z, expected, atol=1e-4)
    assert (z.argmax(1) == expected.argmax(1)).all()


HAND = FeatureSet(
    plain=np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0], [-2.0, 2.0]], np.float32),
    views=[],
    labels=np.array([0, 0, 1, 1]),
    classes=some_classes(2, [0, 1]),
    classifier=("linear", {}),
)
QUERY = np.array([[1.0, 1.0], [-3.0, 0.0], [0.0, 5.0]], np.float32)
ROOT = np.sqrt(0.5)


def by_hand(features: str, f: np.ndarray) -> np.ndarray:
    center = np.array([0.0, 2.0])  # the mean of HAND.plain
    return {"un": f, "l2n": unit(f), "cl2n": unit(f - center)}[features]


MEANS = {
    "un": [[1.5, 3.0], [-1.5, 1.0]],
    "l2n": [[0.3, 0.9], [(-1 - ROOT) / 2, ROOT / 2]],
    # minus the center: [3, 2], [0, 0], [-1, -2], [-2, 0]
    "cl2n": [[1.5 / 13**0.5, 1 / 13**0.5], [(-1 / 5**0.5 - 1) / 2, -1 / 5**0.5]],
}


@pytest.mark.parametrize("features", ["un", "l2n", "cl2n"])
def test_ncm_by_hand(features):
    means, query = np.array(MEANS[features]), by_hand(features, QUERY)
    kind, arrays = fit(NCM(features=features), HAND)
    z = head_logits(QUERY, arrays, kind)
    np.testing.assert_allclose(z, unit(query) @ unit(means).T, atol=1e-6)
    kind, arrays = fit(NCM(features=features, distance="l2"), HAND)
    z = head_logits(QUERY, arrays, kind)
    distance = -np.square(query[:, None] - means[None]).sum(2)
    # the same for all classes of an image but for one number
    np.testing.assert_allclose(z[:, 0] - z[:, 1], distance[:, 0] - distance[:, 1], atol=1e-5)
    assert (z.argmax(1) == distance.argmax(1)).all()
    kind, arrays = fit(NCM(features=features, distance="dot"), HAND)
    np.testing.assert_allclose(head_logits(QUERY, arrays, kind), query @ means.T, atol=1e-5)


def test_distance_and_cosine_can_disagree():
    """Otherwise the test above could not tell the two apart."""
    data = planted(noise=1.5)
    found = [fit(NCM(features="un", distance=d), data) for d in ("cosine", "l2")]
    ranks = [head_logits(data.plain, arrays, kind).argmax(1) for kind, arrays in found]
    assert (ranks[0] != ranks[1]).any()


@pytest.mark.parametrize("distance", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("features", ["un", "cl2n"])
def test_fusion_takes_every_kind_of_ncm(features, distance, data):
    kind, arrays = fit(NCM(features=features, distance=distance), data)
    stage1 = data.classifier[1]
    z = linear_logits(data.plain, stage1["weight"], stage1["bias"])
    state = State(z, data.plain, "stage1", {"stage1": data.classifier, "ncm": (kind, arrays)})
    found = STEPS["ncm_fusion"].apply(state, {"w": 0.25, "head": "ncm"})
    ncm = to_range(head_logits(data.plain, arrays, kind), z)
    np.testing.assert_allclose(found, 0.25 * z + 0.75 * ncm, rtol=1e-4, atol=1e-4)


def test_the_default_ncm_is_what_it_was(data):
    kind, arrays = fit(NCM(), data)
    assert kind == "cosine" and float(arrays["scale"]) == 1
    np.testing.assert_array_equal(arrays["weight"], class_means(data.plain, data.labels, 6))
    np.testing.assert_allclose(
        head_logits(data.plain, arrays, kind), cosine_logits(data.plain, arrays["weight"])
    )
