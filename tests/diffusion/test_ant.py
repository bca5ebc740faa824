"""ANT's loss: goldens, methods, the cost of the task gradients, meshes, NaN, specialists, bad input."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType

from jaxneg import mtl
from jaxneg.diffusion import (
    cluster_losses,
    cosine_schedule,
    ddim_sample,
    denoising_loss,
    interval_counts,
    make_ant_loss,
    min_snr_weight,
    negative_transfer_gap,
    sample_with_specialist,
    sampling_timesteps,
    stratified_timesteps,
    uncertainty_weighted_loss,
    with_specialist,
)
from jaxneg.train import NonFiniteError, fit, init_state, make_mesh, make_step, shard_step

ABAR = cosine_schedule(12).alphas_cumprod
BOUNDARIES = (0, 2, 7, 12)
KEY = jax.random.key(5)


def network(params, x, t, cond):
    """A small network whose examples do not meet."""
    hidden = jnp.tanh(
        x @ params["W"] + jnp.sin(t[:, None] * params["b"]) + (0 if cond is None else cond[:, None])
    )
    return hidden @ params["V"]


def sample_params(d=4, h=6):
    W, V, b = (jax.random.normal(jax.random.fold_in(KEY, i), s) for i, s in enumerate([(d, h), (h, d), (h,)]))
    return {"W": W / 2, "V": V / 3, "b": b}


def sample_batch(size=12, d=4, **extra):
    return {"x0": jax.random.normal(jax.random.key(size), (size, d)), **extra}


def cluster_major(k, size):
    """The places of the examples of interval 0, then of interval 1, ..."""
    return np.arange(size).reshape(-1, k).T.ravel()


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# Goldens.


def cases(golden):
    return sorted({name.split("_")[0] for name in golden if name.startswith("case")})


@pytest.mark.golden("ant", "uw.npz")
def test_golden_uw(golden, x64):
    for case in cases(golden):
        of = {
            name.removeprefix(f"{case}_"): golden.pop(name) for name in list(golden) if name.startswith(case)
        }
        k, log_scale = int(of.pop("k")), jnp.asarray(of.pop("log_scale"))

        def total_and_terms(per_example, log_scale, k=k):
            terms = uncertainty_weighted_loss(cluster_losses(per_example, k), log_scale)
            return terms.sum(), terms

        per_example = jnp.asarray(of.pop("per_example"))
        differentiated = jax.jit(jax.value_and_grad(total_and_terms, (0, 1), has_aux=True))
        (total, terms), grads = differentiated(per_example, log_scale)
        found = {
            "terms": terms,
            "total": total,
            "grad_per_example": grads[0],
            "grad_log_scale": grads[1],
            "weights": 0.5 * jnp.exp(-log_scale),
        }
        assert found.keys() == of.keys()
        for name, expected in of.items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-12, err_msg=name)
    assert not golden


@pytest.mark.slow
@pytest.mark.golden("ant", "pcgrad.npz")
def test_golden_pcgrad(golden, x64):
    assert cases(golden)
    for case in cases(golden):
        grads, orders, expected = (
            jnp.asarray(golden.pop(f"{case}_{name}")) for name in ("grads", "orders", "sum")
        )
        weights = mtl.pcgrad(mtl.gram(grads), orders, include_self=True)
        np.testing.assert_allclose(mtl.combine(weights, grads), expected, rtol=0, atol=1e-12)
    assert not golden


@pytest.mark.slow
@pytest.mark.golden("ant", "nash.npz")
def test_golden_nash(golden):
    for case in sorted({name.split("_")[0] for name in golden}):
        of = {
            name.removeprefix(f"{case}_"): golden.pop(name) for name in list(golden) if name.startswith(case)
        }
        for dtype, tolerance in ((jnp.float64, 1e-9), (jnp.float32, 1e-5)):
            with jax.enable_x64(dtype == jnp.float64):
                G = mtl.gram(jnp.asarray(of["grads"], dtype))
                np.testing.assert_allclose(G, of["gtg"], rtol=100 * tolerance, atol=100 * tolerance)
                alpha = np.asarray(mtl.nash(jnp.asarray(of["gtg"], dtype)))
            np.testing.assert_allclose(alpha, of["alpha_exact"], rtol=tolerance)
        if "gtg_frobenius" in of:
            np.testing.assert_allclose(np.linalg.norm(of["gtg"]), of.pop("gtg_frobenius"), rtol=1e-12)
        if "alpha_official" in of:
            np.testing.assert_allclose(alpha, of.pop("alpha_official"), rtol=1e-5)
        assert of.keys() == {"grads", "gtg", "alpha_exact"}


@pytest.mark.golden("ant", "ntg_frechet.npz")
def test_golden_negative_transfer_gap(golden):
    # Frechet distance, precision and recall are tested beside their functions.
    gap = negative_transfer_gap(golden["fd_spec"], golden["fd_multi"])
    np.testing.assert_allclose(gap, golden["ntg"], rtol=1e-12)


def tiny_network(flat, x, t, cond, *, d, h, T):
    """The goldens' network: tanh of a dense layer of x and four features of t / T, then another layer."""
    u = (t / T)[:, None]
    features = [x, jnp.sin(jnp.pi * u), jnp.cos(jnp.pi * u), jnp.sin(4 * jnp.pi * u), jnp.cos(4 * jnp.pi * u)]
    W1, b1, W2, b2 = jnp.split(flat, np.cumsum([(d + 4) * h, h, h * d]))
    return jnp.tanh(jnp.concatenate(features, 1) @ W1.reshape(d + 4, h) + b1) @ W2.reshape(h, d) + b2


@pytest.mark.golden("ant", "train_step.npz")
def test_golden_train_step(golden, x64):
    k, T, d, h = (int(golden.pop(name)) for name in ("k", "T", "d", "h"))
    clusters, t, x0, noise, abar = (
        golden.pop(name) for name in ("clusters", "t", "x0", "eps", "alphas_cumprod")
    )
    params, log_scale = jnp.asarray(golden.pop("params0")), jnp.asarray(golden.pop("log_scale0"))
    denoise = functools.partial(tiny_network, d=d, h=h, T=T)
    boundaries = [*clusters[:, 0].tolist(), int(clusters[-1, 1])]
    order = np.argsort(cluster_major(k, len(t)))
    batch = {"x0": jnp.asarray(x0[order]), "t": jnp.asarray(t[order]), "noise": jnp.asarray(noise[order])}
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    seen = []

    def recorded(x, t, cond):
        seen.append(x)
        return denoise(params, x, t, cond)

    close(denoising_loss(recorded, *map(jnp.asarray, (x0, t, noise)), abar), golden.pop("per_example_loss"))
    close(seen[0], golden.pop("x_t"))

    # Uncertainty weighting: the whole step.
    loss_fn = make_ant_loss(denoise, boundaries, abar, method="uw")
    both = {"network": params, "log_scale": log_scale}
    (loss, aux), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(both, batch, KEY)
    close(loss, golden.pop("uw_loss"))
    close(grads["network"], golden.pop("uw_grad"))
    close(grads["log_scale"], golden.pop("uw_grad_log_scale"))
    groups = {"network": optax.adamw(1e-3, weight_decay=0.0), "log_scale": optax.adam(0.025)}
    tx = optax.partition(groups, {"network": "network", "log_scale": "log_scale"})
    state, metrics = jax.jit(make_step(loss_fn, tx))(init_state(both, tx, KEY), batch)
    close(state.params["network"], golden.pop("uw_params1"))
    close(state.params["log_scale"], golden.pop("uw_log_scale1"))
    assert metrics["losses"].shape == metrics["weights"].shape == (k,)

    # PCGrad and Nash-MTL: the task gradients, and what becomes of them.
    loss_fn = make_ant_loss(denoise, boundaries, abar)
    losses, J = jax.jit(lambda p: mtl.task_grads(loss_fn, p, batch, KEY, has_aux=True))(params)
    close(losses[0], aux["losses"])
    close(J / k, golden.pop("pcgrad_task_grads"))
    weights = mtl.pcgrad(mtl.gram(J / k), golden.pop("pcgrad_orders"), include_self=True)
    close(mtl.combine(weights, J / k), golden.pop("pcgrad_grad"))
    close(J, golden.pop("nash_task_grads"))
    tx = optax.chain(mtl.multitask("nash", n_tasks=k, update_every=25, max_norm=None), optax.scale(1 / k))
    expected = golden.pop("nash_grad_before_clip")
    direction, after = jax.jit(tx.update)(J, tx.init(params), params)
    close(direction, expected)
    close(after[0].weights, golden.pop("nash_alpha"))
    np.testing.assert_allclose(jnp.linalg.norm(direction), k**-0.5, rtol=1e-9)
    clip = optax.clip_by_global_norm(1.0)
    close(clip.update(direction, clip.init(params))[0], golden.pop("nash_grad_clipped"))
    assert not golden, "an array of this file has no test"


# Timesteps.


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_timesteps_are_stratified(seed):
    boundaries = np.sort(np.random.default_rng(seed).choice(20, 5, replace=False))
    t = np.asarray(stratified_timesteps(jax.random.key(seed), boundaries, 12))
    assert t.dtype == np.int32
    np.testing.assert_array_equal(np.searchsorted(boundaries, t, "right") - 1, np.repeat(np.arange(4), 3))
    t = np.asarray(stratified_timesteps(jax.random.key(seed), boundaries, 12, proportional=True))
    counts = interval_counts(boundaries, 12, proportional=True)
    np.testing.assert_array_equal(
        np.searchsorted(boundaries, t, "right") - 1, np.repeat(np.arange(4), counts)
    )


def test_timesteps_are_integers_of_32_bits_in_float64_too(x64):
    assert stratified_timesteps(KEY, [0, 2, 4], 12).dtype == jnp.int32


def test_timesteps_are_uniform_in_their_interval():
    t = np.asarray(jax.jit(lambda key: stratified_timesteps(key, [0, 2, 12], 40_000))(KEY))
    low, high = np.bincount(t[:20_000], minlength=12), np.bincount(t[20_000:], minlength=12)
    np.testing.assert_allclose(low[:2], 10_000, rtol=0.05)
    np.testing.assert_allclose(high[2:], 2000, rtol=0.12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 30))
def test_proportional_counts(seed, k, more):
    boundaries = np.sort(np.random.default_rng(seed).choice(1000, k + 1, replace=False))
    counts = interval_counts(boundaries, k + more, proportional=True)
    assert sum(counts) == k + more
    assert min(counts) >= 1
    longer = np.argsort(np.diff(boundaries), kind="stable")
    assert np.all(np.diff(np.array(counts)[longer]) >= 0)


def test_proportional_counts_are_exact_where_they_can_be():
    assert interval_counts([0, 10, 40, 100], 20, proportional=True) == (2, 6, 12)


# The loss function.


def by_hand(params, batch, weight, prediction):
    """The losses ``[k]``, example by example, in numpy."""
    W, V, b = (np.asarray(params[name]) for name in "WVb")
    sums = np.zeros(3)
    for place, (x0, step, eps, cond) in enumerate(
        zip(*(np.asarray(batch[n]) for n in ("x0", "t", "noise", "cond")), strict=True)
    ):
        alpha, sigma = np.sqrt(ABAR[step]), np.sqrt(1 - ABAR[step])
        output = np.tanh((alpha * x0 + sigma * eps) @ W + np.sin(step * b) + cond) @ V
        target = {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]
        sums[place % 3] += weight[step] * np.mean((output - target) ** 2)
    return sums / (len(batch["t"]) / 3)


def given_batch(size=12, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.integers(
        np.array(BOUNDARIES[:3])[np.arange(size) % 3], np.array(BOUNDARIES[1:])[np.arange(size) % 3]
    )
    return sample_batch(size, t=jnp.asarray(t), noise=jnp.asarray(rng.normal(size=(size, 4)), jnp.float32))


@pytest.mark.parametrize("prediction", ["v", pytest.param("epsilon", marks=pytest.mark.slow)])
def test_losses_by_hand(prediction):
    params, batch = sample_params(), given_batch()
    batch["cond"] = jnp.linspace(-1, 1, 12)
    weight = min_snr_weight(ABAR / (1 - ABAR), prediction=prediction)
    expected = by_hand(params, batch, weight, prediction)
    make = functools.partial(make_ant_loss, network, BOUNDARIES, ABAR, weight=weight, prediction=prediction)
    for pullback in ("stacked", "sequential", "whole"):
        losses, aux = jax.jit(make(pullback=pullback))(params, batch, KEY)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert aux == {}
    loss, aux = jax.jit(make(method="linear"))(params, batch, KEY)
    np.testing.assert_allclose(aux["losses"], expected, rtol=1e-5)
    assert float(loss) == pytest.approx(expected.mean(), rel=1e-5)
    s = jnp.array([0.5, -1.0, 0.0])
    loss, aux = jax.jit(make(method="uw"))({"network": params, "log_scale": s}, batch, KEY)
    np.testing.assert_allclose(aux["losses"], expected, rtol=1e-5)
    np.testing.assert_allclose(aux["weights"], 0.5 * np.exp(-s), rtol=1e-6)
    assert float(loss) == pytest.approx(float(np.sum(0.5 * (np.exp(-s) * expected / 3 + s))), rel=1e-5)


@pytest.mark.parametrize("pullback", ["stacked", pytest.param("sequential", marks=pytest.mark.slow)])
def test_task_gradients_are_those_of_the_whole_batch(pullback):
    params, batch = sample_params(), sample_batch()
    weights = jnp.array([0.2, 3.0, -1.0])

    @functools.partial(jax.jit, static_argnums=0)
    def taken(loss_fn):
        """The losses, their gradients, and the gradient of weighted losses."""
        losses, back = jax.vjp(lambda p: loss_fn(p, batch, KEY)[0], params)
        return losses, jax.vmap(back)(jnp.eye(3))[0], back(weights)[0]

    make = functools.partial(make_ant_loss, network, BOUNDARIES, ABAR)
    found, expected = taken(make(pullback=pullback)), taken(make(pullback="whole"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_all_task_gradients_cost_one_backward_pass():
    params, batch = sample_params(32, 64), sample_batch(60, 32)
    make = functools.partial(make_ant_loss, network, BOUNDARIES, ABAR)
    one = flops(jax.grad(lambda p: make(method="linear")(p, batch, KEY)[0]), params)
    for pullback in ("stacked", "sequential"):
        loss_fn = make(pullback=pullback)
        all_of_them = flops(
            lambda p, loss_fn=loss_fn: mtl.task_grads(loss_fn, p, batch, KEY, has_aux=True)[1], params
        )
        assert all_of_them < 1.35 * one
    loss_fn = make(pullback="whole")
    assert flops(lambda p: mtl.task_grads(loss_fn, p, batch, KEY, has_aux=True)[1], params) > 1.8 * one


def test_draws():
    """Timesteps in the examples' intervals, fresh noise for another key, the same for the same key."""
    seen = []

    def denoise(params, x, t, cond):
        seen.append((np.asarray(x), np.asarray(t)))
        return params * x

    loss_fn = make_ant_loss(denoise, BOUNDARIES, ABAR, method="linear")
    batch = {"x0": jnp.zeros((300, 2))}
    for key in (KEY, KEY, jax.random.key(6)):
        loss_fn(jnp.zeros(()), batch, key)
    for x, t in seen:
        np.testing.assert_array_equal(np.searchsorted(BOUNDARIES, t, "right") - 1, np.arange(300) % 3)
        np.testing.assert_allclose(np.mean((x / np.sqrt(1 - ABAR[t])[:, None]) ** 2), 1, rtol=0.2)
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert np.any(seen[0][1] != seen[2][1])
    assert np.all(seen[0][0] != seen[2][0])


def test_one_interval_is_ordinary_training():
    params, batch = sample_params(), sample_batch()
    t = jnp.arange(12)[::-1]
    given = {**batch, "t": t, "noise": jnp.ones((12, 4))}
    loss, aux = jax.jit(make_ant_loss(network, [0, 12], ABAR, method="linear"))(params, given, KEY)
    assert aux["losses"].shape == (1,)
    rows = denoising_loss(functools.partial(network, params), batch["x0"], t, given["noise"], ABAR)
    assert float(loss) == pytest.approx(float(rows.mean()), rel=1e-5)
    # A specialist's timesteps.
    t = stratified_timesteps(KEY, [3, 5], 12)
    assert set(np.asarray(t).tolist()) == {3, 4}


@pytest.mark.slow
def test_proportional_intervals():
    params, batch = sample_params(), sample_batch(24)
    loss_fn = make_ant_loss(network, BOUNDARIES, ABAR, method="linear", proportional=True)
    loss, aux = loss_fn(params, batch, KEY)
    # 2, 5 and 5 of 12 timesteps: the weights, and here the counts too, so that it is the mean over examples.
    assert float(loss) == pytest.approx(float(aux["losses"] @ jnp.array([2, 5, 5]) / 12), rel=1e-5)
    assert interval_counts(BOUNDARIES, 24, proportional=True) == (4, 10, 10)
    uw = make_ant_loss(network, BOUNDARIES, ABAR, method="uw", proportional=True)
    total, _ = uw({"network": params, "log_scale": jnp.zeros(3)}, batch, KEY)
    assert float(total) == pytest.approx(0.5 * float(loss), rel=1e-5)


def test_conditions_are_dropped():
    seen = []

    def denoise(params, x, t, cond):
        seen.append(np.asarray(cond))
        return params * x

    batch = {"x0": jnp.zeros((300, 2)), "cond": jnp.zeros(300, jnp.int32)}
    loss_fn = make_ant_loss(denoise, BOUNDARIES, ABAR, method="linear", null_cond=10, cond_dropout=0.3)
    loss_fn(jnp.zeros(()), batch, KEY)
    assert set(seen[0].tolist()) == {0, 10}
    assert np.mean(seen[0] == 10) == pytest.approx(0.3, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tasks", "uw"])
def test_jit_vmap_and_low_precision(method):
    params, batch = sample_params(), sample_batch()
    params = params if method == "tasks" else {"network": params, "log_scale": jnp.zeros(3)}
    loss_fn = make_ant_loss(network, BOUNDARIES, ABAR, method=method)
    of_key = jax.value_and_grad(lambda p, b, key: loss_fn(p, b, key)[0].sum())
    keys = jax.random.split(KEY, 2)
    stacked = jax.jit(jax.vmap(of_key, (None, None, 0)))(params, batch, keys)
    plain = [of_key(params, batch, key) for key in keys]  # not jitted
    expected = jax.tree.map(lambda *rows: jnp.stack(rows), *plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), stacked, expected)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, batch))
    loss, grads = jax.jit(of_key)(*low, keys[0])
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert float(loss) == pytest.approx(float(stacked[0][0]), rel=0.3)


def test_uncertainty_weighting_is_stationary_at_the_losses():
    losses = jnp.array([0.5, 0.01, 3.0])
    gradient = jax.jit(jax.grad(lambda s: uncertainty_weighted_loss(losses, s).sum()))(jnp.log(losses / 3))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert uncertainty_weighted_loss(losses.astype(jnp.bfloat16), jnp.zeros(3)).dtype == jnp.float32


# In the engine.


def chain(method, k=3):
    if method == "uw":
        groups = {"network": optax.adam(0.01), "log_scale": optax.adam(0.025)}
        return optax.partition(groups, {"network": "network", "log_scale": "log_scale"})
    if method == "nash":
        return optax.chain(mtl.nash_mtl(n_tasks=k), optax.adam(0.01))
    if method == "pcgrad":
        return optax.chain(mtl.multitask("pcgrad"), optax.scale(1 / k), optax.adam(0.01))
    return optax.adam(0.01)


@functools.cache
def step_of(method, pullback="stacked", **options):
    """A step, the same jitted, and its first state."""
    kind = method if method in ("uw", "linear") else "tasks"
    tx = chain(method)
    loss_fn = make_ant_loss(network, BOUNDARIES, ABAR, method=kind, pullback=pullback)
    params = sample_params(8, 16)
    if method == "uw":
        params = {"network": params, "log_scale": jnp.zeros(3)}
    step = make_step(loss_fn, tx, **options)
    return step, jax.jit(step), init_state(params, tx, jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "uw", "pcgrad", "nash"])
def test_training_falls(method):
    _, step, state = step_of(method)
    history = []
    batch = {"x0": jnp.ones((48, 8)) * jnp.array([1.0, -1.0] * 4)}
    for _ in range(80):
        state, metrics = step(state, batch)
        history.append(np.asarray(metrics["losses"]))
    assert np.mean(history[-10:]) < 0.7 * np.mean(history[:5])


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("method", ["uw", "pcgrad", "nash"])
def test_sharded_equals_unsharded(method, axis_type):
    step, jitted, state = step_of(method)
    batch = sample_batch(24, 8)
    plain, metrics = jitted(state, batch)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=axis_type == AxisType.Explicit)
    sharded = shard_step(step, mesh, state, batch, min_size=8)
    found, sharded_metrics = sharded(sharded.place_state(state), batch)
    np.testing.assert_allclose(sharded_metrics["losses"], metrics["losses"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, plain.params)


@pytest.mark.slow
@pytest.mark.parametrize("pullback", ["stacked", "whole"])
def test_only_means_cross_the_mesh(pullback):
    """Every device holds its share of every interval: examples and activations stay where they are."""
    step, _, state = step_of("pcgrad", pullback)
    batch = sample_batch(24, 8)
    sharded = shard_step(step, make_mesh({"data": 4}, devices=jax.devices()[:4]), state, batch, fsdp=None)
    with jax.set_mesh(sharded.mesh):
        text = sharded.trace(state, batch).lower().compile().as_text()
    assert "all-reduce" in text
    for other in ("all-gather", "all-to-all", "collective-permute"):
        assert other not in text


@pytest.mark.slow
def test_accumulation_and_recomputation():
    batch = sample_batch(24, 8)
    (_, recomputing, state), (_, plain, _) = step_of("pcgrad", remat=True), step_of("pcgrad")
    found, expected = recomputing(state, batch)[0], plain(state, batch)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found.params, expected.params)
    _, accumulating, state = step_of("uw", accumulate=2)
    assert accumulating(state, batch)[1]["losses"].shape == (3,)


def with_nan(batch, example):
    return {**batch, "x0": batch["x0"].at[example, 0].set(jnp.nan)}


@pytest.mark.parametrize("method", ["uw", "pcgrad", pytest.param("linear", marks=pytest.mark.slow)])
def test_nan_shows_in_its_interval(method):
    _, step, state = step_of(method)
    _, metrics = step(state, with_nan(sample_batch(24, 8), example=7))  # 7 mod 3 = 1
    assert np.isnan(metrics["losses"]).tolist() == [False, True, False]


@pytest.mark.parametrize("method", ["pcgrad", pytest.param("uw", marks=pytest.mark.slow)])
def test_the_loop_names_the_interval(method):
    _, step, state = step_of(method)
    good = sample_batch(24, 8)
    with pytest.raises(NonFiniteError, match="losses of task 2 is not finite at step 2"):
        fit(step, state, [good, with_nan(good, example=5), good], steps=3, progress=False)


# Specialists.


def test_a_specialist_takes_its_interval():
    def general(x, t, cond):
        return 0.3 * x

    def special(x, t, cond):
        return -0.2 * x + 0.1

    x, t = jax.random.normal(KEY, (4, 3)), jnp.array([3, 4, 8, 9])
    mixed = with_specialist(general, special, (4, 9))
    expected = jnp.where(
        jnp.array([False, True, True, False])[:, None], special(x, t, None), general(x, t, None)
    )
    np.testing.assert_allclose(jax.jit(mixed)(x, t, None), expected, rtol=1e-6)
    for step, one in ((3, general), (4, special), (8, special), (9, general)):
        level = jnp.full(4, step)
        np.testing.assert_allclose(mixed(x, level), one(x, level, None), rtol=1e-6)


@pytest.mark.slow
def test_samples_with_a_specialist():
    def general(x, t, cond):
        return 0.3 * x

    def special(x, t, cond):
        return -0.2 * x + 0.1

    x, timesteps = jax.random.normal(KEY, (4, 3)), sampling_timesteps(12, 6)
    found = sample_with_specialist(general, special, (4, 9), x, timesteps, ABAR, clip=4.0)

    def by_value(x, t, cond):
        inside = ((t >= 4) & (t < 9))[:, None]
        return jnp.where(inside, special(x, t, cond), general(x, t, cond))

    np.testing.assert_allclose(found, ddim_sample(by_value, x, timesteps, ABAR, clip=4.0), rtol=1e-5)
    everywhere = sample_with_specialist(general, special, (0, 12), x, timesteps, ABAR)
    np.testing.assert_allclose(everywhere, ddim_sample(special, x, timesteps, ABAR), rtol=1e-5)
    assert not np.allclose(everywhere, ddim_sample(general, x, timesteps, ABAR), rtol=1e-2)


def test_only_the_network_that_is_asked_runs():
    ran = []

    def noted(name):
        return lambda x, t, cond: jax.debug.callback(lambda: ran.append(name)) or x

    jax.block_until_ready(
        with_specialist(noted("general"), noted("special"), (4, 9))(jnp.ones(2), jnp.array([5, 6]))
    )
    jax.effects_barrier()
    assert ran == ["special"]


# Bad input.


def test_bad_input():
    params, batch = sample_params(), sample_batch()
    make = functools.partial(make_ant_loss, network, BOUNDARIES, ABAR)
    both = {"network": params, "log_scale": jnp.zeros(2)}
    per_example = jnp.ones(10)
    cases = [
        ("method: expected 'tasks', 'linear' or 'uw', got 'nash'", lambda: make(method="nash")),
        (
            "pullback: expected 'stacked', 'sequential' or 'whole', got 'mapped'",
            lambda: make(pullback="mapped"),
        ),
        ("proportional: expected False for 'tasks'", lambda: make(proportional=True)),
        (
            "boundaries: expected to end at 12 timesteps at most, got 13",
            lambda: make_ant_loss(network, [0, 13], ABAR),
        ),
        (
            r"boundaries: expected strictly rising integers from 0 on, got \[0, 5, 5\]",
            lambda: make_ant_loss(network, [0, 5, 5], ABAR),
        ),
        (
            r"boundaries: expected strictly rising .* got \[-1, 5\]",
            lambda: stratified_timesteps(KEY, [-1, 5], 4),
        ),
        (r"boundaries: expected integers \[k \+ 1\]", lambda: stratified_timesteps(KEY, [0.0, 5.0], 4)),
        (r"boundaries: .* got int64 of shape \(1,\)", lambda: stratified_timesteps(KEY, [5], 4)),
        (
            r"weight: expected one for each of 12 timesteps, got shape \(3,\)",
            lambda: make(weight=np.ones(3)),
        ),
        (
            "batch: expected a multiple of the 3 intervals, got 10",
            lambda: make()(params, sample_batch(10), KEY),
        ),
        (
            "batch: expected a multiple of the 2 intervals, got 5",
            lambda: stratified_timesteps(KEY, [0, 2, 4], 5),
        ),
        (
            "batch: expected a multiple of the 2 intervals, got 0",
            lambda: stratified_timesteps(KEY, [0, 2, 4], 0),
        ),
        (
            "batch: expected at least one example for each of 3 intervals, got 2",
            lambda: interval_counts(BOUNDARIES, 2, proportional=True),
        ),
        (
            r"batch: expected 'cond' with cond_dropout=0.1, got \['x0'\]",
            lambda: make(null_cond=3, cond_dropout=0.1)(params, batch, KEY),
        ),
        (r"batch: expected 'x0', .* got \['images'\]", lambda: make()(params, {"images": batch["x0"]}, KEY)),
        (
            r"batch\['t'\]: expected shape \(12,\), one for each example, got \(3,\)",
            lambda: make()(params, {**batch, "t": jnp.zeros(3, int)}, KEY),
        ),
        (
            r"params: expected \{'network': ..., 'log_scale': \[k\]\} for 'uw', got \['V', 'W', 'b'\]",
            lambda: make(method="uw")(params, batch, KEY),
        ),
        (
            r"params\['log_scale'\]: expected shape \(3,\), got \(2,\)",
            lambda: make(method="uw")(both, batch, KEY),
        ),
        (r"per_example: expected a multiple of k=3 losses, got 10", lambda: cluster_losses(per_example, 3)),
        (r"per_example: expected a multiple of k=0 losses", lambda: cluster_losses(per_example, 0)),
        (
            r"per_example: expected one loss for each example, got shape \(2, 5\)",
            lambda: cluster_losses(per_example.reshape(2, 5), 5),
        ),
        (
            r"log_scale: expected shape \(10,\), as losses, got \(3,\)",
            lambda: uncertainty_weighted_loss(per_example, jnp.zeros(3)),
        ),
        (
            r"shares: expected shape \(10,\), as losses, got \(3,\)",
            lambda: uncertainty_weighted_loss(per_example, jnp.zeros(10), shares=[1, 2, 3]),
        ),
        (
            r"losses: expected \[k\] with k >= 1, got shape \(\)",
            lambda: uncertainty_weighted_loss(jnp.ones(()), jnp.zeros(())),
        ),
        (
            r"interval: expected \(begin, end\) .* got \(5, 5\)",
            lambda: with_specialist(network, network, (5, 5)),
        ),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="log_scale: expected a floating dtype, got int32"):
        uncertainty_weighted_loss(per_example, jnp.zeros(10, jnp.int32))
