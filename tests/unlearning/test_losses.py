"""The losses of likelihoods, one by one: limits, bounds, gradients, dtypes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.unlearning import (
    ce_loss,
    dpo_loss,
    ga_loss,
    idk_loss,
    kto_baseline,
    kto_loss,
    npo_loss,
    npo_weights,
    simnpo_loss,
)

NLL = jnp.array([3.0, 40.0, 0.5, 7.0])
REF = jnp.array([5.0, 20.0, 0.5, 300.0])
COUNT = jnp.array([2, 9, 1, 30])

# Every loss as a function of the likelihoods under the policy.
LOSSES = {
    "ce": lambda nll: ce_loss(nll, COUNT),
    "ga": lambda nll: ga_loss(nll, COUNT),
    "npo": lambda nll: npo_loss(nll, REF.astype(nll.dtype), 0.3),
    "weights": lambda nll: npo_weights(nll, REF.astype(nll.dtype), 0.3),
    "dpo": lambda nll: dpo_loss(nll, nll - 1, 2 * nll, REF.astype(nll.dtype), 0.3),
    "kto": lambda nll: kto_loss(nll, REF.astype(nll.dtype), 0.7, 0.3),
    "kto sigmoid": lambda nll: kto_loss(nll, REF.astype(nll.dtype), 0.7, 0.3, "sigmoid"),
    "simnpo": lambda nll: simnpo_loss(nll, COUNT, 2.0, 0.1),
    "idk": lambda nll: idk_loss(nll, COUNT, nll, COUNT)[0],
}

likelihoods = st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=5).map(
    lambda values: np.array(values, np.float32)
)


@pytest.mark.parametrize("name", LOSSES)
def test_a_value_for_each_example(name):
    loss = LOSSES[name]
    value = loss(NLL)
    assert value.shape == NLL.shape
    np.testing.assert_allclose(jax.jit(loss)(NLL), value, rtol=1e-5)
    assert bool(jnp.isfinite(jax.grad(lambda x: loss(x).sum())(NLL)).all())
    narrow = loss(NLL.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, value, rtol=2e-2)
    with jax.enable_x64(True):
        assert loss(jnp.asarray(np.float64(NLL))).dtype == jnp.float64


def test_vmap_over_examples_and_over_beta():
    each = jax.vmap(lambda nll, ref: npo_loss(nll, ref, 0.3))(NLL, REF)
    np.testing.assert_allclose(each, npo_loss(NLL, REF, 0.3), rtol=1e-6)
    betas = jax.vmap(lambda beta: npo_loss(NLL, REF, beta))(jnp.array([0.3, 1.0]))
    np.testing.assert_allclose(betas[1], npo_loss(NLL, REF, 1.0), rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(NLL, NamedSharding(mesh, P("data")))
        found = jax.jit(lambda nll: {name: loss(nll) for name, loss in LOSSES.items()})(placed)
    for name, loss in LOSSES.items():
        np.testing.assert_allclose(found[name], loss(NLL), rtol=1e-5, err_msg=name)


@settings(deadline=None, max_examples=20)
@given(likelihoods, st.floats(1e-3, 10), st.integers(0, 2**31))
@pytest.mark.slow
def test_npo_is_bounded_below_and_its_gradient_is_the_weight(nll, beta, seed):
    ref = np.random.default_rng(seed).permutation(nll) + 1
    value, gradient = npo_loss(nll, ref, beta), jax.grad(lambda x: npo_loss(x, ref, beta).sum())(nll)
    weights = npo_weights(nll, ref, beta)
    assert bool((value >= 0).all())
    assert bool(jnp.isfinite(value).all())
    assert bool(((weights >= 0) & (weights <= 2)).all())
    np.testing.assert_allclose(gradient, -weights, rtol=1e-4, atol=1e-6)


def test_npo_starts_as_gradient_ascent():
    """Where policy and reference agree, every weight is 1: the gradient of the summed log-likelihood."""
    assert npo_weights(REF, REF, 0.1).tolist() == [1.0] * 4
    np.testing.assert_allclose(jax.grad(lambda x: npo_loss(x, REF, 0.1).sum())(REF), -1, rtol=1e-6)


def test_npo_becomes_gradient_ascent_with_beta(x64):
    """Proposition 1: L_NPO - (2 / beta) log 2 goes to the mean log-ratio, at a rate of beta."""
    nll, ref = jnp.array([1.0, 2.5]), jnp.array([2.0, 0.5])
    gaps = [
        jnp.abs(npo_loss(nll, ref, beta) - 2 / beta * jnp.log(2) - (ref - nll)).max() for beta in (1e-2, 1e-3)
    ]
    assert gaps[0] < 1e-2
    np.testing.assert_allclose(gaps[0] / gaps[1], 10, rtol=1e-3)


def test_npo_with_long_answers():
    """A difference of 10^5 nats: neither overflow nor a gradient that is not a number."""
    nll, ref = jnp.array([0.0, 1e5]), jnp.array([1e5, 0.0])
    assert npo_loss(nll, ref, 1.0).tolist() == [2e5, 0.0]
    assert jax.grad(lambda x: npo_loss(x, ref, 1.0).sum())(nll).tolist() == [-2.0, 0.0]


@settings(deadline=None, max_examples=20)
@given(likelihoods)
def test_dpo_swaps_its_sides(nll):
    """softplus(x) - softplus(-x) = x."""
    ref = nll[::-1]
    forth, back = dpo_loss(nll, ref, ref, nll, 0.5), dpo_loss(ref, nll, nll, ref, 0.5)
    np.testing.assert_allclose(forth - back, 2 * (2 * nll - 2 * ref), rtol=1e-4, atol=1e-2)


def test_dpo_factor_and_its_limit_npo():
    """A refusal that the policy has not moved on leaves NPO."""
    np.testing.assert_allclose(
        dpo_loss(NLL, REF, REF, NLL, 0.3, factor=1.0), dpo_loss(NLL, REF, REF, NLL, 0.3) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(dpo_loss(REF, REF, NLL, REF, 0.3), npo_loss(NLL, REF, 0.3), rtol=1e-6)


def test_no_gradient_flows_into_the_reference():
    def total(ref, z):
        losses = (npo_loss(NLL, ref), dpo_loss(NLL, ref, NLL, ref), kto_loss(NLL, ref, z))
        return sum(jnp.sum(loss) for loss in losses)

    gradients = jax.grad(total, (0, 1))(REF, jnp.array(0.3))
    assert not gradients[0].any()
    assert not gradients[1].any()
    assert not jax.grad(lambda nll: kto_baseline(nll, REF))(NLL).any()


def test_kto_flags():
    """z = -2: scaled it is -2 beta, clamped it is 0."""
    beta = 0.5
    plain = kto_loss(NLL, REF, -2.0, beta)
    np.testing.assert_allclose(kto_loss(NLL, REF, -2.0, beta, scale_z=True), kto_loss(NLL, REF, -1.0, beta))
    np.testing.assert_allclose(kto_loss(NLL, REF, -2.0, beta, clamp_z=True), kto_loss(NLL, REF, 0.0, beta))
    assert not np.allclose(plain, kto_loss(NLL, REF, 0.0, beta))
    assert float(kto_baseline(NLL, REF)) == float((REF - NLL).mean())


def test_simnpo_is_npo_on_lengths():
    np.testing.assert_allclose(
        simnpo_loss(NLL, COUNT, 2.0, delta=0.4), npo_loss(NLL / COUNT, jnp.full(4, 0.4), 2.0), rtol=1e-6
    )


def test_simnpo_of_an_empty_answer():
    nothing = jnp.zeros(1)
    value, gradient = jax.value_and_grad(lambda x: simnpo_loss(x, jnp.array([0]), 2.0).sum())(nothing)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert bool(jnp.isfinite(gradient).all())


def test_cross_entropies_have_one_denominator():
    np.testing.assert_allclose(ce_loss(NLL, COUNT).mean(), NLL.sum() / COUNT.sum(), rtol=1e-6)
    np.testing.assert_allclose(ga_loss(NLL, COUNT).mean(), -NLL.sum() / COUNT.sum(), rtol=1e-6)
    idk, retain = idk_loss(NLL[:1], COUNT[:1], REF, COUNT)
    together = (NLL[0] + REF.sum()) / (COUNT[0] + COUNT.sum())
    np.testing.assert_allclose(idk.mean() + retain.mean(), together, rtol=1e-6)
    assert bool(jnp.isnan(ce_loss(jnp.zeros(4), jnp.zeros(4, int))).all())


def test_pieces_of_a_batch_keep_its_denominator():
    mean = jnp.full(4, COUNT.mean())
    pieces = [slice(0, 2), slice(2, 4)]
    for loss in (ce_loss, ga_loss):
        halves = [loss(NLL[piece], COUNT[piece], mean[piece]).mean() for piece in pieces]
        np.testing.assert_allclose(np.mean(halves), loss(NLL, COUNT).mean(), rtol=1e-6)
    totals = []
    for piece in pieces:
        idk, retain = idk_loss(NLL[piece], COUNT[piece], REF[piece], COUNT[piece], mean[piece], mean[piece])
        totals.append(idk.mean() + retain.mean())
    idk, retain = idk_loss(NLL, COUNT, REF, COUNT)
    np.testing.assert_allclose(np.mean(totals), idk.mean() + retain.mean(), rtol=1e-6)


@pytest.mark.parametrize("beta", [0, 0.0, -0.1, float("nan"), float("inf"), np.float32(-1)])
def test_beta_must_be_positive(beta):
    message = "beta: expected a positive finite number, got"
    for call in (
        lambda: npo_loss(NLL, REF, beta),
        lambda: npo_weights(NLL, REF, beta),
        lambda: dpo_loss(NLL, REF, NLL, REF, beta),
        lambda: kto_loss(NLL, REF, 0.0, beta),
        lambda: simnpo_loss(NLL, COUNT, beta),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_static_mistakes():
    with pytest.raises(ValueError, match=r"ref_nll: expected the shape of nll, \(4,\), got \(3,\)"):
        npo_loss(NLL, REF[:3])
    with pytest.raises(ValueError, match=r"ref_l: expected the shape of nll_w, \(4,\), got \(4, 1\)"):
        dpo_loss(NLL, REF, NLL, REF[:, None])
    with pytest.raises(
        ValueError, match=r"nll: expected at least one example, got an empty batch of shape \(0,\)"
    ):
        npo_loss(NLL[:0], REF[:0])
    with pytest.raises(TypeError, match="nll: expected a floating dtype, got int32"):
        npo_loss(COUNT, REF)
    with pytest.raises(TypeError, match="ref: expected a floating dtype, got int32"):
        kto_baseline(NLL, COUNT)
    with pytest.raises(ValueError, match="factor: expected a positive finite number, got 0"):
        dpo_loss(NLL, REF, NLL, REF, factor=0)
    with pytest.raises(ValueError, match="kind: expected 'logsigmoid' or 'sigmoid', got 'linear'"):
        kto_loss(NLL, REF, 0.0, kind="linear")
    with pytest.raises(ValueError, match=r"z: expected a scalar, got shape \(4,\)"):
        kto_loss(NLL, REF, NLL)
    for call in (
        lambda: ce_loss(NLL, COUNT[:2]),
        lambda: simnpo_loss(NLL, COUNT[:2]),
        lambda: idk_loss(NLL, COUNT[:2], REF, COUNT),
    ):
        with pytest.raises(ValueError, match=r"n_tokens: expected the shape of .*nll, \(4,\), got \(2,\)"):
            call()
