"""Perp-Neg: goldens, invariants, what the guided denoiser calls, transformations, sharding, bad input."""

import re
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.diffusion import (
    cebm_guidance,
    cfg_guidance,
    ddim_sample,
    gaussian_mixture_denoiser,
    gmm_eps,
    guide,
    guide_perp_neg,
    perp_neg_guidance,
    perpendicular_component,
    plain_negative_guidance,
)

# The goldens' README: rtol 1e-9 in float64, rtol 2e-5 and atol 1e-5 in float32; 1e-6 for the trajectory.
TOLERANCES = {np.float64: {"rtol": 1e-9, "atol": 1e-12}, np.float32: {"rtol": 2e-5, "atol": 1e-5}}
TRAJECTORY_RTOL = 1e-6
# Of the trajectory's code: with stable-dreamfusion's 1e-6 two of its samples end elsewhere.
TRAJECTORY_FLOOR = 1e-12

SPATIAL = (2, 3)

# Compiled once for all tests: op by op they would be compiled one by one.
component = jax.jit(perpendicular_component, static_argnames=("batch_axes",))
perp_neg = jax.jit(perp_neg_guidance, static_argnames=("eps", "compat", "orthogonalize_negatives"))
cebm = jax.jit(cebm_guidance, static_argnames=("normalize",))
cfg = jax.jit(cfg_guidance)
plain_negative = jax.jit(plain_negative_guidance)


def close(found, expected, dtype, name=""):
    """Within the README's tolerances."""
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, err_msg=name, **TOLERANCES[dtype])


def predictions(seed=0, prompts=2, batch=3, shape=SPATIAL):
    rng = np.random.default_rng(seed)

    def draw(*leading):
        return rng.standard_normal((*leading, *shape)).astype(np.float32)

    return draw(batch), draw(batch), draw(prompts, batch), -rng.uniform(0, 4, (prompts, batch)).astype("f4")


@pytest.fixture(params=[pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def dtype(request):
    """Both precisions of the goldens."""
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.mark.golden("perp_neg", "perp_component.npz")
def test_component(golden, dtype):
    g = {name: array.astype(dtype) for name, array in golden.items()}
    for x, y, names in (
        ("x", "y", ("perp", "perp_sdf")),
        ("x", "y_degenerate", ("perp_degenerate", "perp_degenerate_sdf")),
        ("x_parallel", "y", ("perp_parallel",)),
    ):
        for name in names:
            close(component(g[x], g[y]), golden[name], dtype, name)


@pytest.mark.golden("perp_neg", "aggregate_sdf.npz")
def test_aggregate_of_stable_dreamfusion(golden, dtype):
    g = {name: array.astype(dtype) for name, array in golden.items()}
    call = partial(perp_neg, g["eps_uncond"], g["eps_cond"][0], g["eps_cond"][1:], g["weights"][1:])
    np.testing.assert_array_equal(golden["weights"][0], 1)
    close(np.asarray(call(1.0)) - g["eps_uncond"], golden["aggregate"], dtype)
    scale = float(golden["guidance_scale"])
    close(call(scale), golden["eps_guided"], dtype)


@pytest.mark.golden("perp_neg", "aggregate_2d_pipeline.npz")
def test_aggregate_of_the_2d_pipeline(golden, dtype):
    """With and without the official pairing: the shift by one is a difference."""
    g = {name: array.astype(dtype) for name, array in golden.items()}
    further = np.concatenate([g["eps_pos"][1:], g["eps_neg"]])[:, None]
    weights = np.concatenate([g["w_pos"], -g["w_neg"]])
    call = partial(perp_neg, g["eps_uncond"], g["eps_pos"][:1], further)
    official = partial(call, weights, compat="official2d")
    close(np.asarray(official(1.0)) - g["eps_uncond"], golden["aggregate"], dtype)
    scale = float(golden["guidance_scale"])
    close(official(scale), golden["eps_guided"], dtype)
    assert float(np.abs(call(weights[1:], scale) - official(scale)).max()) > 0.1


@pytest.mark.golden("perp_neg", "comfy.npz")
def test_comfy(golden, dtype):
    g = {name: array.astype(dtype) for name, array in golden.items()}
    scale = float(golden["cond_scale"])
    call = partial(perp_neg, g["eps_uncond"], g["eps_pos"], g["eps_neg"][None], [-golden["neg_scale"]], scale)
    close(call(compat="comfy"), golden["guided_batch"], dtype)
    close(call(), golden["guided_each"], dtype)


def exact(golden, alphas_cumprod, dtype):
    std = np.sqrt(golden["sigma0_sq"]).astype(dtype)
    return gaussian_mixture_denoiser(
        golden["mus"].astype(dtype), golden["w_uncond"].astype(dtype), std, alphas_cumprod
    )


@pytest.mark.golden("perp_neg", "gmm_guidance.npz")
def test_mixture(golden, x64):
    """Every rule on exact predictions, which the room's own denoiser makes too.

    In float64 alone: where the predictions nearly agree, float32 has lost the digits of their difference.
    """
    dtype = np.float64
    falling = np.argsort(-golden["abar"])
    noise = exact(golden, golden["abar"][falling], dtype).noise
    x = jnp.asarray(golden["x"], dtype)
    t, scale, weight = np.argsort(falling), float(golden["scale"]), [-golden["w_n"]]

    @jax.jit
    @jax.vmap
    def rules(t, abar):
        prompts = [golden[f"w_{name}"].astype(dtype) for name in ("uncond", "pos", "neg")]
        u, p, n = (gmm_eps(x, abar, golden["mus"], prompt, golden["sigma0_sq"]) for prompt in prompts)
        return [noise(x, jnp.full(len(x), t), prompt) for prompt in prompts], {
            "eps_uncond": u,
            "eps_pos": p,
            "eps_neg": n,
            "cfg": cfg_guidance(u, p, scale),
            "np_plain": plain_negative_guidance(n, p, scale),
            "cebm": cebm_guidance(u, p, n[None], weight, scale),
            "perp_neg": perp_neg_guidance(u, p, n[None], weight, scale),
        }

    of_denoiser, found = rules(t, golden["abar"])
    for name, array in zip(("uncond", "pos", "neg"), of_denoiser, strict=True):
        close(array, golden[f"eps_{name}"], dtype, name)
    assert golden.keys() - found.keys() == {
        "mus", "sigma0_sq", "w_uncond", "w_pos", "w_neg", "x", "abar", "scale", "w_n"
    }  # fmt: skip
    for name, array in found.items():
        close(array, golden[name], dtype, name)


@pytest.mark.golden("perp_neg", "gmm_ddim_*.npz")
def test_trajectory(golden, x64):
    """DDIM with the guided denoiser ends where the golden ends."""
    grid, abar = golden["timesteps"], golden["abar"]
    guided = guide_perp_neg(
        exact(golden, abar, np.float64).noise,
        scale=float(golden["scale"]),
        null_cond=golden["w_uncond"],
        neg_cond=golden["w_neg"][None],
        weights=[-golden["w_n"]],
        eps=TRAJECTORY_FLOOR,
    )
    x_T = jnp.asarray(golden["x_T"])
    cond = jnp.broadcast_to(golden["w_pos"], (len(x_T), len(golden["w_pos"])))
    sample = jax.jit(
        lambda x_T: ddim_sample(
            guided, x_T, grid[:-1], abar, cond=cond, final_alpha_cumprod=float(abar[grid[-1]])
        )
    )
    scale = np.abs(golden["x_0"]).max()
    np.testing.assert_allclose(sample(x_T), golden["x_0"], rtol=TRAJECTORY_RTOL, atol=TRAJECTORY_RTOL * scale)


def test_perpendicular():
    """Perpendicular, idempotent, zero for what is parallel, unchanged by a zero or shorter direction."""
    a, b, _, _ = predictions()
    left = component(a, b)
    np.testing.assert_allclose(jnp.einsum("b...,b...->b", left, b), 0, atol=1e-5)
    np.testing.assert_allclose(component(left, b), left, atol=1e-5)
    np.testing.assert_allclose(component(2.5 * b, b), 0, atol=1e-5)
    np.testing.assert_array_equal(component(a, 0 * b), a)
    np.testing.assert_allclose(component(a, 100 * b), left, atol=1e-5)
    one = component(a[0], b[0], batch_axes=0)
    np.testing.assert_allclose(one, left[0], atol=1e-6)
    floored = component(a, b, eps=1e3)
    np.testing.assert_allclose(floored, a - (a * b).sum((1, 2), keepdims=True) / 1e3 * b, atol=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.floats(-6, 6), st.floats(0, 20))
def test_along_the_main_direction_it_is_classifier_free_guidance(seed, weight, scale):
    """``<eps_hat - eps_u, d_p> = s <d_p, d_p>`` for every weight."""
    u, p, n, _ = predictions(seed)
    guided = perp_neg(u, p, n, np.array([weight, -weight / 2], np.float32), scale)
    along = ((guided - u) * (p - u)).sum((1, 2))
    np.testing.assert_allclose(along, scale * ((p - u) ** 2).sum((1, 2)), rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.floats(-6, 6))
def test_a_negative_that_equals_the_positive_changes_nothing(seed, weight):
    u, p, n, _ = predictions(seed)
    plain = cfg(u, p, 7.5)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    close(perp_neg(u, p, np.stack([p, p]), np.array([weight, 1.0], np.float32), 7.5), plain)
    close(perp_neg(u, p, n, np.zeros(2, np.float32), 7.5), plain)
    close(perp_neg(u, p, n[:0], np.zeros(0, np.float32), 7.5), plain)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_equivariance(seed, factor):
    """Order of the prompts, order of the samples, scale of the predictions, and their origin."""
    u, p, n, w = predictions(seed)
    plain = perp_neg(u, p, n, w, 3.0)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(perp_neg(u, p, n[::-1], w[::-1], 3.0), plain)
    close(perp_neg(u[::-1], p[::-1], n[:, ::-1], w[:, ::-1], 3.0), plain[::-1])
    close(perp_neg(factor * u, factor * p, factor * n, w, 3.0) / factor, plain)
    close(perp_neg(0 * u, p - u, n - u, w, 3.0), plain - u)


def test_no_nan_where_the_prompts_agree():
    u, _, n, w = predictions()
    guided = perp_neg(u, u, n, w, 3.0)
    np.testing.assert_allclose(guided, u + 3 * (w[..., None, None] * (n - u)).sum(0), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda p: perp_neg(u, p, n, w, 3.0).sum())(u)
    assert bool(jnp.isfinite(gradient).all())


def test_weights_and_scale_for_each_sample():
    u, p, n, w = predictions()
    scale = np.array([1.0, 2.0, 3.0], np.float32)
    for rule in (perp_neg, cebm, partial(cebm, normalize=True)):
        together = rule(u, p, n, w, scale)
        for b in range(3):
            alone = rule(u[b : b + 1], p[b : b + 1], n[:, b : b + 1], w[:, b], scale[b])
            np.testing.assert_allclose(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cfg(u, p, scale)[1], u[1] + 2 * (p - u)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_orthogonalized_negatives():
    """One prompt said twice counts once; perpendicular ones are left alone."""
    u, p, n, _ = predictions()
    once = perp_neg(u, p, n[:1], [-2.0], 3.0)
    twice = partial(perp_neg, u, p, np.stack([n[0], n[0]]), [-2.0, -2.0], 3.0)
    np.testing.assert_allclose(twice(orthogonalize_negatives=True), once, rtol=1e-4, atol=1e-4)
    assert float(np.abs(twice() - once).max()) > 0.1
    axes = jnp.eye(4, dtype=jnp.float32)[:, None]
    apart = partial(perp_neg, 0 * axes[0], axes[0], axes[1:], [-1.0, 1.0, -2.0], 1.0)
    np.testing.assert_allclose(apart(orthogonalize_negatives=True), apart(), atol=1e-6)


def test_cebm_normalized():
    u, p, n, _ = predictions()
    normalized = partial(cebm, u, p, n, scale=3.0, normalize=True)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(normalized(weights=[0.0, 0.0]), cfg(u, p, 3.0))
    close(normalized(weights=[-0.3, 0.0]), plain_negative(n[0], p, 3.0))
    close(normalized(weights=[-1.0, -3.0]), plain_negative(0.25 * n[0] + 0.75 * n[1], p, 3.0))
    close(normalized(weights=[3.0, -2.0]), plain_negative(n[1], 0.25 * p + 0.75 * n[0], 3.0))


def counted(calls):
    """A denoiser that writes down how many rows each call has: the number of prompts times the batch."""

    def denoise(x, t, cond):
        calls.append(x.shape[0])
        return cond["a"] * x + t[:, None] + cond["b"][:, None]

    return denoise


COND = {"a": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), "b": np.array([1.0, 5.0], np.float32)}
NULL = {"a": np.float32(0.5), "b": np.float32(0.0)}
FURTHER = {"a": np.array([[-1.0, 0.5], [2.0, 3.0]], np.float32), "b": np.array([[2.0], [3.0]], np.float32)}
X, T = np.array([[1.0, -1.0], [0.5, 2.0]], np.float32), np.array([3, 900])


def branches():
    """The predictions for the empty prompt, the main one and the two others, in numpy."""
    prompts = [NULL, COND, *({name: leaf[k] for name, leaf in FURTHER.items()} for k in range(2))]
    conds = [
        {name: np.broadcast_to(leaf, COND[name].shape) for name, leaf in each.items()} for each in prompts
    ]
    return [np.asarray(counted([])(X, T, cond), np.float32) for cond in conds]


@pytest.mark.parametrize(
    ("weights", "scale", "prompts"),
    [
        ([-1.0, -2.0], 3.0, 4),
        ([-1.0, 0.0], 3.0, 3),
        ([0.0, 0.0], 3.0, 2),
        (np.array([[0.0, 0.0], [0.0, -1.0]], np.float32), 3.0, 3),
        ([0.0, 0.0], 1.0, 1),
        ([-1.0, -2.0], 1.0, 4),
        ([-1.0, -2.0], 0.0, 1),
    ],
)
def test_only_what_has_a_part_is_computed(weights, scale, prompts):
    """One call, on as many rows as there are prompts with a part in the result."""
    calls = []
    guided = guide_perp_neg(counted(calls), scale=scale, null_cond=NULL, neg_cond=FURTHER, weights=weights)
    found = jax.jit(guided)(X, T, COND)
    assert calls == [prompts * len(X)]
    u, p, *n = branches()
    expected = perp_neg(u, p, np.stack(n), np.asarray(weights, np.float32), scale)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_that_are_not_known_are_all_computed():
    calls = []

    @jax.jit
    def found(weights):
        guided = guide_perp_neg(counted(calls), scale=3.0, null_cond=NULL, neg_cond=FURTHER, weights=weights)
        return guided(X, T, COND)

    weights = np.array([-1.0, 0.0], np.float32)
    u, p, *n = branches()
    expected = perp_neg(u, p, np.stack(n), weights, 3.0)
    np.testing.assert_allclose(found(weights), expected, rtol=1e-5, atol=1e-5)
    assert calls == [4 * len(X)]


def test_interval_and_rescale():
    """Outside the interval the main prompt alone; rescaled as the room's own guidance is."""

    def build(**options):
        options = {"scale": 3.0, "weights": [-1.0, -2.0]} | options
        return jax.jit(guide_perp_neg(counted([]), null_cond=NULL, neg_cond=FURTHER, **options))(X, T, COND)

    u, p, *n = branches()
    everywhere = perp_neg(u, p, np.stack(n), np.array([-1.0, -2.0], np.float32), 3.0)
    np.testing.assert_allclose(build(interval=(0, 500)), [everywhere[0], p[1]], rtol=1e-5)
    np.testing.assert_allclose(build(interval=(0, 500), scale=0.0), [u[0], p[1]], rtol=1e-5)
    ours = jax.jit(guide(counted([]), scale=3.0, null_cond=NULL, rescale=0.7))(X, T, COND)
    np.testing.assert_allclose(build(weights=[0.0, 0.0], rescale=0.7), ours, rtol=1e-5)


def test_jit_and_vmap():
    u, p, n, w = predictions()
    plain = perp_neg_guidance(u, p, n, w, 3.0)
    np.testing.assert_allclose(perp_neg(u, p, n, w, 3.0), plain, rtol=1e-5, atol=1e-5)
    weights = jnp.stack([w, 2 * w])
    stacked = jax.vmap(lambda w: perp_neg(u, p, n, w, 3.0))(weights)
    np.testing.assert_allclose(stacked[0], plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stacked[1], perp_neg(u, p, n, weights[1], 3.0), rtol=1e-5, atol=1e-5)


def test_gradient():
    """Against finite differences of the whole rule, along one direction."""
    u, p, n, w = predictions()
    direction = predictions(7)[0]

    def total(p):
        return perp_neg(u, p, n, w, 3.0).sum()

    step = 1e-2
    difference = (total(p + step * direction) - total(p - step * direction)) / (2 * step)
    np.testing.assert_allclose((jax.grad(total)(p) * direction).sum(), difference, rtol=1e-2)


def test_bfloat16_comes_back_and_is_summed_in_float32():
    u, p, n, w = predictions(shape=(64, 64))
    low = [jnp.asarray(array, jnp.bfloat16) for array in (u, p, n)]
    found = perp_neg(*low, w, 3.0)
    assert found.dtype == jnp.bfloat16
    exact = perp_neg(*(array.astype(jnp.float32) for array in low), w, 3.0)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
    for rule in (cebm, partial(cebm, normalize=True)):
        assert rule(*low, w, 3.0).dtype == jnp.bfloat16
    assert cfg(low[0], low[1], 3.0).dtype == jnp.bfloat16
    assert component(low[0], low[1]).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
@pytest.mark.parametrize("axis", ["batch", "rows"])
def test_sharded(kind, axis):
    """The samples over devices, or the rows that the inner products run over."""
    u, p, n, w = predictions(batch=8, shape=(8, 2))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    spec = PartitionSpec("data") if axis == "batch" else PartitionSpec(None, "data")
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array in (u, p)]
        placed.append(jax.device_put(n, NamedSharding(mesh, PartitionSpec(None, *spec))))
        for rule in (perp_neg, partial(perp_neg, orthogonalize_negatives=True)):
            found = jax.jit(rule)(*placed, w[:, 0], 3.0)
            assert found.sharding.is_equivalent_to(NamedSharding(mesh, spec), found.ndim)
            np.testing.assert_allclose(found, rule(u, p, n, w[:, 0], 3.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)])
def test_sharded_denoiser(kind):
    """A sharded batch stays where it is: the one call of the network has no collective."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rng = np.random.default_rng(0)
    x, cond = (rng.standard_normal((16, 4)).astype(np.float32) for _ in range(2))
    guided = guide_perp_neg(
        lambda x, t, cond: jnp.tanh(x + cond) + t[:, None],
        scale=3.0,
        null_cond=np.float32(0),
        neg_cond=np.ones((2, 4), np.float32),
        weights=[-1.0, -2.0],
    )
    expected = guided(x, jnp.full(16, 3), cond)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        arguments = [jax.device_put(array, sharding) for array in (x, np.full(16, 3), cond)]
        program = jax.jit(guided, out_shardings=sharding).lower(*arguments).compile()
        np.testing.assert_allclose(program(*arguments), expected, rtol=1e-5, atol=1e-5)
        assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program.as_text())


U, P, N = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32), np.ones((1, 2, 3), np.float32)
MISTAKES = {
    "integers": (lambda: perpendicular_component(U.astype(int), P), TypeError, "a: expected a floating"),
    "shapes": (
        lambda: perpendicular_component(U, P[:1]),
        ValueError,
        "b: expected the shape of a, (2, 3), got (1, 3)",
    ),
    "eps": (lambda: perpendicular_component(U, P, eps=-1.0), ValueError, "eps: expected a number between 0"),
    "batch axes": (
        lambda: perpendicular_component(U, P, batch_axes=3),
        ValueError,
        "batch_axes: expected a number between 0 and 2, got 3",
    ),
    "positive": (
        lambda: perp_neg_guidance(U, P[:1], N, [-1.0], 2.0),
        ValueError,
        "eps_pos: expected the shape of eps_uncond, (2, 3), got (1, 3)",
    ),
    "prompts": (
        lambda: perp_neg_guidance(U, P, P, [-1.0], 2.0),
        ValueError,
        "eps_neg: expected a leading axis of prompts before the shape of eps_uncond, (2, 3), got (2, 3)",
    ),
    "weights": (
        lambda: perp_neg_guidance(U, P, N, [-1.0, -1.0], 2.0),
        ValueError,
        "weights: expected shape (1,) or (1, 2), got (2,)",
    ),
    "weights of official2d": (
        lambda: perp_neg_guidance(U, P, N, [-1.0], 2.0, compat="official2d"),
        ValueError,
        "weights: expected shape (2,) or (2, 2), the main prompt's first, got (1,)",
    ),
    "scale": (
        lambda: perp_neg_guidance(U, P, N, [-1.0], [1.0, 2.0, 3.0]),
        ValueError,
        "scale: expected a number, or one for each example",
    ),
    "compat": (
        lambda: perp_neg_guidance(U, P, N, [-1.0], 2.0, compat="a1111"),
        ValueError,
        "compat: expected one of official2d, comfy, got 'a1111'",
    ),
    "cfg": (
        lambda: cfg_guidance(U, P[:1], 2.0),
        ValueError,
        "eps_pos: expected the shape of eps_uncond, (2, 3), got (1, 3)",
    ),
    "plain": (
        lambda: plain_negative_guidance(U, P[:1], 2.0),
        ValueError,
        "eps_pos: expected the shape of eps_neg, (2, 3), got (1, 3)",
    ),
    "cebm": (lambda: cebm_guidance(U, P, N, [], 2.0), ValueError, "weights: expected shape (1,) or (1, 2)"),
    "guide": (
        lambda: guide_perp_neg(
            counted([]), scale=2.0, null_cond=NULL, neg_cond=FURTHER, weights=[-1.0]
        )(X, T, COND),
        ValueError,
        "weights: expected one for each prompt of neg_cond, whose leading axes are [(2,)], got shape (1,)",
    ),
    "guide's eps": (
        lambda: guide_perp_neg(
            counted([]), scale=2.0, null_cond=NULL, neg_cond=FURTHER, weights=[-1.0], eps=-1.0
        ),
        ValueError,
        "eps: expected a number between 0",
    ),
    "guide's null": (
        lambda: guide_perp_neg(counted([]), scale=2.0, null_cond=0.0, neg_cond=FURTHER, weights=[-1.0, 0.0])(
            X, T, COND
        ),
        ValueError,
        "null_cond: expected the structure of cond",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()
