"""Criteria: hand-computed values, the limits that tie them together, gradients, and weights."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from src.config.read import parse_config
from src.config.tree import dump_config
from src.data.dataset import Batch
from src.data.samplers import SAMPLERS
from src.errors import UserError
from src.losses import CRITERIA, build_criterion, effective_weights
from src.networks.base import Progress, mixed
from tests.fabricate import some_classes

COUNTS = np.array([100, 25, 4, 1])
EMPTY = np.array([100, 25, 0, 1])
FORMS = [*CRITERIA, "sigmoid"]


def criterion(name: str, counts=COUNTS, scale: float | None = None, deferred=None, **keys):
    if name == "sigmoid":
        name, keys = "class_balanced", {"form": "sigmoid", "gamma": 0.5} | keys
    scale = scale or {"ldam": 4.0, "arcface": 16.0, "cosface": 16.0}.get(name)
    model = {"head": "cosine", "cosine_scale": scale} if scale else {}
    train = {"criterion": {"name": name, **keys}, "deferred": deferred or {}}
    classes = some_classes(len(counts), counts=counts)
    return build_criterion(parse_config({"model": model, "train": train}), classes)


def batch(seed: int = 0, labels=(0, 1, 1, 3, 0, 0)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(labels), 4, dtype=torch.float64, generator=generator)
    return 2 * logits, torch.tensor(labels)


def at(fraction: float) -> Progress:
    return Progress(int(fraction * 100), int(fraction * 1000), fraction, 100)


# hand-computed values, with logits z = (ln 1, ln 2, ln 3, ln 4) and so p = (.1, .2, .3, .4)


Z = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64).log()
ONE = torch.tensor([1])


def test_focal_by_hand():
    loss = criterion("focal", gamma=2.0)(Z, ONE).item()
    assert loss == pytest.approx(-(0.8**2) * math.log(0.2))


def test_effective_number_by_hand():
    # (1 − .5) / (1 − .5^n) for n = 1, 2, 3: 1, 2/3, 4/7, brought to mean 1
    want = np.array([1, 2 / 3, 4 / 7]) * 3 / (1 + 2 / 3 + 4 / 7)
    np.testing.assert_allclose(effective_weights(np.array([1, 2, 3]), 0.5), want)
    # methods.md: CIFAR-100-LT at ratio 100 has weights from .045 to 4.38
    counts = np.array([int(500 * 0.01 ** (c / 99)) for c in range(100)])
    weights = effective_weights(counts, 0.9999)
    assert weights.sum() == pytest.approx(100)
    assert (round(weights[0], 3), round(weights[-1], 2)) == (0.045, 4.38)


def test_class_balanced_focal_by_hand():
    counts = np.array([2, 1, 1, 1])
    loss = criterion("class_balanced", counts, beta=0.5, gamma=1.0)
    z, y = torch.cat([Z, Z]), torch.tensor([0, 1])
    weights = np.array([2 / 3, 1])  # their common factor falls out
    losses = np.array([-0.9 * math.log(0.1), -0.8 * math.log(0.2)])
    assert loss(z, y).item() == pytest.approx((weights * losses).sum() / weights.sum())


def test_sigmoid_focal_by_hand():
    # σ(ln n) = n / (n + 1): 1/2, 2/3, 3/4, 4/5; right with probability 1/2, 2/3, 1/4, 1/5
    right = np.array([1 / 2, 2 / 3, 1 / 4, 1 / 5])
    want = -((1 - right) ** 2 * np.log(right)).sum()
    even = criterion("sigmoid", np.full(4, 7), gamma=2.0)
    assert even(Z, ONE).item() == pytest.approx(want)
    tail = criterion("sigmoid", gamma=2.0, beta=0.9)
    weight = effective_weights(COUNTS, 0.9)[1]
    assert tail(Z, ONE).item() == pytest.approx(weight * want)  # over the images, not the weights


def test_ldam_by_hand():
    loss = criterion("ldam", scale=10.0, max_margin=0.5)
    # Δ = .5 · N^{−1/4} / 1: N = 100, 25, 4, 1
    want = 0.5 * np.array([100**-0.25, 25**-0.25, 4**-0.25, 1])
    np.testing.assert_allclose(loss.margins, 10 * want, rtol=1e-6)
    few = criterion("ldam", np.array([48, 0, 3]), scale=10.0, max_margin=0.3)
    np.testing.assert_allclose(few.margins, [1.5, 3, 3], rtol=1e-6)
    cosines = torch.tensor([[0.1, 0.3, -0.2, 0.0]], dtype=torch.float64)
    shifted = cosines.clone()
    shifted[0, 1] -= want[1]
    assert loss(10 * cosines, ONE).item() == pytest.approx(
        F.cross_entropy(10 * shifted, ONE).item()
    )


def test_balanced_softmax_by_hand():
    # N · e^z = 100, 50, 12, 4
    loss = criterion("balanced_softmax")(Z, ONE).item()
    assert loss == pytest.approx(-math.log(50 / 166), rel=1e-6)


# label 1, p = .2; larger counts (class 0): M = 1; classes 2, 3: (4/25)^.8, (1/25)^.8
# scores above .2 (classes 2, 3): C = (3/2)², 2²
SEESAW = np.array([1, 2, (4 / 25) ** 0.8 * 1.5**2 * 3, (1 / 25) ** 0.8 * 2**2 * 4])


def test_smoothing_by_hand():
    """The label has 1 − ε + ε / K of the target, each other class ε / K; here ε = .2, K = 4."""
    for name, p in (
        ("cross_entropy", np.array([0.1, 0.2, 0.3, 0.4])),
        ("balanced_softmax", np.array([100, 50, 12, 4]) / 166),
        ("seesaw", SEESAW / SEESAW.sum()),
    ):
        want = -(np.array([0.05, 0.85, 0.05, 0.05]) * np.log(p)).sum()
        loss = criterion(name, smoothing=0.2)(Z, ONE).item()
        assert loss == pytest.approx(want, rel=1e-6)


def test_seesaw_by_hand():
    loss = criterion("seesaw")(Z, ONE).item()
    assert loss == pytest.approx(-math.log(2 / SEESAW.sum()), rel=1e-6)


def test_lade_by_hand():
    counts = np.array([3, 1])
    z = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 1.5]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1])
    prior = np.array([0.75, 0.25])
    own = np.array([(1 + 2) / 2, 1.5])
    g = np.log(np.exp(z.numpy() - np.log(2 * prior)).mean(0))
    want = (prior * (-own + g + 0.3 * g**2)).sum()
    base = criterion("balanced_softmax", counts)(z, y).item()
    loss = criterion("lade", counts, alpha=0.2, penalty=0.3)(z, y).item()
    assert loss == pytest.approx(base + 0.2 * want, rel=1e-6)


# limits


LIMITS = [
    ("focal", COUNTS, {"gamma": 0}),
    ("class_balanced", COUNTS, {"beta": 0}),
    ("class_balanced", np.full(4, 9), {}),
    ("ldam", COUNTS, {"max_margin": 0}),
    ("arcface", COUNTS, {"margin": 0}),
    ("cosface", COUNTS, {"margin": 0}),
    ("balanced_softmax", COUNTS, {"tau": 0}),
    ("balanced_softmax", np.full(4, 9), {}),
    ("lade", np.full(4, 9), {"alpha": 0}),
    ("seesaw", COUNTS, {"p": 0, "q": 0}),
    ("seesaw", np.full(4, 9), {"q": 0}),
]


@pytest.mark.parametrize("name, counts, keys", LIMITS)
def test_limit_is_cross_entropy(name, counts, keys):
    z, y = batch()
    loss = criterion(name, counts, **keys)(z, y)
    torch.testing.assert_close(loss, F.cross_entropy(z, y), rtol=1e-6, atol=1e-7)


def test_limits_between_criteria():
    z, y = batch()
    plain = criterion("balanced_softmax")(z, y)
    torch.testing.assert_close(criterion("logit_adjusted")(z, y), plain)
    torch.testing.assert_close(criterion("lade", alpha=0)(z, y), plain)
    log_prior = torch.tensor(np.log(COUNTS / COUNTS.sum()))
    torch.testing.assert_close(plain, F.cross_entropy(z + log_prior, y), rtol=1e-6, atol=1e-7)
    balanced = criterion("class_balanced", gamma=1.5, beta=0)(z, y)
    torch.testing.assert_close(balanced, criterion("focal", gamma=1.5)(z, y))


# properties


@pytest.mark.parametrize("counts", [COUNTS, EMPTY])
@pytest.mark.parametrize("name", FORMS)
def test_gradient(name, counts):
    loss = criterion(name, counts)
    z, y = batch()
    if name == "seesaw":  # σ carries no gradient: hold it still to compare
        loss.q = 0.0
    assert torch.autograd.gradcheck(lambda x: loss(x, y), z.requires_grad_())


def test_seesaws_gradient_takes_the_compensation_as_a_number():
    """softmax(z + log S) − onehot, S from the scores as they are: σ is not differentiated."""
    z, y = batch()
    loss = criterion("seesaw", q=2.0)
    found = torch.autograd.grad(loss(z.requires_grad_(), y), z)[0]
    score, counts, rows = z.detach().softmax(1), torch.tensor(COUNTS), torch.arange(len(y))
    factors = (counts / counts[y][:, None]).clamp(max=1) ** 0.8
    factors = factors * (score / score[rows, y][:, None]).clamp(min=1) ** 2
    want = (z.detach() + factors.log()).softmax(1)
    want[rows, y] -= 1
    torch.testing.assert_close(found, want / len(y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FORMS)
def test_finite_with_an_empty_class_and_extreme_logits(name):
    for size in (1.0, 1e3):
        z = (size * batch()[0]).float().requires_grad_()
        y = batch()[1]
        loss = criterion(name, EMPTY)(z, y)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", [n for n in CRITERIA if n not in ("lade", "arcface")])
def test_softmax_forms_do_not_see_a_shift(name):
    z, y = batch()
    torch.testing.assert_close(criterion(name)(z + 3.7, y), criterion(name)(z, y))


@pytest.mark.parametrize("name", [n for n in FORMS if n != "lade"])
def test_a_higher_logit_of_the_label_lowers_the_loss(name):
    z, y = batch(labels=(2,))
    falling = [criterion(name)(z + b * F.one_hot(y, 4), y).item() for b in range(5)]
    assert (np.diff(falling) < 0).all()


@pytest.mark.parametrize("name", FORMS)
def test_order_of_images_does_not_matter(name):
    z, y = batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(criterion(name)(z[order], y[order]), criterion(name)(z, y))


def test_margins_grow_and_mitigation_shrinks_with_rarity():
    assert (criterion("ldam").margins.diff() > 0).all()
    z = torch.zeros(1, 4)  # all scores equal: mitigation alone
    losses = [criterion("seesaw")(z, torch.tensor([c])).item() for c in range(4)]
    assert (np.diff(losses) > 0).all()  # the head's images punish the tail least
    assert losses[-1] == pytest.approx(math.log(4))


# class weights and deferring


@pytest.mark.parametrize(
    "name", ["cross_entropy", "ldam", "arcface", "cosface", "balanced_softmax", "lade", "focal"]
)
def test_drw_is_plain_before_its_start_and_weighted_after(name):
    z, y = batch()
    loss = criterion(name, deferred={"weights": True, "start": 0.6, "beta": 0.99})
    loss.set_progress(at(0.59))
    torch.testing.assert_close(loss(z, y), criterion(name)(z, y))
    loss.set_progress(at(0.6))
    weights = torch.tensor(effective_weights(COUNTS, 0.99))[y]
    want = (weights * loss.per_sample(z, y)).sum() / weights.sum()
    if name == "lade":
        want = want + 0.1 * loss.regulariser(z, y)
    torch.testing.assert_close(loss(z, y), want, rtol=1e-6, atol=1e-7)
    assert (loss(z, y) - criterion(name)(z, y)).abs() > 1e-3


def test_drw_of_cross_entropy_is_torchs_weighted_one():
    z, y = batch()
    loss = criterion("cross_entropy", deferred={"weights": True, "start": 0.0})
    weight = torch.tensor(effective_weights(COUNTS, 0.9999))
    torch.testing.assert_close(
        loss(z, y), F.cross_entropy(z, y, weight=weight), rtol=1e-6, atol=1e-7
    )


def test_deferring_survives_the_move_to_another_type():
    loss = criterion("cross_entropy", deferred={"weights": True})
    assert not loss.state_dict()  # checkpoints of other criteria stay readable
    assert loss.double().weights.dtype == torch.float64


@pytest.mark.parametrize("name", FORMS)
def test_mixed_labels_count_by_their_share(name):
    z, y = batch()
    partner = torch.tensor([1, 1, 0, 3, 3, 0])
    loss = criterion(name)
    both = loss(z, y, 0.3) + loss(z, partner, 0.7)
    torch.testing.assert_close(both, 0.3 * loss(z, y) + 0.7 * loss(z, partner))
    share = torch.full((6,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(both, loss(z, y, share) + loss(z, partner, 1 - share))
    same = mixed(loss, z, Batch(z, y, y, torch.rand(6)))  # an image mixed with its own class
    torch.testing.assert_close(same, loss(z.float(), y))


def test_share_per_image_by_hand():
    z, y = batch(labels=(0, 3))
    share = torch.tensor([1.0, 0.25])
    losses = F.cross_entropy(z.float(), y, reduction="none")
    others = F.cross_entropy(z.float(), torch.tensor([2, 2]), reduction="none")
    want = (losses[0] + 0.25 * losses[1] + 0.75 * others[1]) / 2
    found = mixed(criterion("cross_entropy"), z, Batch(z, y, torch.tensor([2, 2]), share))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    "train, words",
    [
        ({"criterion": {"name": "ldam"}}, "model.head=cosine"),
        (
            {"criterion": {"name": "class_balanced"}, "deferred": {"weights": True}},
            "class_balanced has its own",
        ),
        ({"deferred": {"weights": True, "sampling": True}}, "choose one"),
        ({"deferred": {"sampling": True}, "sampler": "class_balanced"}, "already is"),
        ({"deferred": {"start": 0.5}}, "both are off"),
        ({"deferred": {"weights": True}, "sampler": "reversed"}, "train.sampler=reversed balances"),
        (
            {
                "deferred": {"weights": True},
                "second_sampler": "class_balanced",
                "mixing": {"manifold": 1.0},
            },
            "train.second_sampler=class_balanced balances the classes once more",
        ),
        ({"mixing": {"mixup": 1.0, "remix_ratio": 5}}, "remix_ratio is of remix, which is off"),
        ({"mixing": {"off_epochs": 2}}, "off_epochs says when images are mixed, and they are not"),
        ({"mixing": {"probability": 0.5}}, "probability says when"),
        ({"deferred": {"beta": 0.5}}, "set weights=true or remove beta"),
        ({"deferred": {"beta": 0.5, "sampling": True}}, "set weights=true or remove beta"),
        ({"deferred": {"weights": True, "start": 1.0}}, "never reached"),
        ({"deferred": {"sampling": True}, "epochs": 4}, "start=0.8 is never reached by the 4 epo"),
        ({"criterion": {"name": "seesw"}}, "did you mean 'seesaw'"),
        ({"criterion": {"name": "lade", "alhpa": 1}}, "did you mean `alpha`"),
    ],
)
def test_refused(train, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        parse_config({"train": train})


REBALANCING = [s for s in SAMPLERS if s != "instance"]
BALANCED = ["balanced_softmax", "logit_adjusted", "lade", "class_balanced"]


@pytest.mark.parametrize("sampler", REBALANCING)
@pytest.mark.parametrize("name", BALANCED)
def test_a_criterion_that_balances_takes_batches_that_no_sampler_has_balanced(name, sampler):
    tree = {"criterion": {"name": name}}
    words = f"{name} (takes the class prior|weighs the classes) .*"
    with pytest.raises(UserError, match=f"{words}Set train.sampler=instance"):
        parse_config({"train": tree | {"sampler": sampler}})
    second = {"second_sampler": sampler, "mixing": {"manifold": 1.0}}
    with pytest.raises(UserError, match=f"{words}Set train.second_sampler=instance"):
        parse_config({"train": tree | second})
    as_they_are = {"second_sampler": "instance"}
    train = parse_config({"train": tree | second | as_they_are}).train
    assert train.second_sampler == "instance" and train.criterion.name == name
    assert parse_config({"train": tree}).train.sampler == "instance"


def test_a_criterion_that_is_told_not_to_balance_takes_any_sampler():
    off = ({"name": "balanced_softmax", "tau": 0}, {"name": "class_balanced", "beta": 0})
    for keys in (*off, *({"name": name} for name in ("cross_entropy", "focal", "seesaw"))):
        train = parse_config({"train": {"criterion": keys, "sampler": "class_balanced"}}).train
        assert (train.criterion.name, train.sampler) == (keys["name"], "class_balanced")


@pytest.mark.parametrize("name", ["balanced_softmax", "lade", "seesaw", "focal"])
@pytest.mark.parametrize("deferred", ["weights", "sampling"])
def test_deferring_goes_over_any_criterion(name, deferred):
    train = parse_config(
        {"train": {"criterion": {"name": name}, "deferred": {deferred: True}}}
    ).train
    assert train.criterion.name == name and getattr(train.deferred, deferred)


def test_a_whole_dump_of_the_defaults_is_taken():
    for deferred in ({}, {"weights": True}, {"sampling": True}):
        config = parse_config({"train": {"deferred": deferred}})
        assert parse_config(dump_config(config)) == config
