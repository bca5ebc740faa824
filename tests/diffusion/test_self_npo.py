"""Truncated diffusion fine-tuning: goldens, a loop by hand, the theory, the engine, sharding, bad input."""

import itertools
import re
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType

from jaxneg.diffusion import (
    ddim_grid,
    ddim_step,
    init_self_npo,
    predict_x0,
    pseudo_huber,
    renoise,
    scaled_linear_schedule,
    self_npo_loss,
    self_npo_step,
    truncated_rollout,
)
from jaxneg.nn import denoising_mlp
from jaxneg.train import fit, make_mesh, pipeline, restore, shard_step

# What the goldens' README states: number of jumps, c of the pseudo-Huber loss, tolerances in float64.
STEPS, HUBER = 5, 1e-3
GRID_TOLERANCE, STEP_TOLERANCE = 1e-12, 1e-10
SETTINGS = ("w", "S", "C", "loss_type")
ABAR = scaled_linear_schedule(1000).alphas_cumprod


def gaussian(params, x, t, label, table=ABAR):
    """The exact noise of x_t where x_0 is Gaussian with a mean and a variance for each class."""
    abar = jnp.asarray(table, x.dtype)[t][:, None]
    mean, variance = params["means"][label], params["variances"][label][:, None]
    return jnp.sqrt(1 - abar) * (x - jnp.sqrt(abar) * mean) / (abar * variance + 1 - abar)


@pytest.mark.golden("self_npo", "ddim_solver*.npz")
def test_golden_grid(golden, x64):
    abar = golden.pop("alphas_cumprod")
    sizes = {re.match(r"S(\d+)_", name)[1] for name in golden}
    assert sizes
    close = {"atol": GRID_TOLERANCE, "rtol": GRID_TOLERANCE}
    for size in sizes:
        grid = ddim_grid(abar, int(size))
        part = {
            name: golden.pop(f"S{size}_{name}") for name in ("timesteps", "timesteps_prev", "ab", "ab_prev")
        }
        for ours, expected in zip(grid, part.values(), strict=True):
            np.testing.assert_allclose(ours, expected, **close)
        x0, eps, index = (golden.pop(f"S{size}_step_{name}") for name in ("x0", "eps", "index"))
        ours = ddim_step(grid, x0, eps, jnp.asarray(index))
        np.testing.assert_allclose(ours, golden.pop(f"S{size}_step_out"), **close)
    assert not golden, f"{list(golden)} have no test"


def draws(monkeypatch, integers=(), normals=()):
    """Numbers in the order given in place of random ones; each draw must ask for their shape."""
    integers, normals = iter(integers), iter(normals)

    def given(numbers, shape, dtype):
        array = jnp.asarray(next(numbers))
        assert array.shape == tuple(shape)
        return array.astype(dtype)

    monkeypatch.setattr(
        jax.random, "randint", lambda key, shape, low, high, dtype=int: given(integers, shape, dtype)
    )
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype=float: given(normals, shape, dtype))


@pytest.mark.golden("self_npo", "tdft_step*.npz")
def test_golden_step(golden, x64, monkeypatch):
    abar = golden.pop("alphas_cumprod")
    prefixes = [name.removesuffix("_loss_type") for name in golden if name.endswith("_loss_type")]
    assert prefixes
    for prefix in prefixes:
        names = [name for name in golden if name.startswith(f"{prefix}_")]
        case = {name.removeprefix(f"{prefix}_"): golden.pop(name) for name in names}
        check_step(prefix, case, abar, monkeypatch)
    assert not golden, f"{list(golden)} have no test"


def check_step(name, case, abar, monkeypatch):
    denoise = partial(gaussian, table=abar)
    w, size, null, kind = (case.pop(each).item() for each in SETTINGS)

    def take(*names):
        return [jnp.asarray(case.pop(each)) for each in names]

    def check(ours, array):
        tolerance = {"atol": STEP_TOLERANCE, "rtol": STEP_TOLERANCE}
        np.testing.assert_allclose(ours, case.pop(array), **tolerance, err_msg=f"{name}: {array}")

    teacher, student = (
        dict(zip(("means", "variances"), take(f"means_{role}", f"vars_{role}"), strict=True))
        for role in ("teacher", "student")
    )
    label, x, noise, index, s, again = take("label", "x_data", "noise", "start_index", "s", "renoise")
    grid, x_start, given_x_s = ddim_grid(abar, size), jnp.asarray(case["x_start"]), jnp.asarray(case["x_s"])
    # The official loop leaves early where all examples start within K steps of the end.
    early = "target_x0_no_early_exit" in case
    if early:
        for left_early in ("target_x0", "loss", "grad_means", "grad_vars"):
            del case[left_early]

    def pieces(student):
        x_t, t, target = truncated_rollout(
            partial(denoise, teacher), x_start, label, null, index, grid, STEPS, w
        )
        x_s = renoise(jax.random.key(0), x_t, t, s, abar)
        estimate = predict_x0(denoise(student, given_x_s, s, label), given_x_s, *levels(abar, s))
        error = estimate - target
        error = pseudo_huber(estimate, target, HUBER) if kind == "huber" else error**2
        return x_t, t, target, x_s, estimate, error.mean()

    def whole(student):
        return self_npo_loss(
            student, teacher, {"x": x, "cond": label}, jax.random.key(0), denoise, abar, null_cond=null,
            guidance=w, steps=STEPS, grid_steps=size, loss=kind, huber=HUBER,
        ).mean()  # fmt: skip

    with monkeypatch.context() as patch:
        draws(patch, integers=[index, s], normals=[again, noise, again])
        (x_t, t, target, x_s, estimate, by_pieces), (value, slopes) = jax.jit(
            lambda student: (pieces(student), jax.value_and_grad(whole)(student))
        )(student)
    alpha, sigma = levels(abar, grid.timesteps[np.asarray(index)])
    check(grid.timesteps[np.asarray(index)], "start_t")
    check(alpha[:, None] * x + sigma[:, None] * noise, "x_start")
    check(x_t, "x_end")
    check(t, "t_end")
    check(target, "target_x0_no_early_exit" if early else "target_x0")
    check(x_s, "x_s")
    check(estimate, "student_x0")
    np.testing.assert_allclose(by_pieces, value, rtol=STEP_TOLERANCE)
    check(value, "loss_no_early_exit" if early else "loss")
    if not early:
        check(slopes["means"], "grad_means")
        check(slopes["variances"], "grad_vars")
    assert not case, f"{name}: {list(case)} have no test"


def levels(abar, t):
    """Alpha and sigma at timesteps."""
    return jnp.asarray(abar**0.5)[t], jnp.asarray((1 - abar) ** 0.5)[t]


# Three classes and the null condition, in two dimensions.
CLASSES = 3
TEACHER = {
    "means": jnp.array([[1.0, -0.5], [-1.5, 0.3], [0.2, 0.8], [0.0, 0.1]]),
    "variances": jnp.array([0.3, 0.1, 0.5, 1.5]),
}
STUDENT = {"means": TEACHER["means"] + 0.2, "variances": TEACHER["variances"] * 1.3}


def batch_of(examples=6, seed=0):
    rng = np.random.default_rng(seed)
    label = jnp.asarray(rng.integers(0, CLASSES, examples), jnp.int32)
    return {"x": jnp.asarray(rng.normal(size=(examples, 2)), jnp.float32), "cond": label}


def loop_by_hand(batch, index, noise, s, again, *, w, K, S, start, kind="huber"):
    """One example after the other, one jump after the other, in float64."""
    T, h, c = len(ABAR), len(ABAR) // S, 1e-3
    alpha, sigma = np.sqrt(ABAR), np.sqrt(1 - ABAR)
    x_all, labels = np.asarray(batch["x"], np.float64), np.asarray(batch["cond"])

    def eps(params, x, t, label):
        mean, variance = (np.asarray(params[name], np.float64)[label] for name in ("means", "variances"))
        return sigma[t] * (x - alpha[t] * mean) / (ABAR[t] * variance + 1 - ABAR[t])

    losses = []
    for b, label in enumerate(labels):
        level = (index[b] + 1) * h - 1
        if start == "data":
            x, path = alpha[level] * x_all[b] + sigma[level] * noise[b], [level]
            for _ in range(K):
                path.append(max(path[-1] - h, 0))
        else:
            x, path = noise[b], np.round(np.linspace(T - 1, level, K + 1)).astype(int)

        def guided(x, t, label=label):
            given, null = eps(TEACHER, x, t, label), eps(TEACHER, x, t, CLASSES)
            return given + w * (given - null)

        for t, after in itertools.pairwise(path):
            e = guided(x, t)
            if after < t:
                x = alpha[after] * (x - sigma[t] * e) / alpha[t] + sigma[after] * e
        t = path[-1]
        target = (x - sigma[t] * guided(x, t)) / alpha[t]
        spread = np.sqrt(max(sigma[s[b]] ** 2 - sigma[t] ** 2 * ABAR[s[b]] / ABAR[t], 0))
        x_s = alpha[s[b]] / alpha[t] * x + spread * again[b]
        estimate = (x_s - sigma[s[b]] * eps(STUDENT, x_s, s[b], label)) / alpha[s[b]]
        error = (estimate - target) ** 2
        losses.append(np.mean(np.sqrt(error + c**2) - c if kind == "huber" else error))
    return np.array(losses)


@pytest.mark.parametrize(
    ("start", "w", "K", "S", "kind"),
    [
        ("data", -3.0, 2, 50, "l2"),
        ("noise", -2.0, 4, 25, "huber"),
        pytest.param("data", -1.0, 5, 25, "huber", marks=pytest.mark.slow),
        pytest.param("data", 0.0, 0, 10, "l2", marks=pytest.mark.slow),
        pytest.param("noise", -1.0, 3, 30, "l2", marks=pytest.mark.slow),
    ],
)
def test_against_a_loop_by_hand(start, w, K, S, kind, x64, monkeypatch):
    batch, rng = batch_of(8), np.random.default_rng(1)
    index = rng.integers(0, S, 8)
    index[:2] = 0, S - 1
    s = rng.integers(900, 1000, 8)
    noise, again = rng.normal(size=(2, 8, 2))
    draws(monkeypatch, integers=[index, s], normals=[noise, again])
    batch["x"] = batch["x"].astype(jnp.float64)

    @jax.jit
    def loss(batch):
        return self_npo_loss(
            STUDENT, TEACHER, batch, jax.random.key(0), gaussian, ABAR, null_cond=CLASSES,
            guidance=w, steps=K, grid_steps=S, start=start, loss=kind,
        )  # fmt: skip

    ours = loss(batch)
    expected = loop_by_hand(batch, index, noise, s, again, w=w, K=K, S=S, start=start, kind=kind)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize("start", ["data", pytest.param("noise", marks=pytest.mark.slow)])
def test_draws_cover_their_ranges(start):
    """Indices over the whole grid; s above t and below T."""
    seen = {1: [], 2: []}

    def spy(params, x, t, cond):
        jax.debug.callback(lambda t: seen[params.size].append(np.asarray(t)), t, ordered=True)
        return x

    @jax.jit
    def loss(x):
        return self_npo_loss(
            jnp.zeros(2), jnp.zeros(1), {"x": x, "cond": None}, jax.random.key(2), spy,
            np.linspace(0.99, 0.5, 20), steps=1, grid_steps=10, start=start,
        )  # fmt: skip

    loss(jnp.zeros((400, 1)))
    jax.effects_barrier()
    (first, t), (s,) = seen[1], seen[2]
    if start == "data":
        assert set(first) == set(range(1, 20, 2))
        np.testing.assert_array_equal(t, np.maximum(first - 2, 0))
    else:
        assert set(first) == {19}
        assert set(t) == set(range(1, 20, 2))
    assert np.all((s > t) | (t == 19))
    assert s.max() == 19
    assert np.any(s == t + 1)


# Two branches, one branch.


X, INDEX, LABEL, GRID = (
    jnp.ones((4, 2)),
    jnp.array([0, 3, 9, 24]),
    jnp.array([0, 1, 2, 0]),
    ddim_grid(ABAR, 25),
)


def rollout(eps_fn, guidance, cond=LABEL, null_cond=CLASSES, **options):
    """Three jumps from a few levels; a guidance of None is given later, to the compiled function."""

    def run(later):
        w = later if guidance is None else guidance
        return truncated_rollout(eps_fn, X, cond, null_cond, INDEX, GRID, 3, w, **options)

    return jax.jit(run)


@pytest.mark.parametrize("w", [0, -1.0])
def test_one_branch_is_enough_where_the_other_has_no_weight(w):
    calls = []

    def spy(x, t, cond):
        calls.append(cond.shape)
        return gaussian(TEACHER, x, t, cond)

    one = rollout(spy, w)(None)
    assert set(calls) == {(4,)}
    calls.clear()
    both = rollout(spy, None)(float(w))
    assert set(calls) == {(8,)}
    for a, b in zip(one, both, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_no_gradient_leaves_the_rollout():
    def total(x):
        x_t, _, target = truncated_rollout(
            partial(gaussian, TEACHER), x, LABEL, CLASSES, INDEX, GRID, 2, -3.0
        )
        return x_t.sum() + target.sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(X), 0)


@pytest.mark.slow
def test_velocities_and_noises_are_the_same_rollout():
    def velocity(x, t, label):
        alpha, sigma = (table.astype(x.dtype)[:, None] for table in levels(ABAR, t))
        eps = gaussian(TEACHER, x, t, label)
        return alpha * eps - sigma * (x - sigma * eps) / alpha

    noises = rollout(partial(gaussian, TEACHER), -3.0)(None)
    velocities = rollout(velocity, -3.0, prediction="v")(None)
    for a, b in zip(noises, velocities, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_model_without_conditions():
    eps = partial(gaussian, TEACHER, label=jnp.zeros(4, int))
    free = rollout(lambda x, t, cond: eps(x, t), -5.0, None, None)(None)
    label = rollout(partial(gaussian, TEACHER), 0.0, jnp.zeros(4, int))(None)
    for a, b in zip(free, label, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# Re-noising.

RENOISE = jax.jit(lambda key, x, t, s: renoise(key, x, t, s, ABAR))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_renoising_gives_the_marginal(seed):
    """Mean and spread of x_s given x_0 are those of the forward process, whatever t is."""
    rng = np.random.default_rng(seed)
    t, s = np.sort(rng.integers(0, 1000, (2, 3)), axis=0)
    alpha = np.sqrt(ABAR)
    key, one = jax.random.key(seed), jnp.ones((3, 1))
    noise = np.asarray(jax.random.normal(key, (3, 1)), np.float64)[:, 0]
    kept = np.asarray(RENOISE(key, 0 * one, t, s))[:, 0]
    spread = np.sqrt(np.maximum(1 - ABAR[s] / ABAR[t], 0))
    np.testing.assert_allclose(kept, spread * noise, rtol=1e-4, atol=1e-6)
    moved = np.asarray(RENOISE(key, one, t, s))[:, 0]
    np.testing.assert_allclose(moved - kept, alpha[s] / alpha[t], rtol=1e-4, atol=1e-5)


def test_renoising_to_neighbours_keeps_its_digits_and_is_never_nan():
    """Every neighbour, the level itself, and the level below, where the variance would be negative."""
    t = jnp.arange(1, 999)
    x = jnp.ones((998, 1))
    step = jax.jit(lambda s: renoise(jax.random.key(0), x, t, s, ABAR))
    noise = np.asarray(jax.random.normal(jax.random.key(0), x.shape), np.float64)
    t = np.asarray(t)
    up = np.sqrt(ABAR[t + 1] / ABAR[t])[:, None] + np.sqrt(1 - ABAR[t + 1] / ABAR[t])[:, None] * noise
    np.testing.assert_allclose(step(jnp.asarray(t + 1)), up, rtol=3e-5, atol=1e-5)
    np.testing.assert_allclose(step(jnp.asarray(t)), 1, rtol=1e-6)
    np.testing.assert_allclose(step(jnp.asarray(t - 1)), np.sqrt(ABAR[t - 1] / ABAR[t])[:, None], rtol=1e-6)


# The paper's theory: Theorems 1 to 3.

# Three nodes of Gauss and Hermite: exact where the integrand is a polynomial of degree 5 in the normals.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def expected_gradients(monkeypatch, cases, *, w, K, from_y=False):
    """The gradient at student = teacher, its expectation over x_0, both noises and the class, exactly.

    One row for each case ``(index, s)``: by the means and the variances of the classes.
    """
    normals = list(itertools.product(NODES, repeat=3))
    weights = np.tile([np.prod(each) for each in itertools.product(WEIGHTS, repeat=3)], len(cases) * CLASSES)
    rows = np.array([[*case, label, *each] for case in cases for label in range(CLASSES) for each in normals])
    index, s, label = rows[:, :3].astype(int).T
    clean, noise, again = rows[:, 3:].T[..., None]
    by_case = weights * np.repeat(np.eye(len(cases)), len(rows) // len(cases), axis=1) / CLASSES
    exact = {"means": jnp.array([[1.0], [-1.5], [0.2], [0.0]]), "variances": jnp.array([0.3, 0.1, 0.5, 1.5])}
    x = np.asarray(exact["means"])[label] + np.sqrt(np.asarray(exact["variances"]))[label][:, None] * clean

    def from_x_t(params):
        return self_npo_loss(
            params, exact, {"x": x, "cond": jnp.asarray(label)}, jax.random.key(0), gaussian, ABAR,
            null_cond=CLASSES, guidance=w, steps=K, grid_steps=25, loss="l2",
        )  # fmt: skip

    def from_the_target(params):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            [each[:, None] for each in levels(ABAR, times)] for times in (GRID.timesteps[index], s)
        )
        x_t = alpha_t * x + sigma_t * noise
        teacher = partial(gaussian, exact)
        _, _, y = truncated_rollout(teacher, x_t, jnp.asarray(label), CLASSES, jnp.asarray(index), GRID, K, w)
        x_s = alpha_s * y + sigma_s * again
        estimate = (x_s - sigma_s * gaussian(params, x_s, s, label)) / alpha_s
        return (estimate - y)[:, 0] ** 2

    with monkeypatch.context() as patch:
        draws(patch, integers=[index, s], normals=[noise, again])
        losses = from_the_target if from_y else from_x_t
        slopes = jax.jit(jax.jacrev(lambda params: by_case @ losses(params)))(exact)
    return np.concatenate([slopes["means"][:, :CLASSES, 0], slopes["variances"][:, :CLASSES]], axis=1)


def test_an_exact_teacher_teaches_nothing_new(x64, monkeypatch):
    """No jumps: x_t ~ p_t exactly. Then re-noising x_t leaves the student where it is, re-noising y not."""
    cases = [(0, 200), (4, 500), (14, 700), (20, 990)]
    right = expected_gradients(monkeypatch, cases, w=0.0, K=0)
    np.testing.assert_allclose(right, 0, atol=1e-12)
    wrong = expected_gradients(monkeypatch, cases, w=0.0, K=0, from_y=True)
    assert np.all(np.abs(wrong).max(1) > 1e-4)


@pytest.mark.slow
def test_guidance_and_jumps_do_move_the_student(x64, monkeypatch):
    """The jumps are exact only as their number grows; what they add is small beside guidance."""
    cases = [(4, 500), (14, 700), (20, 990)]
    drift = np.linalg.norm(expected_gradients(monkeypatch, cases, w=0.0, K=2), axis=1)
    pull = np.linalg.norm(expected_gradients(monkeypatch, cases, w=-1.0, K=2), axis=1)
    assert np.all(drift > 0)
    assert np.all(pull > 10 * drift)


# The step.

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.0))
MODEL = denoising_mlp(2, hidden=8, blocks=1, classes=CLASSES)
OPTIONS = {"null_cond": CLASSES, "guidance": -3.0, "steps": 2, "p_null": 0.25, "ema": 0.9}


def first_state(seed=0):
    return init_self_npo(MODEL.init(jax.random.key(seed)), TX, jax.random.key(1))


@pytest.fixture(scope="module")
def step():
    return jax.jit(self_npo_step(TX, MODEL.apply, ABAR, **OPTIONS))


def assert_close(ours, expected, **tolerance):
    def compare(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, **tolerance)

    jax.tree.map(compare, ours, expected)


@pytest.mark.slow
def test_a_step_by_hand(step):
    """Gradient, clipping and Adam on the student; then the teacher moves towards the new student."""
    before, batch = first_state(), batch_of(8)
    state, metrics = step(before, batch)
    options = {name: value for name, value in OPTIONS.items() if name != "ema"}

    @jax.jit
    def by_hand(params):
        def loss(params):
            key = jax.random.fold_in(before.key, 0)
            return self_npo_loss(params, before.teacher, batch, key, MODEL.apply, ABAR, **options).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, _ = TX.update(grads, before.opt_state, params)
        return value, grads, updates, optax.apply_updates(params, updates)

    value, grads, updates, params = by_hand(before.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-3)
    assert_close(state.params, params, rtol=1e-3, atol=1e-5)
    mean = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, before.teacher, state.params)
    assert_close(state.teacher, mean, rtol=1e-6, atol=1e-7)
    assert int(state.step) == 1
    later = before._replace(step=state.step)  # another step draws other numbers
    other, _ = step(later, batch)
    assert not np.allclose(other.params["inputs"]["kernel"], state.params["inputs"]["kernel"], atol=1e-7)


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher():
    batch, params = batch_of(4), MODEL.init(jax.random.key(0))

    def loss(params, teacher):
        return self_npo_loss(
            params, teacher, batch, jax.random.key(0), MODEL.apply, ABAR, null_cond=CLASSES, steps=1
        ).mean()

    student, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, params)
    assert optax.tree.norm(student) > 0
    assert optax.tree.norm(teacher) == 0


@pytest.mark.slow
def test_jit_eager_vmap_and_bfloat16():
    batch = batch_of(4)

    def loss(teacher, x):
        given = {**batch, "x": x}
        return self_npo_loss(
            STUDENT, teacher, given, jax.random.key(3), gaussian, ABAR, null_cond=CLASSES, steps=1
        )

    plain = loss(TEACHER, batch["x"])
    np.testing.assert_allclose(jax.jit(loss)(TEACHER, batch["x"]), plain, rtol=1e-4, atol=1e-6)
    stacked = jax.vmap(loss, (None, 0))(TEACHER, jnp.stack([batch["x"], batch["x"]]))
    np.testing.assert_allclose(stacked[1], plain, rtol=1e-4, atol=1e-6)
    low = loss(TEACHER, batch["x"].astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, plain, atol=0.02)


@pytest.mark.slow
def test_the_teacher_of_bfloat16_weights_moves():
    """A thousandth of the way is lost in bfloat16."""

    def denoise(w, x, t, cond):
        assert w.dtype == jnp.bfloat16
        return w * x

    tx = optax.sgd(0.0)
    step = self_npo_step(tx, denoise, ABAR, ema=0.999, steps=1)
    state = init_self_npo(jnp.ones((), jnp.bfloat16), tx, jax.random.key(0))
    state = state._replace(params=jnp.array(2, jnp.bfloat16))
    state, _ = jax.jit(step)(state, {"x": jnp.ones((2, 1)), "cond": None})
    assert state.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.teacher, 1.001, rtol=1e-6)


@pytest.mark.slow
def test_training_degrades_the_student_in_the_teachers_direction():
    """With inverse guidance the student's classes drift away from their condition."""
    teacher = {"means": 1.5 * TEACHER["means"][:CLASSES], "variances": jnp.full(CLASSES, 0.2)}
    mixture = {"means": jnp.vstack([teacher["means"], teacher["means"].mean(0)[None]])}
    mixture["variances"] = jnp.append(teacher["variances"], 2.0)
    tx = optax.adam(2e-2)
    step = jax.jit(self_npo_step(tx, gaussian, ABAR, guidance=-3.0, null_cond=CLASSES, ema=1.0))
    state = init_self_npo(mixture, tx, jax.random.key(0))
    rng = np.random.default_rng(0)
    for _ in range(30):
        label = rng.integers(0, CLASSES, 64)
        x = np.asarray(mixture["means"])[label] + 0.2**0.5 * rng.normal(size=(64, 2))
        state, _ = step(state, {"x": jnp.asarray(x, jnp.float32), "cond": jnp.asarray(label)})
    center = mixture["means"][CLASSES]
    before = jnp.linalg.norm(mixture["means"][:CLASSES] - center, axis=1)
    after = jnp.linalg.norm(state.params["means"][:CLASSES] - center, axis=1)
    assert np.all(after < before)
    assert_close(state.teacher, mixture)  # ema = 1: it stays


# The engine.


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(step, tmp_path):
    arrays = {name: np.asarray(value) for name, value in batch_of(24).items()}

    def run(folder, step=step, resume=False):
        return fit(
            step, first_state(), pipeline(arrays, 8, seed=3), steps=6, run_dir=folder,
            checkpoint_every=2, log_every=1, resume=resume, progress=False,
        )  # fmt: skip

    def dies(state, batch):
        if int(state.step) == 4:
            raise Killed
        return step(state, batch)

    unbroken = run(tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies)
    # Between checkpoint and kill: a step that is lost and done again.
    resumed = run(tmp_path / "killed", resume=True)
    assert resumed.history == unbroken.history
    assert int(resumed.state.step) == 6

    def bits(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    assert jax.tree.map(bits, resumed.state) == jax.tree.map(bits, unbroken.state)
    saved = restore(tmp_path / "killed" / "checkpoints", first_state()).state
    assert jax.tree.map(bits, saved) == jax.tree.map(bits, unbroken.state)
    assert not np.allclose(saved.teacher["inputs"]["kernel"], saved.params["inputs"]["kernel"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("explicit", "fsdp"), [(False, "data"), (True, None)], ids=["auto and FSDP", "explicit"]
)
def test_sharded_steps_are_the_unsharded_ones(explicit, fsdp, step):
    batch, state = batch_of(16), first_state()
    expected = state
    for _ in range(2):
        expected, metrics = step(expected, batch)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    plain = self_npo_step(TX, MODEL.apply, ABAR, **OPTIONS)
    sharded = shard_step(plain, mesh, state, batch, fsdp=fsdp, min_size=1)
    ours = sharded.place_state(state)
    for _ in range(2):
        ours, sharded_metrics = sharded(ours, batch)
    if fsdp:
        assert not ours.params["blocks"]["0"]["first"]["kernel"].sharding.is_fully_replicated
    # Adam's first steps go by the gradient's sign: where it is near 0, its last digits decide.
    assert_close(sharded_metrics, metrics, rtol=1e-3)
    assert_close(ours, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_explicit_axes_from_noise():
    """The second kind of start, and functions that are called alone."""
    batch = batch_of(16)

    def loss(batch):
        return self_npo_loss(
            STUDENT, TEACHER, batch, jax.random.key(0), affine, ABAR,
            null_cond=CLASSES, guidance=-2.0, steps=2, start="noise", p_null=0.5,
        )  # fmt: skip

    def affine(params, x, t, cond):
        return 0.3 * x + 0.1 * cond[:, None] + t[:, None] / 1000

    expected = jax.jit(loss)(batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
        ours = jax.jit(loss)(placed)
        assert jax.typeof(ours).sharding.spec == jax.P("data")
        t = placed["cond"]
        assert RENOISE(jax.random.key(0), placed["x"], t, t + 1).shape == (16, 2)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


# Bad input.


def test_bad_input():
    batch, key = batch_of(4), jax.random.key(0)

    def loss(batch=batch, table=ABAR, **options):
        return jax.eval_shape(lambda: self_npo_loss(STUDENT, TEACHER, batch, key, gaussian, table, **options))

    with pytest.raises(ValueError, match="start: expected one of data, noise, got 'middle'"):
        loss(start="middle")
    with pytest.raises(ValueError, match="loss: expected one of huber, l2, got 'l1'"):
        loss(loss="l1")
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        loss(steps=-1)
    with pytest.raises(ValueError, match="steps: expected at least 1 with start='noise', got 0"):
        loss(steps=0, start="noise")
    with pytest.raises(ValueError, match="steps: expected from 1 to the schedule's 1000 timesteps, got 1001"):
        loss(grid_steps=1001)
    with pytest.raises(ValueError, match="null_cond: expected the structure of cond"):
        loss()
    with pytest.raises(ValueError, match="rate: expected a number between 0 and 1, got 3"):
        loss(p_null=3, null_cond=CLASSES, steps=0)
    with pytest.raises(ValueError, match="c: expected a positive finite number, got 0"):
        loss(huber=0, null_cond=CLASSES, steps=0)
    with pytest.raises(ValueError, match=r"batch\['x'\]: expected at least one example, got shape \(0, 2\)"):
        loss({"x": jnp.zeros((0, 2)), "cond": jnp.zeros(0, int)})
    with pytest.raises(TypeError, match=r"batch\['x'\]: expected a floating dtype, got int32"):
        loss({**batch, "x": jnp.zeros((4, 2), jnp.int32)})
    with pytest.raises(ValueError, match=r"alphas_cumprod: expected numbers that fall strictly"):
        loss(table=ABAR[::-1])
    with pytest.raises(ValueError, match=r"alphas_cumprod: expected numbers that fall strictly"):
        ddim_grid(np.array([0.9, 0.95]), 1)
    grid = ddim_grid(ABAR, 25)

    def rolled(eps_fn, index):
        return jax.eval_shape(lambda: truncated_rollout(eps_fn, batch["x"], batch["cond"], 3, index, grid))

    with pytest.raises(ValueError, match=r"index: expected integers of shape \(4,\), got float32 \(4,\)"):
        rolled(partial(gaussian, TEACHER), jnp.zeros(4))
    message = r"denoise: expected an output of the shape of x, \(4, 2\), got \(4, 1\)"
    with pytest.raises(ValueError, match=message):
        rolled(lambda x, t, c: x[:, :1], jnp.zeros(4, int))
    with pytest.raises(ValueError, match=r"eps: expected the shape of x0, \(4, 2\), got \(4, 1\)"):
        ddim_step(grid, batch["x"], batch["x"][:, :1], jnp.zeros(4, int))
    with pytest.raises(ValueError, match=r"target: expected the shape of pred, \(4, 2\), got \(2,\)"):
        pseudo_huber(batch["x"], batch["x"][0])
    with pytest.raises(ValueError, match="ema: expected a number between 0 and 1, got 2"):
        self_npo_step(TX, gaussian, ABAR, ema=2)


@settings(deadline=None, max_examples=10)
@given(st.floats(-50, 50), st.floats(1e-4, 10))
def test_pseudo_huber_is_between_its_limits(d, c):
    value, slope = jax.value_and_grad(lambda d: pseudo_huber(d, jnp.zeros(()), c))(jnp.float32(d))
    assert -1e-6 <= float(value) <= abs(d) * (1 + 1e-5)
    assert float(value) <= d**2 / (2 * c) * (1 + 1e-4) + 1e-6
    assert abs(float(slope)) <= 1 + 1e-6
