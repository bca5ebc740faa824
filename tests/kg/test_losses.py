"""Losses: official values and gradients, limits, weights by counting."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg import kg

CASES = [
    (form, weighting, side)
    for form in ("adv", "uni")
    for weighting in ("subsampled", "unweighted")
    for side in ("head", "tail")
]
BILINEAR = ("DistMult", "ComplEx")


@pytest.mark.golden("lemon", "scores_loss_*.npz")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_official_losses_and_gradients(golden, request, case, x64):
    form, weighting, side = case
    name = "_".join(case)
    model = next(
        m for m in sorted(kg.MODELS, key=len, reverse=True) if f"scores_loss_{m}" in request.node.name
    )
    params = {k: jnp.asarray(golden[k]) for k in ("entity", "relation", "gamma", "modulus") if k in golden}
    (h, r, t), neg = jnp.asarray(golden["pos"]).T, jnp.asarray(golden["neg"])
    weight = jnp.asarray(golden["subsampling_weight"]) if weighting == "subsampled" else None
    alpha = float(golden["alpha"]) if form == "adv" else None
    coefficient = float(golden["regularization"])
    assert (coefficient > 0) == (model in BILINEAR)

    def losses(p):
        positive = kg.kge_score(model, p, h, r, t)
        negative = kg.kge_score(model, p, neg, r, t) if side == "head" else kg.kge_score(model, p, h, r, neg)
        loss = kg.kge_loss(positive, negative, weight, alpha) + coefficient * kg.l3_regularization(p)
        return loss, (kg.positive_loss(positive), kg.negative_loss(negative, alpha))

    (loss, parts), gradient = jax.value_and_grad(losses, has_aux=True)(params)
    w = np.ones(len(h)) if weight is None else np.asarray(weight)
    close = {"rtol": 0, "atol": 1e-6 if model == "pRotatE" else 1e-10}
    np.testing.assert_allclose(loss, golden[f"loss_{name}"], **close)
    for part, key in zip(parts, ("posloss", "negloss"), strict=True):
        np.testing.assert_allclose(np.sum(w * part) / np.sum(w), golden[f"{key}_{name}"], **close)
    np.testing.assert_allclose(gradient["entity"], golden[f"gent_{name}"], **close)
    np.testing.assert_allclose(gradient["relation"], golden[f"grel_{name}"], **close)


def test_no_temperature_is_temperature_zero():
    pos, neg = jnp.array([0.3, -1.0]), jax.random.normal(jax.random.key(0), (2, 5))
    np.testing.assert_allclose(kg.kge_loss(pos, neg, alpha=0.0), kg.kge_loss(pos, neg), rtol=1e-6)
    hardest = kg.negative_loss(neg, 1e4)
    np.testing.assert_allclose(hardest, np.log1p(np.exp(np.max(neg, axis=1))), rtol=1e-5)
    weights = jax.grad(lambda x: jnp.sum(kg.negative_loss(x, 2.0)))(neg)
    np.testing.assert_allclose(weights, jax.nn.softmax(2 * neg) * jax.nn.sigmoid(neg), rtol=1e-5)


def test_extreme_scores_and_bfloat16():
    pos, neg = jnp.array([-1e4, 1e4]), jnp.array([[1e4], [-1e4]])
    assert kg.kge_loss(pos, neg).tolist() == pytest.approx(5e3)
    assert bool(jnp.all(jnp.isfinite(jax.grad(kg.kge_loss)(pos, neg))))
    assert kg.kge_loss(pos.astype(jnp.bfloat16), neg.astype(jnp.bfloat16)).dtype == jnp.float32


def test_margin_loss():
    losses = kg.margin_loss(jnp.array([1.0, 2.0]), jnp.array([[0.5, -3.0], [2.0, 3.0]]), 1.0)
    np.testing.assert_allclose(losses, [[0.5, 0.0], [1.0, 2.0]])


@pytest.mark.golden("lemon", "sampling*.npz")
def test_official_weights(golden, x64):
    weights = kg.subsampling_weights(jnp.asarray(golden["triples"]))
    np.testing.assert_allclose(weights, golden["subsampling_weight"], rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=6, max_size=6))
def test_weights_by_counting(triples):
    """Duplicates count twice, and a pair of head and relation is not one of tail and relation."""
    heads, tails = Counter((h, r) for h, r, _ in triples), Counter((t, r) for _, r, t in triples)
    expected = [(heads[h, r] + tails[t, r] + 6) ** -0.5 for h, r, t in triples]
    np.testing.assert_allclose(kg.subsampling_weights(jnp.array(triples)), expected, rtol=1e-6)


def test_bad_arguments():
    pos, neg = jnp.zeros(2), jnp.zeros((2, 3))
    with pytest.raises(
        ValueError, match=r"neg: expected the shape of pos, \(2,\), and negatives, got \(3, 3\)"
    ):
        kg.kge_loss(pos, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"got \(2, 0\)"):
        kg.kge_loss(pos, neg[:, :0])
    with pytest.raises(ValueError, match=r"w: expected the shape of pos, \(2,\), got \(3,\)"):
        kg.kge_loss(pos, neg, jnp.ones(3))
    with pytest.raises(ValueError, match=r"triples: expected shape \[triples, 3\] .* got \(2, 2\)"):
        kg.subsampling_weights(jnp.zeros((2, 2), int))
    with pytest.raises(TypeError, match="triples: expected integer ids, got dtype float32"):
        kg.subsampling_weights(jnp.zeros((2, 3)))
