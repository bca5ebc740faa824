"""Preference losses of diffusion models: goldens, properties, training towards the worse, bad input."""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.diffusion import (
    diffusion_dpo_loss,
    diffusion_npo_loss,
    implicit_accuracy,
    preference_errors,
    scaled_linear_schedule,
)

# The goldens' README: 1e-12 in float64.
TOLERANCE = 1e-12
KINDS = ("sigmoid", "hinge", "ipo")
INPUTS = ("model_w", "model_l", "ref_w", "ref_l")
CASE = re.compile(r"(case\d+)_(.+)")
ABAR = scaled_linear_schedule(1000).alphas_cumprod


@pytest.mark.golden("self_npo", "dpo_loss*.npz")
def test_golden(golden, x64):
    cases = {}
    for name, value in golden.items():
        found = CASE.fullmatch(name)
        assert found, f"{name} has no test"
        cases.setdefault(found[1], {})[found[2]] = value
    close = {"atol": TOLERANCE, "rtol": TOLERANCE}
    for name, case in cases.items():
        beta, accuracy = float(case.pop("beta")), case.pop("acc")
        errors = [case.pop(each) for each in INPUTS]
        np.testing.assert_allclose(implicit_accuracy(*errors), accuracy, **close, err_msg=name)
        for kind in KINDS:

            def mean_loss(w, l, kind=kind, beta=beta, errors=errors):
                return diffusion_dpo_loss(w, l, *errors[2:], beta, kind).mean()

            loss, grads = jax.value_and_grad(mean_loss, argnums=(0, 1))(*map(jnp.asarray, errors[:2]))
            np.testing.assert_allclose(loss, case.pop(f"{kind}_loss"), **close, err_msg=f"{name} {kind}")
            for which, grad in zip("wl", grads, strict=True):
                expected = case.pop(f"{kind}_grad_{which}")
                np.testing.assert_allclose(grad, expected, **close, err_msg=f"{name} {kind} {which}")
        assert not case, f"{name}: {list(case)} have no test"


def errors_of(seed=0, pairs=6):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.1, 1, (4, pairs)), jnp.float32)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.sampled_from([0.5, 10.0]))
def test_against_the_formulas(seed, kind, beta):
    w, l, rw, rl = np.asarray(errors_of(seed), np.float64)
    d = (rw - rl) - (w - l)
    dpo, npo = (
        {
            "sigmoid": np.log1p(np.exp(-beta * sign * d)),
            "hinge": np.maximum(1 - beta * sign * d, 0),
            "ipo": (sign * d - 0.5 / beta) ** 2,
        }[kind]
        for sign in (1, -1)
    )
    np.testing.assert_allclose(diffusion_dpo_loss(*errors_of(seed), beta, kind), dpo, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(diffusion_npo_loss(*errors_of(seed), beta, kind), npo, rtol=1e-5, atol=1e-6)
    accuracy = float(implicit_accuracy(*errors_of(seed)))
    assert accuracy == pytest.approx(np.mean(d > 0))
    swapped = errors_of(seed)[jnp.array([1, 0, 3, 2])]
    assert float(implicit_accuracy(*swapped)) == pytest.approx(1 - accuracy)


def test_before_fine_tuning():
    w, l, *_ = errors_of()
    np.testing.assert_allclose(diffusion_npo_loss(w, l, w, l), np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(diffusion_npo_loss(w, l, w, l, kind="hinge"), 1)
    np.testing.assert_allclose(diffusion_npo_loss(w, l, w, l, 2.0, "ipo"), 1 / 16, rtol=1e-6)
    assert float(implicit_accuracy(w, l, w, l)) == 0.5


def test_gradients_stay_finite_and_away_from_the_reference():
    slopes = jax.grad(lambda e: diffusion_npo_loss(*(100 * e), 2000.0).sum())(errors_of())
    assert np.isfinite(slopes).all()
    np.testing.assert_array_equal(slopes[2:], 0)
    assert np.all(slopes[0] <= 0)  # worse on what people prefer
    assert np.all(slopes[1] >= 0)


def test_jit_vmap_and_bfloat16():
    errors = errors_of()
    plain = diffusion_npo_loss(*errors, 10.0)
    np.testing.assert_allclose(jax.jit(diffusion_npo_loss)(*errors, 10.0), plain, rtol=1e-6)
    stacked = jax.vmap(diffusion_npo_loss, (0, 0, 0, 0, None))(*errors[..., None], 10.0)
    np.testing.assert_allclose(stacked[:, 0], plain, rtol=1e-6)
    low = diffusion_npo_loss(*errors.astype(jnp.bfloat16), 10.0)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, plain, atol=0.1)


# A network that is linear in its input, with an offset for each class: the last one is the null condition.
CLASSES = 3


def denoise(params, x, t, cond):
    scale = params["scale"] * (1 + t[:, None] / 1000)
    return scale * x + jax.nn.one_hot(cond, CLASSES + 1, dtype=x.dtype) @ params["offset"]


def setting(pairs=8, features=2):
    rng = np.random.default_rng(3)
    params = {
        "scale": jnp.array(0.5),
        "offset": jnp.asarray(rng.normal(size=(CLASSES + 1, features)), jnp.float32),
    }
    batch = {
        "x_w": jnp.asarray(rng.normal(size=(pairs, features)), jnp.float32),
        "x_l": jnp.asarray(rng.normal(size=(pairs, features)) + 2, jnp.float32),
        "cond": jnp.asarray(rng.integers(0, CLASSES, pairs)),
    }
    return params, batch


def test_a_pair_shares_timestep_noise_and_condition():
    params, batch = setting()
    other = {**params, "scale": jnp.array(0.7)}
    key = jax.random.key(0)
    errors = preference_errors(other, params, batch, key, denoise, ABAR)
    same = preference_errors(params, params, batch, key, denoise, ABAR)
    np.testing.assert_array_equal(same.model_w, same.ref_w)
    np.testing.assert_array_equal(same.ref_l, errors.ref_l)
    assert not np.allclose(errors.model_w, errors.ref_w)
    twins = preference_errors(other, params, {**batch, "x_l": batch["x_w"]}, key, denoise, ABAR)
    np.testing.assert_array_equal(twins.model_w, twins.model_l)
    np.testing.assert_array_equal(twins.model_w, errors.model_w)
    swapped = {**batch, "x_w": batch["x_l"], "x_l": batch["x_w"]}
    np.testing.assert_array_equal(
        preference_errors(other, params, swapped, key, denoise, ABAR).model_w, errors.model_l
    )
    nulls = {**batch, "cond": jnp.full_like(batch["cond"], CLASSES)}
    options = {"null_cond": CLASSES, "p_null": 1.0}
    dropped = preference_errors(other, params, batch, key, denoise, ABAR, **options)
    expected = preference_errors(other, params, nulls, key, denoise, ABAR)
    jax.tree.map(np.testing.assert_array_equal, dropped, expected)


def test_every_timestep_is_drawn():
    table = np.array([0.9, 0.5, 0.1])
    params, batch = setting(pairs=64)
    seen = []

    def spy(params, x, t, cond):
        seen.append(np.unique(t))
        return x

    preference_errors(params, params, batch, jax.random.key(0), spy, table)
    assert [times.tolist() for times in seen] == [[0, 1, 2]] * len(seen)


@pytest.mark.slow
def test_training_turns_towards_what_people_like_less():
    reference, batch = setting(pairs=64)

    @jax.jit
    def descend(params, key):
        def loss(params):
            errors = preference_errors(params, reference, batch, key, denoise, ABAR)
            return diffusion_npo_loss(*errors, 5.0).mean()

        return jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params))

    params = reference
    for step in range(20):
        params = descend(params, jax.random.key(step))
    errors = preference_errors(params, reference, batch, jax.random.key(100), denoise, ABAR)
    assert float(implicit_accuracy(*errors)) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_pairs(kind):
    params, batch = setting(pairs=16)
    params["scale"] = jnp.array(0.7)

    def linear(params, x, t, cond):  # no product that contracts a class axis
        return params["scale"] * x + cond[:, None]

    def loss(params, batch):
        reference = {"scale": 0.5}
        errors = preference_errors(
            params, reference, batch, jax.random.key(0), linear, ABAR, null_cond=9, p_null=0.5
        )
        return diffusion_npo_loss(*errors, 10.0).mean()

    params = {"scale": params["scale"]}
    expected = jax.value_and_grad(loss)(params, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, NamedSharding(mesh, P("data")))
        ours = jax.jit(jax.value_and_grad(loss))(params, placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected)


def test_bad_input():
    w, l, rw, rl = errors_of()
    with pytest.raises(ValueError, match="kind: expected one of sigmoid, hinge, ipo, got 'dpo'"):
        diffusion_dpo_loss(w, l, rw, rl, kind="dpo")  # pyright: ignore
    with pytest.raises(ValueError, match="beta: expected a positive finite number, got 0"):
        diffusion_npo_loss(w, l, rw, rl, 0)
    with pytest.raises(ValueError, match=r"ref_l: expected the shape of model_w, \(6,\), got \(5,\)"):
        implicit_accuracy(w, l, rw, rl[:5])
    with pytest.raises(ValueError, match=r"model_w: expected at least one pair, got shape \(0,\)"):
        implicit_accuracy(*jnp.zeros((4, 0)))
    with pytest.raises(TypeError, match="model_l: expected a floating dtype, got int32"):
        diffusion_dpo_loss(w, jnp.zeros(6, jnp.int32), rw, rl)
    params, batch = setting()
    shorter = {**batch, "x_l": batch["x_l"][:, :1]}
    with pytest.raises(ValueError, match=r"batch\['x_l'\]: expected the shape of batch\['x_w'\], \(8, 2\)"):
        preference_errors(params, params, shorter, jax.random.key(0), denoise, ABAR)
    empty = jax.tree.map(lambda leaf: leaf[:0], batch)
    with pytest.raises(ValueError, match=r"batch\['x_w'\]: expected at least one pair, got shape \(0, 2\)"):
        preference_errors(params, params, empty, jax.random.key(0), denoise, ABAR)
    with pytest.raises(ValueError, match="rate: expected a number between 0 and 1, got 2"):
        preference_errors(
            params, params, batch, jax.random.key(0), denoise, ABAR, null_cond=CLASSES, p_null=2
        )
