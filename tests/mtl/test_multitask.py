"""Methods as links of an optimiser: every name under jit, its options, its state, heads and scale by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

from jaxneg.mtl import (
    FamoState,
    cagrad,
    config,
    dwa_weights,
    fairgrad,
    famo_init,
    famo_loss,
    famo_observe,
    famo_update,
    graddrop_draws,
    graddrop_masked,
    gradnorm_loss,
    gradnorm_weights,
    gradvac,
    gram,
    imtl_g,
    mgda,
    multitask,
    nash,
    nash_mtl,
    pcgrad,
    rlw_weights,
    upgrad,
)

TASKS = 3
METHODS = {
    "equal": {},
    "rlw": {},
    "dwa": {"n_tasks": TASKS, "window": 2},
    "uw": {"n_tasks": TASKS},
    "mgda": {},
    "pcgrad": {},
    "cagrad": {"c": 0.4},
    "imtl_g": {},
    "nash": {},
    "fairgrad": {"alpha": 2.0},
    "aligned_mtl": {"scale_mode": "median"},
    "famo": {"n_tasks": TASKS},
    "upgrad": {"pref": jnp.array([0.2, 0.3, 0.5])},
    "dualproj": {},
    "si": {},
    "gls": {},
    "config": {},
    "gradvac": {"n_tasks": TASKS},
    "gradnorm": {"n_tasks": TASKS},
    "imtl": {"n_tasks": TASKS},
    "imtl_l": {"n_tasks": TASKS},
    "stch": {"mu": 0.5},
    "graddrop": {"leak": 0.1},
    "dbmtl": {"n_tasks": TASKS},
    "moco": {"n_tasks": TASKS},
    "excess_mtl": {"n_tasks": TASKS},
    "sdmgrad": {"n_tasks": TASKS},
    "modo": {"n_tasks": TASKS},
    "pcd": {"n_tasks": TASKS},
}
RNG = np.random.default_rng(0)
PARAMS = {"trunk": {"kernel": jnp.zeros((4, 5))}, "head": {"bias": jnp.zeros(3)}}
JACS = [
    jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=(TASKS, *p.shape)), jnp.float32), PARAMS)
    for _ in range(6)
]
LOSSES = [jnp.asarray(RNG.uniform(0.5, 2, size=TASKS), jnp.float32) for _ in range(6)]
KEY = jax.random.key(3)


def rows(tree):
    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], 1)


def row(tree):
    return rows(jax.tree.map(lambda leaf: leaf[None], tree))[0]


def in_trunk(path):
    return path.startswith("trunk/")


def one_step(tx, n=0, **given):
    given = {"losses": LOSSES[n], "key": KEY} | given
    direction, state = tx.update(JACS[n], tx.init(PARAMS), PARAMS, **given)
    return direction, state


@pytest.mark.parametrize("method", METHODS)
def test_every_method_drives_adam_under_jit(method):
    link = multitask(method, **METHODS[method])
    assert isinstance(link, aggregating.Aggregator)
    assert isinstance(link, optax.GradientTransformationExtraArgs)
    tx = optax.chain(link, optax.adam(1e-2))
    traces = []

    def step(jac, state, params, losses, key):
        traces.append(1)
        updates, state = tx.update(jac, state, params, losses=losses, key=key, pair=(JACS[0], JACS[1]))
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step)
    params, state, structure = PARAMS, tx.init(PARAMS), jax.tree.structure(tx.init(PARAMS))
    for jac, losses in zip(JACS, LOSSES, strict=True):
        params, state = jitted(jac, state, params, losses, KEY)
    # The state keeps its structure, shapes and types from the first step on.
    assert len(traces) == 1
    assert jax.tree.structure(state) == structure
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, PARAMS)
    assert np.all(np.isfinite(row(params)))
    assert np.abs(row(params)).max() > 0
    leaves, tree = jax.tree.flatten(state)
    assert jax.tree.structure(jax.tree.unflatten(tree, leaves)) == structure
    assert int(state[0].count) == len(JACS)


GRAM = {
    "mgda": mgda,
    "cagrad": partial(cagrad, c=0.4),
    "imtl_g": imtl_g,
    "nash": partial(nash, max_norm=1.0),
    "fairgrad": partial(fairgrad, alpha=2.0),
    "upgrad": partial(upgrad, pref=METHODS["upgrad"]["pref"]),
    "pcgrad": partial(pcgrad, key=KEY),
    "config": config,
    "imtl": imtl_g,  # before its scales have learned
    "gradvac": lambda G: gradvac(G, jnp.zeros_like(G), key=KEY)[0],
}


@pytest.mark.parametrize("method", GRAM)
def test_direction_is_the_weighted_sum(method):
    direction, _ = one_step(multitask(method, **METHODS[method]))
    weights = np.asarray(GRAM[method](gram(JACS[0])))
    np.testing.assert_allclose(row(direction), weights @ rows(JACS[0]), rtol=1e-4, atol=1e-5)


LOSS_WEIGHTS = {
    "equal": lambda losses: np.ones(TASKS),
    "rlw": lambda losses: rlw_weights(KEY, TASKS),
    "si": lambda losses: 1 / losses,
    "gls": lambda losses: np.prod(losses) ** (1 / TASKS) / (TASKS * losses),
    "uw": lambda losses: np.full(TASKS, 0.5),
    "famo": lambda losses: (1 / losses) / np.sum(1 / losses),
    "dwa": lambda losses: np.ones(TASKS),
    "imtl_l": lambda losses: np.ones(TASKS),
    "gradnorm": lambda losses: np.ones(TASKS),
    "stch": lambda losses: np.asarray(jax.nn.softmax(losses / (TASKS * 0.5))) / TASKS,
}


@pytest.mark.parametrize("method", LOSS_WEIGHTS)
def test_first_direction_of_the_methods_of_the_losses(method):
    direction, _ = one_step(multitask(method, **METHODS[method]))
    weights = np.asarray(LOSS_WEIGHTS[method](np.asarray(LOSSES[0])))
    np.testing.assert_allclose(row(direction), weights @ rows(JACS[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["mgda", "gls", "nash"])
@pytest.mark.parametrize("head_weighting", [None, "unit", "task"])
def test_heads_by_hand(method, head_weighting):
    link = multitask(method, shared=in_trunk, head_weighting=head_weighting)
    direction, _ = one_step(link)
    trunk, head = rows(JACS[0]["trunk"]), rows(JACS[0]["head"])
    G = jnp.asarray(trunk @ trunk.T)
    losses = np.asarray(LOSSES[0])
    weights = {"mgda": lambda: mgda(G), "gls": lambda: LOSS_WEIGHTS["gls"](losses), "nash": lambda: nash(G)}
    weights = np.asarray(weights[method]())
    # Nash-MTL's clip is for the shared gradient; at the solution its length is sqrt(T).
    trunk_weights = weights / np.sqrt(TASKS) if method == "nash" else weights
    unit = (head_weighting or ("task" if method == "gls" else "unit")) == "unit"
    head_weights = np.ones(TASKS) if unit else weights
    np.testing.assert_allclose(row(direction["trunk"]), trunk_weights @ trunk, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(row(direction["head"]), head_weights @ head, rtol=1e-4, atol=1e-5)


def test_shared_as_booleans_is_shared_as_a_predicate():
    booleans = {"trunk": True, "head": {"bias": False}}
    a, _ = one_step(multitask("mgda", shared=booleans))
    b, _ = one_step(multitask("mgda", shared=in_trunk))
    np.testing.assert_array_equal(row(a), row(b))


@pytest.mark.parametrize(("scale", "total"), [("sum", TASKS), ("mean", 1.0)])
@pytest.mark.parametrize("method", ["cagrad", "pcgrad", "si"])
def test_scale(method, scale, total):
    native, _ = one_step(multitask(method, **METHODS[method]))
    scaled, state = one_step(multitask(method, scale=scale, n_tasks=TASKS, **METHODS[method]))
    weights = np.asarray(state.weights)
    np.testing.assert_allclose(row(scaled), row(native) * total / weights.sum(), rtol=1e-5)


def test_scale_comes_before_nashs_clip():
    direction, _ = one_step(multitask("nash", scale="sum", max_norm=0.1))
    assert np.linalg.norm(row(direction)) == pytest.approx(0.1, rel=1e-4)


def test_nash_clip():
    # At the solution the direction has length sqrt(T): a bound of 1 binds, one of 2 does not.
    for max_norm, length in ((1.0, 1.0), (0.5, 0.5), (2.0, np.sqrt(TASKS)), (None, np.sqrt(TASKS))):
        direction, _ = one_step(multitask("nash", max_norm=max_norm))
        assert np.linalg.norm(row(direction)) == pytest.approx(length, rel=1e-4)
    default, _ = one_step(multitask("nash"))
    assert np.linalg.norm(row(default)) == pytest.approx(1.0, rel=1e-4)


def test_update_every_reuses_the_weights():
    link = multitask("mgda", n_tasks=TASKS, update_every=2)
    update = jax.jit(link.update)
    state = link.init(PARAMS)
    for n, jac in enumerate(JACS):
        direction, state = update(jac, state, PARAMS)
        weights = np.asarray(mgda(gram(JACS[n - n % 2])))
        np.testing.assert_allclose(state.weights, weights, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row(direction), weights @ rows(jac), rtol=1e-4, atol=1e-5)


def test_update_every_renews_nashs_clip():
    link = multitask("nash", n_tasks=TASKS, update_every=3)
    state = link.init(PARAMS)
    for n in range(3):
        # Gradients grow a thousandfold under weights that stay.
        jac = jax.tree.map(lambda leaf, n=n: leaf * 1000.0**n, JACS[0])
        direction, state = link.update(jac, state, PARAMS)
        assert np.linalg.norm(row(direction)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("n_tasks", [None, TASKS])
def test_nash_mtl_weighs_by_a_share_of_the_tasks_and_clips_stale_weights(n_tasks):
    link = nash_mtl(n_tasks=n_tasks)
    update, state = jax.jit(link.update), link.init(PARAMS)
    for n, length in enumerate((TASKS**-0.5, TASKS**-0.5 if n_tasks is None else 1.0)):
        jac = jax.tree.map(lambda leaf, n=n: leaf * 1000.0**n, JACS[0])
        direction, state = update(jac, state, PARAMS)
        assert np.linalg.norm(row(direction)) == pytest.approx(length, rel=1e-4)
        expected = np.asarray(nash(gram(JACS[0]))) @ rows(JACS[0])
        np.testing.assert_allclose(
            row(direction), expected * length / np.linalg.norm(expected), rtol=2e-3, atol=1e-5
        )


@pytest.mark.parametrize("method", ["mgda", "dwa"])
def test_smoothing_averages_the_weights(method):
    plain = multitask(method, n_tasks=TASKS, **{"window": 1} if method == "dwa" else {})
    smooth = multitask(method, n_tasks=TASKS, smoothing=0.9, **{"window": 1} if method == "dwa" else {})
    state, plain_state, expected = smooth.init(PARAMS), plain.init(PARAMS), None
    for J, losses in zip(JACS, LOSSES, strict=True):
        _, plain_state = plain.update(J, plain_state, PARAMS, losses=losses)
        direction, state = smooth.update(J, state, PARAMS, losses=losses)
        w = np.asarray(plain_state.weights)
        expected = w if expected is None else 0.9 * expected + 0.1 * w
        np.testing.assert_allclose(state.weights, expected, rtol=1e-5)
        np.testing.assert_allclose(row(direction), expected @ rows(J), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["rlw", "pcgrad"])
def test_random_methods_follow_the_key(method):
    link = multitask(method)
    # Opposed tasks, so that PCGrad's order matters.
    opposed = jax.tree.map(lambda leaf: leaf.at[1].add(-leaf[0]).at[2].add(-leaf[0]), JACS[0])

    def direction(seed):
        return row(link.update(opposed, link.init(PARAMS), PARAMS, key=jax.random.key(seed))[0])

    np.testing.assert_array_equal(direction(0), direction(0))
    assert any(np.abs(direction(seed) - direction(0)).max() > 1e-3 for seed in range(1, 20))


def test_pcgrad_with_given_orders_needs_no_key():
    orders = jnp.tile(jnp.arange(TASKS), (TASKS, 1))
    direction, _ = one_step(multitask("pcgrad", orders=orders), key=None)
    weights = np.asarray(pcgrad(gram(JACS[0]), orders))
    np.testing.assert_allclose(row(direction), weights @ rows(JACS[0]), rtol=1e-4, atol=1e-5)


def test_mgda_with_a_loss_normaliser_reads_the_losses():
    direction, _ = one_step(multitask("mgda", normalizer="loss+"))
    weights = np.asarray(mgda(gram(JACS[0]), normalizer="loss+", losses=LOSSES[0]))
    np.testing.assert_allclose(row(direction), weights @ rows(JACS[0]), rtol=1e-4, atol=1e-5)


def test_a_function_of_the_gram_matrix():
    direction, _ = one_step(multitask(lambda G: jnp.diagonal(G) * 0 + 2.0))
    np.testing.assert_allclose(row(direction), 2 * rows(JACS[0]).sum(0), rtol=1e-4, atol=1e-5)


def test_other_extra_arguments_pass_by():
    direction, _ = one_step(multitask("mgda"), value=jnp.ones(()), grad_fn=None)
    assert np.all(np.isfinite(row(direction)))


def test_low_precision_jacobian():
    link = multitask("nash")
    jac = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), JACS[0])
    direction, _ = link.update(jac, link.init(PARAMS), PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(direction)} == {jnp.dtype(jnp.bfloat16)}
    reference, _ = link.update(JACS[0], link.init(PARAMS), PARAMS)
    np.testing.assert_allclose(row(direction).astype(np.float32), row(reference), atol=0.02)


@pytest.mark.parametrize("after", ["next", "same"])
def test_famo(after):
    options = {"learning_rate": 0.05, "gamma": 1e-2, "min_losses": 0.1}
    tx = optax.chain(multitask("famo", n_tasks=TASKS, after=after, **options), optax.sgd(1.0))
    state = tx.init(PARAMS)
    xi, opt_state = famo_init(TASKS)
    observe = jax.jit(famo_observe)
    for n in range(len(JACS) - 1):
        updates, state = tx.update(JACS[n], state, PARAMS, losses=LOSSES[n])
        weights = np.asarray(jax.grad(famo_loss)(LOSSES[n], xi, 0.1))
        np.testing.assert_allclose(row(updates), -(weights @ rows(JACS[n])), rtol=1e-4, atol=1e-5)
        # "next" takes the next call's losses as those after the step; "same" is told.
        xi, opt_state = famo_update(xi, opt_state, LOSSES[n], LOSSES[n + 1], **options)
        if after == "same":
            state = observe(state, LOSSES[n + 1])
            np.testing.assert_allclose(state[0].method.xi, xi, rtol=1e-5, atol=1e-6)
    assert isinstance(state[0].method, FamoState)


def test_famo_is_told_once_a_step():
    link = multitask("famo", n_tasks=TASKS, after="same")
    _, state = link.update(JACS[0], link.init(PARAMS), PARAMS, losses=LOSSES[0])
    once = famo_observe(state, LOSSES[1])
    twice = famo_observe(once, LOSSES[2])
    np.testing.assert_array_equal(once.method.xi, twice.method.xi)
    assert np.abs(once.method.xi).max() > 0


def test_dwa_windows():
    link = multitask("dwa", n_tasks=TASKS, window=2, tau=1.5)
    state = link.init(PARAMS)
    for n, jac in enumerate(JACS):
        direction, state = link.update(jac, state, PARAMS, losses=LOSSES[n])
        weights = np.ones(TASKS)
        if n >= 3:
            before, latest = (np.mean(LOSSES[slice(n + 1 - k, n + 3 - k)], axis=0) for k in (4, 2))
            weights = np.asarray(dwa_weights(jnp.stack([before, latest], axis=1), 1.5))
        np.testing.assert_allclose(row(direction), weights @ rows(jac), rtol=1e-4, atol=1e-5)


def test_dwa_epochs():
    link = multitask("dwa", n_tasks=TASKS, steps_per_epoch=2)
    state = link.init(PARAMS)
    averages = np.stack([np.mean(LOSSES[n : n + 2], axis=0) for n in (0, 2, 4)], axis=1)
    for n, jac in enumerate(JACS):
        direction, state = link.update(jac, state, PARAMS, losses=LOSSES[n])
        weights = np.asarray(dwa_weights(jnp.asarray(averages[:, : n // 2])))
        np.testing.assert_allclose(row(direction), weights @ rows(jac), rtol=1e-4, atol=1e-5)


@pytest.mark.golden("mtl_reweighting", "stateful.npz")
@pytest.mark.parametrize("name", ["dbmtl", "moco", "excess_libmtl", "excess_torchjd", "sdm_libmtl", "modo"])
def test_links_of_methods_with_a_memory(golden, x64, name):
    tasks, parameters = golden["J"].shape[2:]
    method, options, batch = {
        "dbmtl": ("dbmtl", {"beta": float(golden["hp_db_beta"]), "sigma": float(golden["hp_db_sigma"])}, 0),
        "moco": ("moco", {"gamma": float(golden["hp_moco_gamma"]), "rho": float(golden["hp_moco_rho"])}, 0),
        "excess_libmtl": ("excess_mtl", {"step_size": float(golden["hp_excess"])}, 0),
        "excess_torchjd": (
            "excess_mtl",
            {"step_size": float(golden["hp_excess"]), "variant": "torchjd"},
            0,
        ),
        "sdm_libmtl": ("sdmgrad", {"lam": float(golden["hp_sdm_lam"])}, 0),
        "modo": ("modo", {"gamma": float(golden["hp_modo_gamma"])}, 2),
    }[name]
    pairs = (0, 1) if method == "modo" else (1, 2)
    link = multitask(method, n_tasks=tasks, **options)
    # Two leaves, so that sums over leaves are tried too.
    cut = parameters // 2
    parts = lambda J: {"a": jnp.asarray(J[..., :cut]), "b": jnp.asarray(J[..., cut:])}  # noqa: E731
    state = link.init({"a": jnp.zeros(cut), "b": jnp.zeros(parameters - cut)})
    for t, (J, losses) in enumerate(zip(golden["J"], golden["losses"], strict=True)):
        direction, state = link.update(
            parts(J[batch]), state, losses=jnp.asarray(losses), pair=tuple(parts(J[i]) for i in pairs)
        )
        expected = golden.get(f"{name}_dir_{t}")
        if expected is None:
            expected = golden[f"{name}_weights_{t}"] @ J[batch]
        np.testing.assert_allclose(row(direction), expected, rtol=1e-9, atol=1e-9)


def test_graddrop_is_drawn_once_a_step():
    link = multitask("graddrop")
    direction, _ = link.update(JACS[0], link.init(PARAMS), key=KEY)
    expected = jax.tree.map(lambda leaf: leaf.sum(0), graddrop_masked(JACS[0], graddrop_draws(KEY, JACS[0])))
    np.testing.assert_allclose(row(direction), row(expected), rtol=1e-6)


def test_heads_of_dbmtl_descend_the_log_losses():
    link = multitask("dbmtl", n_tasks=TASKS, shared=in_trunk)
    direction, _ = link.update(JACS[0], link.init(PARAMS), losses=LOSSES[0])
    np.testing.assert_allclose(
        row(direction["head"]), np.asarray(1 / LOSSES[0]) @ rows(JACS[0]["head"]), rtol=1e-5
    )


def test_gradvac_remembers():
    link = multitask("gradvac", n_tasks=TASKS, beta=0.25)
    state, rho = link.init(PARAMS), jnp.zeros((TASKS, TASKS))
    for n in range(3):
        key = jax.random.key(n)
        weights, rho = gradvac(gram(JACS[n]), rho, key=key, beta=0.25)
        direction, state = link.update(JACS[n], state, key=key)
        np.testing.assert_allclose(row(direction), np.asarray(weights) @ rows(JACS[n]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.method, rho, rtol=1e-5)


@pytest.mark.slow
def test_gradnorm_learns_after_its_first_epoch():
    link = multitask("gradnorm", n_tasks=TASKS, steps_per_epoch=2, alpha=0.5, optimizer=optax.sgd(0.1))
    state = link.init(PARAMS)
    s, L0 = jnp.ones(TASKS), (LOSSES[0] + LOSSES[1]) / 2
    for n in range(5):
        direction, state = link.update(JACS[n], state, losses=LOSSES[n])
        weights = gradnorm_weights(s) if n >= 2 else jnp.ones(TASKS)
        np.testing.assert_allclose(row(direction), np.asarray(weights) @ rows(JACS[n]), rtol=1e-4, atol=1e-5)
        if n >= 2:
            norms = jnp.linalg.norm(rows(JACS[n]), axis=1)
            s = s - 0.1 * jax.grad(gradnorm_loss)(s, norms, LOSSES[n], L0, 0.5)
    np.testing.assert_allclose(state.method.learned.s, s, rtol=1e-4)
    assert np.ptp(s) > 0


def test_gradnorm_weighs_heads_as_the_losses():
    link = multitask("gradnorm", n_tasks=TASKS, shared=in_trunk, optimizer=optax.sgd(0.1))
    state = link.init(PARAMS)
    for n in range(3):
        s = state.method.learned.s
        direction, state = link.update(JACS[n], state, losses=LOSSES[n])
    expected = np.asarray(gradnorm_weights(s)) @ rows(JACS[2]["head"])
    np.testing.assert_allclose(row(direction["head"]), expected, rtol=1e-5)


def test_heads_of_imtl_take_the_scaled_losses():
    link = multitask("imtl", n_tasks=TASKS, shared=in_trunk, init=0.5)
    direction, _ = link.update(JACS[0], link.init(PARAMS), losses=LOSSES[0])
    np.testing.assert_allclose(row(direction["head"]), np.exp(0.5) * rows(JACS[0]["head"]).sum(0), rtol=1e-5)
    # A common factor of all losses goes through.
    weights = np.exp(0.5) * np.asarray(imtl_g(gram(JACS[0]["trunk"])))
    np.testing.assert_allclose(
        row(direction["trunk"]), weights @ rows(JACS[0]["trunk"]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_stch_by_epochs():
    """Four epochs and one that measures the nadir descend the logarithms; then the smooth maximum counts."""
    link = multitask("stch", n_tasks=TASKS, mu=0.5, steps_per_epoch=2, warmup_epochs=1)
    state = link.init(PARAMS)
    nadir = (LOSSES[2] + LOSSES[3]) / 2
    for n in range(6):
        direction, state = link.update(JACS[n], state, losses=LOSSES[n])
        weights = 1 / LOSSES[n]
        if n >= 4:
            weights = TASKS * jax.nn.softmax(jnp.log(LOSSES[n] / nadir) / 0.5) / LOSSES[n]
        np.testing.assert_allclose(row(direction), np.asarray(weights) @ rows(JACS[n]), rtol=1e-4, atol=1e-5)


def test_uncertainty_weights_learn():
    link = multitask("uw", n_tasks=TASKS, init=-0.5, optimizer=optax.sgd(0.1))
    state = link.init(PARAMS)
    s = np.full(TASKS, -0.5)
    for n, jac in enumerate(JACS):
        direction, state = link.update(jac, state, PARAMS, losses=LOSSES[n])
        np.testing.assert_allclose(row(direction), 0.5 * np.exp(-s) @ rows(jac), rtol=1e-4, atol=1e-5)
        s = s - 0.1 * 0.5 * (1 - np.exp(-s) * np.asarray(LOSSES[n]))
        np.testing.assert_allclose(state.method.s, s, rtol=1e-5)
