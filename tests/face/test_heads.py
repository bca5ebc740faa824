"""Margins and pair losses: definitions by angles, limits, gradients at the poles, missing pairs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.face import (
    MagFace,
    arcface_cosine,
    circle_pair_loss,
    combined_cosine,
    contrastive_pair_loss,
    cosface_cosine,
    magface_cosine,
    magface_regulariser,
    margin_logits,
    nonzero_mean,
    sphereface_cosine,
    triplet_margin_loss,
    triplet_margin_mean,
)

THETA = np.linspace(0.05, np.pi - 0.05, 40).astype(np.float32)
COSINE = np.cos(THETA)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 4)).astype(np.float32), RNG.integers(0, 3, 10)


def test_margins_by_their_angles():
    np.testing.assert_allclose(cosface_cosine(COSINE, 0.3), COSINE - 0.3, atol=1e-6)
    np.testing.assert_allclose(arcface_cosine(COSINE, 0.5), np.cos(THETA + 0.5), atol=1e-5)
    np.testing.assert_allclose(combined_cosine(COSINE, (1, 0.3, 0.2)), np.cos(THETA + 0.3) - 0.2, atol=1e-5)
    np.testing.assert_allclose(
        combined_cosine(COSINE, (1.5, 0.3, 0.2)), np.cos(1.5 * THETA + 0.3) - 0.2, atol=1e-4
    )
    for m in (1, 2, 3, 4, 5):
        k = np.floor(m * THETA / np.pi)
        np.testing.assert_allclose(
            sphereface_cosine(COSINE, m), (-1) ** k * np.cos(m * THETA) - 2 * k, atol=2e-4
        )
    norm = np.full_like(COSINE, 60)
    margined = np.where(COSINE > 0, np.cos(THETA + 0.625), COSINE)
    np.testing.assert_allclose(magface_cosine(COSINE, norm), margined, atol=1e-5)


def test_monotone_margins_fall():
    assert (np.diff(arcface_cosine(COSINE, 0.5, monotone=True)) < 0).all()
    assert not (np.diff(arcface_cosine(COSINE, 0.5)) < 0).all()
    assert (np.diff(sphereface_cosine(COSINE, 4)) < 0).all()


@pytest.mark.parametrize(
    "margin",
    [
        lambda c: arcface_cosine(c, 0.5),
        lambda c: arcface_cosine(c, 0.5, monotone=True),
        lambda c: combined_cosine(c, (2.0, 0.1, 0.1)),
        lambda c: sphereface_cosine(c, 4),
        lambda c: magface_cosine(c, jnp.array(50.0)),
    ],
    ids=["arcface", "monotone", "combined", "sphereface", "magface"],
)
def test_gradients_at_the_poles_are_finite(margin):
    for pole in (1.0, -1.0):
        assert np.isfinite(jax.grad(margin)(pole))


def test_straight_through():
    for margin in (arcface_cosine, combined_cosine):
        through = margin(COSINE, straight_through=True)
        np.testing.assert_allclose(through, margin(COSINE), atol=1e-6)
        assert jax.grad(lambda c, margin=margin: margin(c, straight_through=True))(0.3) == 1


def test_magface_moves_lengths_only_where_they_are_not_clipped():
    mag = MagFace(l_a=2.0, u_a=4.0)
    of_margin = jax.vmap(jax.grad(lambda n: magface_cosine(jnp.array(0.5), n, mag)))
    of_regulariser = jax.vmap(jax.grad(lambda n: magface_regulariser(n, mag)))
    for gradient in (of_margin, of_regulariser):
        found = np.asarray(gradient(jnp.array([1.0, 3.0, 5.0])))
        assert (found != 0).tolist() == [False, True, False]
        assert found[1] < 0


def test_logits_scaled_by_lengths():
    w = np.eye(4, dtype=np.float32)[:3]
    logits, aux = margin_logits(X, w, Y, kind="sphereface", s=None, m=1)
    np.testing.assert_allclose(logits, X @ w.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["target"], np.asarray(aux["cosine"])[np.arange(10), Y], rtol=1e-6)


def distances():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    return np.linalg.norm(unit[:, None] - unit, axis=2)


def test_pair_losses_by_brute_force():
    d = distances()
    positive = [(i, j) for i in range(10) for j in range(i + 1, 10) if Y[i] == Y[j]]
    negative = [(i, j) for i in range(10) for j in range(i + 1, 10) if Y[i] != Y[j]]
    losses, masks = contrastive_pair_loss(X, Y, pos_margin=0.1, neg_margin=0.9)
    for pairs, name, values in (
        (positive, "positive", [max(d[p] - 0.1, 0) for p in positive]),
        (negative, "negative", [max(0.9 - d[p], 0) for p in negative]),
    ):
        assert [tuple(p) for p in np.argwhere(masks[name])] == pairs
        np.testing.assert_allclose([losses[p] for p in pairs], values, atol=1e-5)
    triplets = [
        max(d[a, p] - d[a, n] + 0.5, 0)
        for a in range(10)
        for p in range(10)
        for n in range(10)
        if a != p and Y[a] == Y[p] and Y[a] != Y[n]
    ]
    np.testing.assert_allclose(triplet_margin_loss(X, Y).sum(), np.sum(triplets), rtol=1e-4)
    np.testing.assert_allclose(
        nonzero_mean(triplet_margin_loss(X, Y)), np.mean([t for t in triplets if t > 0]), rtol=1e-4
    )
    for margin in (0.0, 0.5, 2.0):
        means = [
            jax.value_and_grad(mean)(jnp.asarray(X, jnp.float32))
            for mean in (
                lambda x, margin=margin: nonzero_mean(triplet_margin_loss(x, Y, margin=margin)),
                lambda x, margin=margin: triplet_margin_mean(x, Y, margin=margin),
            )
        ]
        chex.assert_trees_all_close(*means, rtol=1e-4, atol=1e-6)
    cosine, gamma, m = 1 - d**2 / 2, 8.0, 0.25
    inner = np.log(sum(np.exp(-gamma * max(1 + m - cosine[p], 0) * (cosine[p] - 1 + m)) for p in positive))
    inner += np.log(sum(np.exp(gamma * max(cosine[p] + m, 0) * (cosine[p] - m)) for p in negative))
    np.testing.assert_allclose(circle_pair_loss(X, Y, m=m, gamma=gamma), np.log1p(np.exp(inner)), rtol=1e-4)


@pytest.mark.parametrize("labels", [np.zeros(10, int), np.arange(10)], ids=["one class", "no positives"])
def test_missing_pairs(labels):
    """A kind of pair that is missing costs nothing, and gradients stay finite; as with two equal examples."""
    x = np.concatenate([X[:5], X[:5]])
    losses = {
        "circle": lambda x: circle_pair_loss(x, labels),
        "contrastive": lambda x: nonzero_mean(contrastive_pair_loss(x, labels)[0]),
        "triplet": lambda x: nonzero_mean(triplet_margin_loss(x, labels)),
        "triplet mean": lambda x: triplet_margin_mean(x, labels),
    }
    for name, loss in losses.items():
        value, gradient = jax.value_and_grad(loss)(x)
        assert np.isfinite(gradient).all(), name
        if name != "contrastive":
            assert value == 0, name


def test_brackets_of_circle_loss_have_no_gradient():
    """Of two pairs, ``-gamma [1 + m - s_p]_+`` and ``gamma [s_n + m]_+`` times the same sigmoid."""
    x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    y = jnp.array([0, 0, 1])
    gradient = jax.grad(lambda x: circle_pair_loss(x, y, m=0.25, gamma=2.0))(x)
    assert np.isfinite(gradient).all()
    assert gradient[0, 1] < 0  # towards the positive
