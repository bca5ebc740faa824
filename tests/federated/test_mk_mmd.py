"""The maximum mean discrepancy: official values and gradients, brute force, limits, types, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.federated import kernel_bandwidths, mk_mmd


def brute_force(x, y, mul=2.0, num=5, bandwidth=None, unbiased=False):
    z = np.concatenate([x, y])
    distances = ((z[:, None] - z[None]) ** 2).sum(-1)
    base = distances.sum() / (len(z) ** 2 - len(z)) if bandwidth is None else bandwidth
    k = sum(np.exp(-distances / (base * mul ** (j - num // 2))) for j in range(num))
    xx, yy, xy = k[: len(x), : len(x)], k[len(x) :, len(x) :], k[: len(x), len(x) :]
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    off = [m[~np.eye(len(m), dtype=bool)].mean() for m in (xx, yy)]
    return sum(off) - 2 * xy.mean()


@pytest.mark.golden("fedka", "mk_mmd*.npz")
def test_official_values_and_gradients(golden, x64):
    tolerance = {"rtol": 1e-9, "atol": 1e-11}
    for i in range(int(golden["n_cases"])):
        case = {name: golden[f"case{i}_{name}"] for name in ("source", "target", "loss", "bandwidth0")}
        fixed = float(golden[f"case{i}_fix_sigma"])
        options = {
            "kernel_mul": float(golden[f"case{i}_kernel_mul"]),
            "kernel_num": int(golden[f"case{i}_kernel_num"]),
            "bandwidth": None if fixed < 0 else fixed,
        }
        x, y = jnp.asarray(case["source"]), jnp.asarray(case["target"])
        np.testing.assert_allclose(kernel_bandwidths(x, y, **options)[0], case["bandwidth0"], **tolerance)
        value, grads = jax.value_and_grad(lambda x, y, o=options: mk_mmd(x, y, **o), argnums=(0, 1))(x, y)
        np.testing.assert_allclose(value, case["loss"], **tolerance)
        for grad, name in zip(grads, ("source", "target"), strict=True):
            np.testing.assert_allclose(grad, golden[f"case{i}_grad_{name}"], err_msg=f"case {i}", **tolerance)


@pytest.mark.golden("fedka", "mk_mmd*.npz")
def test_float32_is_near(golden):
    for i in range(int(golden["n_cases"])):
        fixed = float(golden[f"case{i}_fix_sigma"])
        value = mk_mmd(
            jnp.asarray(golden[f"case{i}_source"], jnp.float32),
            jnp.asarray(golden[f"case{i}_target"], jnp.float32),
            kernel_mul=float(golden[f"case{i}_kernel_mul"]),
            kernel_num=int(golden[f"case{i}_kernel_num"]),
            bandwidth=None if fixed < 0 else fixed,
        )
        np.testing.assert_allclose(value, golden[f"case{i}_loss"], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("n", "m"), [(3, 3), (2, 5)])
def test_brute_force(n, m, unbiased, x64):
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=(n, 4)), rng.normal(1, 2, size=(m, 4))
    for options in ({}, {"mul": 1.5, "num": 2}, {"bandwidth": 3.0}):
        names = {"mul": "kernel_mul", "num": "kernel_num", "bandwidth": "bandwidth"}
        ours = mk_mmd(
            jnp.asarray(x),
            jnp.asarray(y),
            unbiased=unbiased,
            **{names[name]: value for name, value in options.items()},
        )
        np.testing.assert_allclose(ours, brute_force(x, y, unbiased=unbiased, **options), rtol=1e-10)


def test_far_from_the_origin_nothing_is_lost():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 3)).astype("f4")
    near = mk_mmd(jnp.asarray(x), jnp.asarray(y))
    far = mk_mmd(jnp.asarray(x) + 1024, jnp.asarray(y) + 1024)  # a power of two keeps 13 bits of the points
    np.testing.assert_allclose(far, near, rtol=2e-3)


def test_equal_points_give_zero_and_no_nan():
    value, grad = jax.value_and_grad(mk_mmd)(jnp.ones((4, 3)), jnp.ones((2, 3)))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_nan_does_not_pass_as_zero():
    assert np.isnan(mk_mmd(jnp.full((2, 2), jnp.nan), jnp.ones((2, 2))))


def test_permutations_and_swaps_do_not_matter():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 3)).astype("f4")
    value = mk_mmd(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(mk_mmd(jnp.asarray(y), jnp.asarray(x)), value, rtol=1e-5)
    np.testing.assert_allclose(mk_mmd(jnp.asarray(x[::-1].copy()), jnp.asarray(y)), value, rtol=1e-5)


def test_bfloat16_jit_and_vmap():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32) for _ in range(2))
    whole = jax.jit(jax.vmap(mk_mmd))(x, y)
    np.testing.assert_allclose(whole, [mk_mmd(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-5)
    low = jax.vmap(mk_mmd)(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, whole, rtol=0.05)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4)), {}, ValueError, "y: expected 3 features as x has, got 4"),
        (jnp.ones((0, 3)), jnp.ones((2, 3)), {}, ValueError, "x: expected points"),
        (jnp.ones((2, 3), int), jnp.ones((2, 3)), {}, TypeError, "x: expected a floating dtype"),
        (
            jnp.ones((2, 3)),
            jnp.ones((2, 3)),
            {"kernel_num": 0},
            ValueError,
            "kernel_num: expected at least 1",
        ),
        (
            jnp.ones((2, 3)),
            jnp.ones((2, 3)),
            {"kernel_mul": 0.0},
            ValueError,
            "kernel_mul: expected a positive",
        ),
        (
            jnp.ones((2, 3)),
            jnp.ones((2, 3)),
            {"bandwidth": -1.0},
            ValueError,
            "bandwidth: expected a positive",
        ),
        (
            jnp.ones((1, 3)),
            jnp.ones((2, 3)),
            {"unbiased": True},
            ValueError,
            "unbiased: expected at least two",
        ),
    ],
)
def test_bad_input(x, y, options, error, message):
    with pytest.raises(error, match=message):
        mk_mmd(x, y, **options)
