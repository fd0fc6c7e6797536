"""Heads and logits as plain arrays, against values worked out by hand."""

import numpy as np
import pytest

from src.artifacts.heads import load_head, save_head
from src.errors import UserError
from src.logits import class_means, cosine_logits, head_logits, linear_logits, to_range, unit

F = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
W = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], np.float32)


def test_unit_rows_have_norm_one_and_zero_stays_zero():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_linear_and_cosine_by_hand():
    np.testing.assert_allclose(linear_logits(F, W, np.array([0, 1, 0])), [[3, 9, -3], [0, 5, 0]])
    np.testing.assert_allclose(cosine_logits(F, W, 10), [[6, 8, -6], [0, 10, 0]], atol=1e-5)


def test_head_logits_knows_both_kinds_and_no_other():
    linear = {"weight": W, "bias": np.zeros(3, np.float32)}
    np.testing.assert_allclose(head_logits(F, linear, "linear"), F @ W.T)
    cosine = {"weight": W, "scale": np.float32(2)}
    np.testing.assert_allclose(head_logits(F, cosine, "cosine"), cosine_logits(F, W, 2.0))
    with pytest.raises(ValueError, match="kind of head 'mlp'"):
        head_logits(F, linear, "mlp")


def test_class_means_are_of_unit_features_and_no_class_may_be_empty():
    means = class_means(np.array([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0]]), np.array([0, 0, 1]), 2)
    np.testing.assert_allclose(means, [[0.5, 0.5], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"\[1\] have no features"):
        class_means(F, np.array([0, 2]), 3)


def test_to_range_maps_ends_onto_ends():
    z = np.array([[0.0, 0.5, 1.0], [2.0, 2.0, 2.0]])
    like = np.array([[-4.0, 6.0, 0.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(to_range(z, like), [[-4.0, 1.0, 6.0], [1.0, 1.0, 1.0]])


@pytest.mark.parametrize(
    ("kind", "arrays"),
    [
        ("linear", {"weight": W, "bias": np.arange(3, dtype=np.float32)}),
        ("cosine", {"weight": W[::-1].T.copy().T, "scale": np.array(16.0, np.float32)}),
    ],
)
def test_a_head_comes_back_and_its_bytes_are_the_same_every_time(tmp_path, kind, arrays):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_head(first, kind, arrays)
    save_head(second, kind, dict(reversed(arrays.items())))
    assert first.read_bytes() == second.read_bytes()
    found_kind, found = load_head(first)
    assert found_kind == kind and found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


def test_a_damaged_or_foreign_head_is_an_error_in_words(tmp_path):
    path = tmp_path / "head.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load_head(path)
    save_head(path, "linear", {"weight": W, "bias": np.zeros(3)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_head(path)
    with pytest.raises(ValueError, match="cannot be made of"):
        save_head(path, "cosine", {"weight": W, "bias": np.zeros(3)})
