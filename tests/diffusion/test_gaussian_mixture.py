"""Exact denoisers of Gaussian mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import diffusion

ABAR = diffusion.scaled_linear_schedule(1000).alphas_cumprod
MEANS = np.array([[-1.0, 0.5], [2.0, 0.0], [0.0, -1.5]])
WEIGHTS, STDS = np.array([0.2, 0.5, 0.3]), np.array([0.3, 0.1, 0.6])


@pytest.mark.golden("self_npo", "gmm_denoiser.npz")
def test_golden(golden, x64):
    exact = diffusion.gaussian_mixture_denoiser(
        golden["mu"], golden["weights"], golden["std"], golden["alphas_cumprod"]
    )
    values = jax.jit(lambda x, t: [function(x, t) for function in exact])(golden["x"], golden["t"])
    first = golden["t"] == 0
    for name, got in zip(("score", "eps", "x0", "log_density"), values, strict=True):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got[~first], golden[name][~first], rtol=1e-9, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(got[first], golden[name][first], rtol=1e-8, atol=1e-9, err_msg=name)


@pytest.mark.golden("self_npo", "gmm_denoiser.npz")
def test_golden_in_float32(golden):
    exact = diffusion.gaussian_mixture_denoiser(
        golden["mu"], golden["weights"], golden["std"], golden["alphas_cumprod"]
    )
    x, t = golden["x"].astype(np.float32), golden["t"].astype(np.int32)
    got = jax.jit(lambda x, t: [function(x, t) for function in exact])(x, t)
    for name, value in zip(("score", "eps", "x0", "log_density"), got, strict=True):
        np.testing.assert_allclose(value, golden[name], rtol=2e-4, atol=2e-4, err_msg=name)


def inputs(n, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, 2)).astype(np.float32), random.integers(0, 1000, n).astype(np.int32)


EXACT = diffusion.gaussian_mixture_denoiser(MEANS, WEIGHTS, STDS, ABAR)


@jax.jit
def of_mixture(x, t, cond=None):
    return diffusion.GaussianMixtureDenoiser(*(function(x, t, cond) for function in EXACT))


def test_by_quadrature():
    """Bayes' rule on a grid of x_0, in numpy."""
    x, _ = inputs(6)
    t = np.array([150, 200, 400, 600, 800, 999], np.int32)
    got = of_mixture(x, t)
    side = np.linspace(-5, 5, 501)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    offsets = ((grid[:, None] - MEANS) ** 2).sum(-1)
    prior = (WEIGHTS * np.exp(-0.5 * offsets / STDS**2) / (2 * np.pi * STDS**2)).sum(-1)
    for row in range(6):
        alpha, variance = np.sqrt(ABAR[t[row]]), 1 - ABAR[t[row]]
        likelihood = np.exp(-0.5 * ((x[row] - alpha * grid) ** 2).sum(-1) / variance) / (2 * np.pi * variance)
        joint = prior * likelihood * (side[1] - side[0]) ** 2
        density, mean = joint.sum(), (joint[:, None] * grid).sum(0) / joint.sum()
        np.testing.assert_allclose(got.log_density[row], np.log(density), rtol=1e-3)
        np.testing.assert_allclose(got.x0[row], mean, rtol=1e-3, atol=1e-3)


def test_identities_under_jit_vmap_and_grad():
    x, t = inputs(8)
    whole = of_mixture(x, t)
    sigma, alpha = np.sqrt(1 - ABAR[t])[:, None], np.sqrt(ABAR[t])[:, None]
    np.testing.assert_allclose(whole.noise, -sigma * whole.score, rtol=1e-5)
    np.testing.assert_allclose(alpha * whole.x0 + sigma * whole.noise, x, rtol=1e-4, atol=1e-5)  # Tweedie
    slopes = jax.jit(jax.grad(lambda x: EXACT.log_density(x, t).sum()))(x)
    np.testing.assert_allclose(whole.score, slopes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole.x0, EXACT.x0(x, t), rtol=1e-5, atol=1e-6)  # not under jit
    together = jax.vmap(of_mixture)(x.reshape(2, 4, 2), t.reshape(2, 4))
    low = of_mixture(x.astype(jnp.bfloat16), t)
    for name, expected in whole._asdict().items():
        np.testing.assert_allclose(
            getattr(together, name).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
        )
        assert getattr(low, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(low, name), expected, atol=0.1 * np.abs(expected).max())


def test_conditions_are_mixture_weights():
    x, t = inputs(4)
    rows = np.array([[1.0, 0, 0], [0, 2, 0], [0.2, 0.5, 0.3], [2, 5, 3]], np.float32)
    got = of_mixture(x, t, rows)
    own, same = of_mixture(x, t), of_mixture(x, t, rows[3])
    for name, values in got._asdict().items():
        np.testing.assert_allclose(values[2:], getattr(own, name)[2:], rtol=1e-5)
        np.testing.assert_allclose(getattr(same, name), getattr(own, name), rtol=1e-5)
    # One component alone: a Gaussian.
    for row in range(2):
        alpha2, mean = ABAR[t[row]], MEANS[row] * np.sqrt(ABAR[t[row]])
        variance = alpha2 * STDS[row] ** 2 + 1 - alpha2
        np.testing.assert_allclose(got.score[row], (mean - x[row]) / variance, rtol=1e-4)
    # Weights can be learned: the gradient is finite where one of them is zero.
    slope = jax.jit(jax.grad(lambda rows: EXACT.log_density(x, t, rows).sum()))(rows)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded(kind):
    x, t = inputs(16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    placed = jax.device_put((x, t), NamedSharding(mesh, P("data")))
    expected = of_mixture(x, t)
    with jax.set_mesh(mesh):
        got = of_mixture(*placed)
    for value, one in zip(got, expected, strict=True):
        assert value.sharding.spec[0] == "data"
        np.testing.assert_allclose(value, one, rtol=1e-5, atol=1e-6)


def test_at_any_alpha_bar():
    """Without a table: the denoiser's noise, of the type of x, for weights of all or of each example."""
    x, t = inputs(8)
    rows, variances = np.random.default_rng(1).uniform(0.1, 1, (8, 3)), STDS**2
    for weights in (WEIGHTS, rows):
        got = jax.jit(diffusion.gmm_eps)(x, ABAR[t], MEANS, weights, variances)
        expected = of_mixture(x, t, np.broadcast_to(weights, rows.shape)).noise
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    low = diffusion.gmm_eps(x.astype(jnp.bfloat16), 0.5, MEANS, WEIGHTS, variances)
    assert low.dtype == jnp.bfloat16


def test_points_and_far_away():
    """Components without width; and where every component's density underflows."""
    points = diffusion.gaussian_mixture_denoiser(MEANS, WEIGHTS, np.zeros(3), ABAR)
    x, t = jnp.array([[-1.0, 0.5]]), jnp.array([0])
    np.testing.assert_allclose(points.x0(x, t), [[-1.0, 0.5]], rtol=1e-6)
    assert all(np.isfinite(value).all() for value in of_mixture(x + 500.0, t))


def test_mistakes():
    def make(means=MEANS, weights=WEIGHTS, stds=STDS, abar=ABAR):
        return diffusion.gaussian_mixture_denoiser(means, weights, stds, abar)

    with pytest.raises(
        ValueError, match=r"means: expected \[components, dim\], components >= 1, got shape \(3,\)"
    ):
        make(means=MEANS[:, 0])
    with pytest.raises(ValueError, match=r"weights: expected one for each component, \(3,\), got \(2,\)"):
        make(weights=WEIGHTS[:2])
    with pytest.raises(ValueError, match=r"stds: expected one for each component, \(3,\), got \(2,\)"):
        make(stds=STDS[:2])
    with pytest.raises(ValueError, match=r"stds: expected numbers of at least 0, got -0\.1"):
        make(stds=STDS - 0.2)
    with pytest.raises(ValueError, match="weights: expected numbers of at least 0, got nan"):
        make(weights=WEIGHTS * np.nan)
    with pytest.raises(ValueError, match="weights: expected one above 0 at least, got zeros"):
        make(weights=0 * WEIGHTS)
    with pytest.raises(TypeError, match="means: expected a floating dtype, got int32"):
        make(means=np.ones((3, 2), np.int32))
    with pytest.raises(ValueError, match="alphas_cumprod: expected numbers that fall strictly"):
        make(abar=ABAR[::-1])
    x, t = inputs(4)
    with pytest.raises(ValueError, match=r"x: expected \[batch, 2\], got shape \(4, 1\)"):
        EXACT.score(x[:, :1], t)
    with pytest.raises(ValueError, match=r"t: expected timesteps in 0..999, got t\[3\] = 1000"):
        EXACT.x0(x, np.array([0, 1, 2, 1000]))
    with pytest.raises(ValueError, match=r"cond: expected mixture weights, shape \(4, 3\), got \(4, 2\)"):
        EXACT.noise(x, t, np.ones((4, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"means": MEANS[:, :1]},
            r"means: expected \[components, dim\] for x \[batch, dim\], got shapes \(3, 1\)",
        ),
        ({"weights": WEIGHTS[:2]}, r"weights: expected shape \(3,\) or \(4, 3\), got \(2,\)"),
        ({"sigma0_sq": STDS[:2]}, r"sigma0_sq: expected a number or shape \(3,\), got \(2,\)"),
        ({"abar": 1.5}, r"abar: expected a number between 0 and 1, got 1\.5"),
        ({"abar": ABAR[:3]}, r"abar: expected a number, or one for each example, \(4,\), got shape \(3,\)"),
    ],
)
def test_mistakes_at_any_alpha_bar(changes, message):
    right = {"x": inputs(4)[0], "abar": 0.5, "means": MEANS, "weights": WEIGHTS, "sigma0_sq": 1.0}
    with pytest.raises(ValueError, match=message):
        diffusion.gmm_eps(**{**right, **changes})
