"""Samplers against exact denoisers of Gaussian mixtures, loops in numpy, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import diffusion

T = 100
ABAR = diffusion.cosine_schedule(T).alphas_cumprod
GRID = diffusion.sampling_timesteps(T, 8)
MEANS, WEIGHTS, STDS = np.array([[-1.5, 0.5], [1.0, -1.0]]), np.array([0.3, 0.7]), np.array([0.3, 0.15])
EXACT = diffusion.gaussian_mixture_denoiser(MEANS, WEIGHTS, STDS, ABAR)
KEY = jax.random.key(0)
# Under the projection of the golden trajectory; with the 1e-6 of the single steps it would part from it.
PERPENDICULAR_FLOOR = 1e-12


def velocity(x, t, cond):
    alpha, sigma = jnp.sqrt(jnp.asarray(ABAR))[t], jnp.sqrt(jnp.asarray(1 - ABAR))[t]
    return diffusion.predict_v(EXACT.noise(x, t), x, alpha, sigma)


NETWORKS = {"epsilon": EXACT.noise, "x0": EXACT.x0, "v": velocity}


def start(n, dim=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def ddim(denoise, x, grid=GRID, abar=ABAR, **options):
    return diffusion.ddim_sample(denoise, x, grid, abar, **options)


def noisy_ddim(denoise, x, grid=GRID, abar=ABAR, **options):
    return diffusion.ddim_sample(denoise, x, grid, abar, eta=0.7, key=KEY, **options)


def ddpm(denoise, x, grid=GRID, abar=ABAR, **options):
    return diffusion.ddpm_sample(KEY, denoise, x, grid, abar, **options)


def wide_ddpm(denoise, x, grid=GRID, abar=ABAR, **options):
    return diffusion.ddpm_sample(KEY, denoise, x, grid, abar, variance="beta", **options)


def dpm_solver(denoise, x, grid=GRID, abar=ABAR, **options):
    return diffusion.dpm_solver_sample(denoise, x, grid, abar, **options)


SAMPLERS = {sample.__name__: sample for sample in (ddim, noisy_ddim, ddpm, wide_ddpm, dpm_solver)}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
# Compiling them is what takes long: the other suite has one with noise and one with memory.
two_quick = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("ddpm", "dpm_solver") else pytest.mark.slow)
        for name in SAMPLERS
    ],
)


def by_hand(name, denoise, x, grid, abar, final=1.0, clip=None):
    """The papers' update rules in a loop, in float64; the noise is the sampler's own."""
    x = np.asarray(x, np.float64)
    keys = jax.random.split(KEY, len(grid))
    previous = previous_step = None
    for i, t in enumerate(grid):
        a, b = abar[t], abar[grid[i + 1]] if i + 1 < len(grid) else final
        eps = np.asarray(denoise(jnp.asarray(x, jnp.float32), jnp.full(len(x), t)), np.float64)
        data = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        if clip is not None:
            data = np.clip(data, -clip, clip)
            eps = (x - np.sqrt(a) * data) / np.sqrt(1 - a)
        noise = np.asarray(jax.random.normal(keys[i], x.shape, jnp.float32))
        if name in ("ddim", "noisy_ddim"):
            eta = 0.7 if name == "noisy_ddim" else 0.0
            spread = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
            x = np.sqrt(b) * data + np.sqrt(1 - b - spread**2) * eps + spread * noise
        elif name in ("ddpm", "wide_ddpm"):
            beta = 1 - a / b
            mean = np.sqrt(b) * beta / (1 - a) * data + np.sqrt(1 - beta) * (1 - b) / (1 - a) * x
            variance = beta * (1 - b) / (1 - a) if name == "ddpm" else (beta if b < 1 else 0.0)
            x = mean + np.sqrt(variance) * noise
        else:
            # Algorithm 2 of arXiv:2211.01095, with lambda = log(alpha / sigma).
            combined = data
            if b == 1:
                x, step = data, np.inf
            else:
                step = 0.5 * np.log(b / (1 - b)) - 0.5 * np.log(a / (1 - a))
                if previous is not None:
                    r = previous_step / step
                    combined = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * previous
                x = np.sqrt((1 - b) / (1 - a)) * x - np.sqrt(b) * (np.exp(-step) - 1) * combined
            previous, previous_step = data, step
    return x


@pytest.fixture(scope="module")
def jitted_noise():
    return jax.jit(EXACT.noise)


@every_sampler
@pytest.mark.parametrize(
    ("last", "final", "clip"), [(0, 1.0, None), (10, 0.98, 1.2)], ids=["plain", "clipped and not to the end"]
)
def test_by_hand(name, last, final, clip, jitted_noise):
    x, grid = start(5), np.linspace(T - 1, last, 8).astype(int)
    got = SAMPLERS[name](EXACT.noise, x, grid, clip=clip, final_alpha_cumprod=final)
    expected = by_hand(name, jitted_noise, x, grid, ABAR, final, clip)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


@two_quick
def test_jit_vmap_and_every_prediction(name):
    x = start(6)
    sample = SAMPLERS[name]

    @jax.jit
    def samples(x, groups):
        plain = {kind: sample(network, x, prediction=kind) for kind, network in NETWORKS.items()}
        return plain, jax.vmap(lambda x: sample(EXACT.noise, x))(groups)

    plain, groups = samples(x, x.reshape(2, 3, 2))
    eager = sample(EXACT.noise, x)
    for kind, got in plain.items():
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, eager, rtol=1e-3, atol=1e-3, err_msg=kind)
    if name in ("ddim", "dpm_solver"):  # the others draw the noise of each group with the same key
        np.testing.assert_allclose(groups.reshape(6, 2), eager, rtol=1e-3, atol=1e-3)


@two_quick
def test_bfloat16(name):
    """One Gaussian, whose trajectories do not part ways over a rounding error."""
    x = start(6)
    exact = diffusion.gaussian_mixture_denoiser(MEANS[:1], np.ones(1), np.full(1, 0.5), ABAR)

    def low(x, t, cond):
        assert x.dtype == jnp.bfloat16
        return exact.x0(x, t).astype(jnp.bfloat16)

    got = SAMPLERS[name](low, x.astype(jnp.bfloat16), prediction="x0")
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), SAMPLERS[name](exact.noise, x), atol=0.05)


def test_low_precision_outputs_are_summed_in_float32():
    """A bfloat16 network on float32 noise: the sampler's state keeps its digits over a hundred steps."""
    x = start(16)
    grid = np.arange(T)[::-1]
    rounded = ddim(lambda x, t, c: 0 * EXACT.noise(x, t).astype(jnp.bfloat16), x, grid)
    np.testing.assert_allclose(rounded, x / np.sqrt(ABAR[-1]), rtol=1e-4)


@two_quick
def test_traced_schedule_and_timesteps(name):
    x = start(5)
    expected = SAMPLERS[name](EXACT.noise, x)

    @jax.jit
    def samples(x, grid, abar, final):
        one = SAMPLERS[name](EXACT.noise, x, grid)
        return one, SAMPLERS[name](EXACT.noise, x, grid, abar, final_alpha_cumprod=final)

    for got in samples(x, jnp.asarray(GRID), jnp.asarray(ABAR), 1.0):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


@two_quick
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded(name, kind):
    x = start(16)
    sample = jax.jit(lambda x: SAMPLERS[name](EXACT.noise, x))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got = sample(placed)
    assert got.sharding.spec[0] == "data"
    np.testing.assert_allclose(got, sample(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2, 1)])
def test_any_shape(shape):
    """Each coordinate by itself: the shape changes nothing; t comes as one integer for each example."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def denoise(x, t, cond):
        assert t.shape == (3,)
        assert t.dtype == jnp.int32
        return x * jnp.asarray(np.sqrt(1 - ABAR), jnp.float32)[t].reshape(3, *[1] * (x.ndim - 1))

    @jax.jit
    def samples(x):
        return [sample(denoise, x) for sample in (ddim, dpm_solver)]

    for got, flat in zip(samples(x), samples(x.reshape(3, -1)), strict=True):
        assert got.shape == shape
        np.testing.assert_allclose(got.reshape(3, -1), flat, rtol=1e-5, atol=1e-6)


def test_gradient_through_the_sampler():
    x = start(4)

    @jax.jit
    @jax.value_and_grad
    def total(shift, which):
        def denoise(x, t, cond):
            return EXACT.noise(x, t) + shift

        return jax.lax.switch(which, [lambda: ddim(denoise, x).sum(), lambda: dpm_solver(denoise, x).sum()])

    for which in (0, 1):
        slope = total(0.1, which)[1]
        numeric = (total(0.11, which)[0] - total(0.09, which)[0]) / 0.02
        np.testing.assert_allclose(slope, numeric, rtol=0.02)


@pytest.mark.slow
@every_sampler
def test_gradient_of_the_schedule(name):
    """Alpha-bar can be learned: its gradient is that of finite differences, and finite at the last step."""
    x = start(4)
    exact = diffusion.gaussian_mixture_denoiser(MEANS[:1], np.ones(1), np.full(1, 0.5), ABAR)
    total = jax.jit(jax.value_and_grad(lambda abar: (SAMPLERS[name](exact.noise, x, abar=abar) ** 2).sum()))
    slope = total(jnp.asarray(ABAR))[1]
    assert np.isfinite(slope).all()
    along = np.zeros_like(ABAR)
    along[GRID[4]] = 1e-3
    numeric = (total(jnp.asarray(ABAR + along))[0] - total(jnp.asarray(ABAR - along))[0]) / 2e-3
    np.testing.assert_allclose(slope[GRID[4]], numeric, rtol=0.02)


def test_condition_is_passed():
    x = start(4)
    cond = {"shift": np.array([0.0, 1.0, 2.0, 3.0], np.float32)}
    for sample in SAMPLERS.values():
        got = sample(lambda x, t, cond: 0 * x + cond["shift"][:, None], x, cond=cond, prediction="x0")
        np.testing.assert_allclose(got, np.repeat(cond["shift"][:, None], 2, 1), atol=1e-6)


# Distributions: one compiled call for many samples.


def gaussian_trajectory(x, mean, std, abar, begin, end):
    """The probability-flow ODE of one Gaussian in closed form."""
    scale = {t: np.sqrt(abar[t] * std**2 + 1 - abar[t]) for t in (begin, end)}
    return np.sqrt(abar[end]) * mean + scale[end] / scale[begin] * (x - np.sqrt(abar[begin]) * mean)


FINE = diffusion.linear_schedule(1281).alphas_cumprod
STEPS, LAST = (20, 40, 80, 160), 80  # 1280 - 80 = 1200 is divisible by all of them, and by 1200


def errors(sample, denoise, x, reference):
    found = []
    for steps in STEPS:
        grid = np.linspace(1280, LAST, steps + 1).round().astype(int)
        got = sample(denoise, x, grid[:-1], FINE, final_alpha_cumprod=FINE[LAST])
        found.append(float(np.sqrt(np.mean((got - reference) ** 2))))
    return np.array(found)


def orders(found):
    return np.log2(found[:-1] / found[1:])


@pytest.mark.parametrize(("sample", "order"), [(ddim, 1), (dpm_solver, 2)], ids=["ddim", "dpm_solver"])
def test_order_on_one_gaussian(sample, order, x64):
    """Against the closed form, halving the step divides the error by 2 and by 4."""
    x = np.random.default_rng(0).normal(size=(16, 2))
    exact = diffusion.gaussian_mixture_denoiser(np.array([[0.7, -0.4]]), np.ones(1), np.full(1, 0.5), FINE)
    found = errors(
        sample, exact.noise, x, gaussian_trajectory(x, np.array([0.7, -0.4]), 0.5, FINE, 1280, LAST)
    )
    np.testing.assert_allclose(orders(found)[-1], order, atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("sample", "order"), [(ddim, 1), (dpm_solver, 2)], ids=["ddim", "dpm_solver"])
def test_order_on_a_mixture(sample, order, x64):
    """Against the second-order solver with the finest step."""
    x = np.random.default_rng(0).normal(size=(64, 2))
    exact = diffusion.gaussian_mixture_denoiser(MEANS, WEIGHTS, np.array([0.6, 0.5]), FINE)
    reference = dpm_solver(exact.noise, x, np.arange(1280, LAST, -1), FINE, final_alpha_cumprod=FINE[LAST])
    found = errors(sample, exact.noise, x, reference)
    np.testing.assert_allclose(orders(found)[-1], order, atol=0.2)


@pytest.mark.slow
def test_second_order_is_worth_it():
    """To clean data in few steps, with the first and last of first order: still far closer than DDIM."""
    x = start(32)
    reference = ddim(EXACT.noise, x, np.arange(T)[::-1])
    distance = [
        np.abs(sample(EXACT.noise, x, diffusion.sampling_timesteps(T, 15)) - reference).mean()
        for sample in (ddim, dpm_solver)
    ]
    assert distance[1] < 0.5 * distance[0]


def moments(x):
    """Share of the second component, and each one's mean and standard deviation."""
    x = np.asarray(x, np.float64)
    second = x[:, 0] - x[:, 1] > np.mean([MEANS[0, 0] - MEANS[0, 1], MEANS[1, 0] - MEANS[1, 1]])
    parts = [x[~second], x[second]]
    return (
        second.mean(),
        np.stack([part.mean(0) for part in parts]),
        np.stack([part.std(0) for part in parts]),
    )


@pytest.mark.slow
@every_sampler
def test_samples_have_the_distribution_of_the_mixture(name):
    n = 8192
    sample = jax.jit(lambda x: SAMPLERS[name](EXACT.noise, x, np.arange(T)[::-1]))
    share, means, stds = moments(sample(start(n)))
    standard_error = 1 / np.sqrt(n * 0.3)
    np.testing.assert_allclose(share, 0.7, atol=4 * standard_error)
    np.testing.assert_allclose(means, MEANS, atol=0.3 * 4 * standard_error + 0.01)
    np.testing.assert_allclose(stds, np.repeat(STDS[:, None], 2, 1), rtol=0.1)


def test_variances_are_exact_where_the_papers_say():
    """beta: for standard normal data, with any grid. posterior: for data at one point."""
    x = start(20_000, 1)
    normal = diffusion.gaussian_mixture_denoiser(np.zeros((1, 1)), np.ones(1), np.ones(1), ABAR)
    point = diffusion.gaussian_mixture_denoiser(np.full((1, 1), 0.7), np.ones(1), np.zeros(1), ABAR)
    grid, inner = np.array([99, 90, 70, 50]), 0.9

    @jax.jit
    def samples(x):
        options = {"grid": grid, "final_alpha_cumprod": inner}
        return (
            wide_ddpm(normal.noise, x, **options),
            ddpm(normal.noise, x, **options),
            ddpm(point.noise, x, **options),
        )

    wide, narrow, pointed = (np.asarray(array, np.float64) for array in samples(x))
    np.testing.assert_allclose(wide.std(), 1.0, rtol=0.02)
    assert narrow.std() < 0.95
    np.testing.assert_allclose(pointed.mean(), np.sqrt(inner) * 0.7, atol=0.02)
    np.testing.assert_allclose(pointed.std(), np.sqrt(1 - inner), rtol=0.02)


def test_ddim_with_all_the_noise_is_ddpm():
    x = start(8)
    full = diffusion.ddim_sample(EXACT.noise, x, GRID, ABAR, eta=1.0, key=KEY)
    np.testing.assert_allclose(full, ddpm(EXACT.noise, x), rtol=1e-4, atol=1e-4)


def test_same_key_same_samples():
    x = start(8)
    sample = jax.jit(lambda key: diffusion.ddpm_sample(key, EXACT.noise, x, GRID, ABAR))
    np.testing.assert_array_equal(sample(KEY), sample(jax.random.key(0)))
    assert np.abs(sample(KEY) - sample(jax.random.key(1))).max() > 0.01


@pytest.mark.golden("perp_neg", "gmm_ddim_20steps.npz")
def test_golden_trajectory(golden, x64):
    """A trajectory under another guidance, through a plain call; alpha-bar is 1 at t = 0."""
    abar, timesteps = golden["abar"], golden["timesteps"]
    exact = diffusion.gaussian_mixture_denoiser(
        golden["mus"], golden["w_uncond"], np.sqrt(golden["sigma0_sq"]), abar
    )

    def denoise(x, t, cond):
        unconditional = exact.noise(x, t)
        along = exact.noise(x, t, golden["w_pos"]) - unconditional
        away = exact.noise(x, t, golden["w_neg"]) - unconditional
        share = (away * along).sum(-1, keepdims=True) / jnp.maximum(
            (along**2).sum(-1, keepdims=True), PERPENDICULAR_FLOOR
        )
        return unconditional + golden["scale"] * (along - golden["w_n"] * (away - share * along))

    @jax.jit
    def samples(x):
        # The last timestep is clean already: with it or without it, and in one case the last step is known.
        return [
            diffusion.ddim_sample(denoise, x, timesteps, abar),
            diffusion.ddim_sample(denoise, x, timesteps[:-1], abar, final_alpha_cumprod=abar[timesteps[-1]]),
        ]

    for got in samples(golden["x_T"]):
        np.testing.assert_allclose(got, golden["x_0"], rtol=1e-6, atol=1e-9)


def test_a_clean_timestep_changes_nothing():
    """Where alpha-bar is 1 at t = 0, the step from there is the identity, for every sampler."""
    abar = np.concatenate([[1.0], ABAR])
    exact = diffusion.gaussian_mixture_denoiser(MEANS, WEIGHTS, STDS, abar)
    x = start(4)
    for name, sample in SAMPLERS.items():
        short = sample(exact.noise, x, np.array([T, 60, 20]), abar)
        if name in ("ddim", "dpm_solver"):
            np.testing.assert_allclose(
                sample(exact.noise, x, np.array([T, 60, 20, 0]), abar), short, rtol=1e-5
            )
        else:
            assert np.isfinite(sample(exact.noise, x, np.array([T, 60, 20, 0]), abar)).all()


def test_grid():
    np.testing.assert_array_equal(diffusion.sampling_timesteps(1000, 50), np.round(np.linspace(999, 0, 50)))
    np.testing.assert_array_equal(diffusion.sampling_timesteps(7, 7), np.arange(7)[::-1])
    assert diffusion.sampling_timesteps(1000, 1).tolist() == [999]
    for steps in range(1, 60):
        assert (np.diff(diffusion.sampling_timesteps(59 + steps, steps)) < 0).all()
    for steps in (0, 11):
        with pytest.raises(ValueError, match=rf"steps: expected a number in 1..T = 10, got {steps}"):
            diffusion.sampling_timesteps(10, steps)


@every_sampler
def test_mistakes(name):
    x, sample = start(2), SAMPLERS[name]

    def rejects(error, match, **options):
        arguments = {"denoise": EXACT.noise, "x": x} | options
        with pytest.raises(error, match=match):
            sample(**arguments)

    rejects(
        ValueError,
        r"timesteps: expected steps that fall strictly; timesteps\[2\] = 5",
        grid=np.array([9, 5, 5]),
    )
    rejects(
        ValueError, r"timesteps: expected steps in 0..99, got timesteps\[0\] = 100", grid=np.array([100, 5])
    )
    rejects(
        ValueError, r"timesteps: expected steps in 0..99, got timesteps\[1\] = -1", grid=jnp.array([9, -1])
    )
    rejects(
        ValueError, r"timesteps: expected a grid of at least one step, \[S\], got shape \(0,\)", grid=GRID[:0]
    )
    rejects(TypeError, "timesteps: expected integers, got dtype float64", grid=np.array([9.0, 5.0]))
    rejects(ValueError, r"alphas_cumprod: expected numbers that fall strictly", abar=ABAR[::-1])
    rejects(ValueError, r"alphas_cumprod: .*shape \(1, 100\)", abar=ABAR[None])
    rejects(
        ValueError, "final_alpha_cumprod: expected a number between 0 and 1, got 1.5", final_alpha_cumprod=1.5
    )
    rejects(
        ValueError, "final_alpha_cumprod: expected at least alpha-bar at the last", final_alpha_cumprod=0.5
    )
    rejects(ValueError, "prediction: expected one of epsilon, x0, v, got 'noise'", prediction="noise")
    rejects(ValueError, "clip: expected a positive finite number, got 0", clip=0)
    rejects(TypeError, "x_T: expected a floating dtype, got int32", x=np.ones((2, 2), np.int32))
    rejects(ValueError, "x_T: expected a batch axis, got a scalar", x=np.float32(1))
    rejects(
        ValueError,
        r"denoise: expected an output of the shape of x, \(2, 2\), got \(2, 4\)",
        denoise=lambda x, t, c: jnp.concatenate([x, x], 1),
    )


def test_mistakes_of_randomness():
    x = start(2)
    with pytest.raises(ValueError, match="key: expected a random key where eta is not 0, got None"):
        ddim(EXACT.noise, x, eta=0.5)
    with pytest.raises(ValueError, match=r"eta: expected a number between 0 and 1, got 1\.5"):
        ddim(EXACT.noise, x, eta=1.5, key=KEY)
    with pytest.raises(ValueError, match="variance: expected one of posterior, beta, got 'learned'"):
        ddpm(EXACT.noise, x, variance="learned")
