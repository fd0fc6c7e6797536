"""How often each class is among the test images, and out-of-fold probabilities that fit it.

Probabilities are first corrected on out-of-fold images, by one temperature and by a bias for each
class, so that their sum over the images is the number of images of each class. From them EM finds
the class prior under which the test images are most likely (Saerens et al., 2002; with the
correction, Alexandari et al., 2020):

    q_c ← 1/M Σ_i  p_ic (q_c / π_c) / Σ_k p_ik (q_k / π_k)

PSEUDO images for each class, of the training prior, keep one that nothing predicts from vanishing.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

ROUNDS, PSEUDO = 30, 1.0


def corrected(
    oof: np.ndarray, labels: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of both, [N, K] and [M, K], with the temperature and biases of the first.

    oof: log-probabilities [N, K] · labels: [N] · test: log-probabilities [M, K]
    """
    rows = np.arange(len(labels))

    def loss(scale: float) -> float:
        return -float(log_softmax(np.exp(scale) * oof, axis=1)[rows, labels].mean())

    scale = float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
    images = np.bincount(labels, minlength=oof.shape[1]) + PSEUDO
    bias = np.zeros(oof.shape[1])
    for _ in range(ROUNDS):
        told = softmax(scale * oof + bias, axis=1).sum(0) + PSEUDO
        bias += np.log(images / told)
    return log_softmax(scale * oof + bias, axis=1), log_softmax(scale * test + bias, axis=1)


def prior_of(test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """q, [K]. test: corrected log-probabilities [M, K] · train: π [K], positive"""
    p, q = np.exp(test), train.copy()
    for _ in range(ROUNDS):
        posterior = p * (q / train)
        posterior /= posterior.sum(1, keepdims=True)
        q = posterior.sum(0) + PSEUDO * len(train) * train
        q /= q.sum()
    return q


def under_prior(found: np.ndarray, train: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Probabilities [n, K] where classes are as often as q says. found: corrected, under π"""
    return softmax(found + np.log(np.maximum(q, 1e-12) / train), axis=1)
