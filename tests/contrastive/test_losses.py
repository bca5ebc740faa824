"""The losses by brute force, in the limits, and the same under jit, vmap and in bfloat16."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg import contrastive as c
from jaxneg.contrastive.adaptive_negatives import _kth_largest

B, C, D, Q = 4, 2, 6, 5


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def network(dim=D, hidden=5, seed=3):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (dim, hidden), "b1": (hidden,), "w2": (hidden, dim), "b2": (dim,)}
    return {name: rng.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def brute_tau(phi, a, b, low, high):
    fa, fb = (np.maximum(x @ phi["w1"] + phi["b1"], 0) @ phi["w2"] + phi["b2"] for x in (a, b))
    return low + (high - low) / (1 + np.exp(fa @ fb))


def om(tau):
    return D / 2 * np.log(tau) + 1 / tau


def brute_amcl(views, phi, rule, beta, low, high, k):
    """The definition, pair by pair: views [2B, C, d], partner i <-> i + B."""
    n, half = len(views), len(views) // 2
    losses = np.zeros(n)
    for i in range(n):
        for head in range(views.shape[1]):
            z = unit(views[:, head])
            j = (i + half) % n
            sp, tp = z[i] @ z[j], brute_tau(phi, z[i], z[j], low, high)
            others = [
                (z[i] @ z[m], brute_tau(phi, z[i], z[m], low, high)) for m in range(n) if m not in (i, j)
            ]
            others.sort(key=lambda pair: -pair[0])
            hardest = others[0]
            if rule == "topk":
                chosen = others[:k]
                push = np.mean([s / t for s, t in chosen])
                against = sum(np.log(t) + 1 / t for _, t in chosen)
            elif rule == "max":
                push, against = hardest[0] / hardest[1], om(hardest[1])
            elif rule == "infonce_max":
                s, t = max([hardest, (sp, tp)])
                push, against = s / t, om(t)
            else:
                terms = [s / t for s, t in others] + ([sp / tp] if rule == "infonce" else [])
                push, against = np.log(np.sum(np.exp(terms))), om(hardest[1])
            losses[i] += -sp / tp + push + beta * (om(tp) - against)
    return losses


@pytest.mark.parametrize("rule", ["topk", "max", "lse", "infonce", "infonce_max"])
def test_amcl_by_brute_force(rule):
    z1, z2, phi = draw(B, C, D), draw(B, C, D, seed=1), network()
    expected = brute_amcl(np.concatenate([z1, z2]), phi, rule, 0.02, 0.1, 1.5, 3)
    given = {"beta": 0.02, "tau_min": 0.1, "tau_max": 1.5, "topk": 3, "negatives": rule}
    loss, aux = c.amcl_nt_xent_loss(*(jnp.asarray(z, jnp.float32) for z in (z1, z2)), phi, **given)
    np.testing.assert_allclose(loss.reshape(-1), expected, rtol=2e-5, atol=2e-5)
    assert 0.1 <= aux["tau_neg_min"] <= aux["tau_neg_mean"] <= aux["tau_neg_max"] <= 1.5
    np.testing.assert_allclose(aux["sim_pos"], np.mean(np.sum(unit(z1) * unit(z2), -1)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_kth_largest_is_exact(dtype):
    x = draw(6, 40) * 10.0 ** np.array([-30, -8, 0, 3, 4, 4])[:, None]
    x[2, :20], x[3, ::2] = -np.inf, 0.5  # masked out, and ties
    x[4] = -np.abs(x[4])
    x = jnp.asarray(x, dtype)
    ranked = -jnp.sort(-x, axis=1)
    for k in (1, 2, 20, 21, 40):
        np.testing.assert_array_equal(jax.jit(_kth_largest, static_argnums=1)(x, k)[:, 0], ranked[:, k - 1])


def test_blocks_change_nothing():
    z1, z2, phi = draw(B, C, D), draw(B, C, D, seed=1), network()
    z1, z2 = (jnp.asarray(z, jnp.float32) for z in (z1, z2))
    queue = jnp.asarray(unit(draw(C, Q, D)).swapaxes(1, 2), jnp.float32)
    for block, loss in (
        (2, lambda b: c.amcl_nt_xent_loss(z1, z2, phi, tau_min=0.1, block_size=b)),
        (2, lambda b: c.amcl_moco_loss(z1, z2, queue, phi, tau_min=0.1, block_size=b)),
        (2, lambda b: (c.nt_xent_loss(z1[:, 0], z2[:, 0], block_size=b), {})),
    ):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), loss(block), loss(None))


def test_constant_temperature_is_nt_xent():
    """One head, a network that gives every pair the same score, beta 0: NT-Xent, and its decoupled form."""
    z1, z2 = (jnp.asarray(draw(B, 1, D, seed=s), jnp.float32) for s in (0, 1))
    phi = {name: jnp.zeros_like(value) for name, value in network().items()}
    given = {"beta": 0.0, "tau_min": 0.2, "tau_max": 0.8}  # score 0: the middle, 0.5
    for negatives, decoupled in (("infonce", False), ("lse", True)):
        ours, _ = c.amcl_nt_xent_loss(z1, z2, phi, negatives=negatives, **given)
        theirs = c.nt_xent_loss(z1[:, 0], z2[:, 0], 0.5, decoupled=decoupled)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_twice_the_head_twice_the_loss():
    z1, z2 = (jnp.asarray(draw(B, 1, D, seed=s), jnp.float32) for s in (0, 1))
    one, two = (
        c.amcl_nt_xent_loss(jnp.tile(z1, (1, n, 1)), jnp.tile(z2, (1, n, 1)), network())[0] for n in (1, 2)
    )
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)


def test_temperatures_move_where_the_loss_asks():
    """A like positive wants a lower temperature, an unlike one a higher: the signs of a hand-made pair."""
    tau = jnp.array(0.5)
    for sim, sign in ((0.9, 1), (-0.9, -1)):  # beta 0: d(-s / tau) / d tau = s / tau^2
        slope = jax.grad(lambda t, s=sim: -s / t)(tau)
        assert np.sign(slope) == sign
    # The same through the network: one step against the gradient of phi.
    phi = network()
    p, z = jnp.ones((1, 1, D)), jnp.ones((1, 1, D))
    for target, lower in ((z, True), (-z, False)):

        def own(phi, target=target):
            return c.amcl_simsiam_loss(p, target, p, target, phi, beta=0.0, tau_min=0.05)

        gradient = jax.grad(lambda phi, own=own: own(phi)[0].sum())(phi)
        after = jax.tree.map(lambda w, g: w - 1e-3 * g, phi, gradient)
        moved = own(after)[1]["tau_pos_mean"] - own(phi)[1]["tau_pos_mean"]
        assert (moved < 0) == lower
        assert moved != 0


def test_saturated_scores():
    for score, expected in ((1e4, 1e-5), (-1e4, 2.0)):
        tau, slope = jax.value_and_grad(c.score_to_temperature)(jnp.array(score))
        assert tau == np.float32(expected)
        assert slope == 0
    assert jax.grad(c.score_to_temperature)(jnp.array(0.0)) == pytest.approx(-(2 - 1e-5) / 4)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 2.0))
def test_nt_xent_by_brute_force(seed, temperature):
    z1, z2 = draw(B, D, seed=seed), draw(B, D, seed=seed + 1)
    z = unit(np.concatenate([z1, z2]))
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    partner = logits[np.arange(2 * B), (np.arange(2 * B) + B) % (2 * B)]
    expected = np.log(np.exp(logits).sum(1)) - partner
    found = c.nt_xent_loss(jnp.asarray(z1, jnp.float32), jnp.asarray(z2, jnp.float32), temperature)
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-4, atol=1e-5)
    order = np.random.default_rng(seed).permutation(B)  # images in another order
    again = c.nt_xent_loss(*(jnp.asarray(x[order], jnp.float32) for x in (z1, z2)), temperature)
    np.testing.assert_allclose(again, found[:, order], rtol=1e-4, atol=1e-5)


def test_macl_by_brute_force():
    z1, z2 = draw(B, D), draw(B, D, seed=1)
    alignment = np.mean(np.sum(unit(z1) * unit(z2), -1))
    z = unit(np.concatenate([z1, z2]))
    logits = z @ z.T / (0.1 * (1 + 0.5 * alignment))
    np.fill_diagonal(logits, -np.inf)
    partner = logits[np.arange(2 * B), (np.arange(2 * B) + B) % (2 * B)]
    log_p = partner - np.log(np.exp(logits).sum(1))
    found = c.macl_loss(jnp.asarray(z1, jnp.float32), jnp.asarray(z2, jnp.float32))
    np.testing.assert_allclose(found.reshape(-1), -log_p / (1 - np.exp(log_p)), rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 6), (6, 12), (5, 40)])
@pytest.mark.parametrize("alike", [0.0, 0.9, 1.0])
def test_products_of_features_by_brute_force(shape, alike):
    """Where features outnumber images no product of features is formed; the losses are the same."""
    first, noise = draw(*shape), draw(*shape, seed=1)
    views = [jnp.asarray(z, jnp.float32) for z in (first, alike * first + (1 - alike) * noise)]

    def barlow_twins(z1, z2):
        a1, a2 = ((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
        C = a1.T @ a2 / len(z1)
        return jnp.sum((1 - jnp.diagonal(C)) ** 2) + 5e-3 * jnp.sum((C - jnp.diag(jnp.diagonal(C))) ** 2)

    def vicreg(z1, z2):
        covariances = [jnp.cov(z.T) for z in (z1, z2)]
        hinge = sum(jnp.mean(jnp.maximum(1 - jnp.sqrt(jnp.diagonal(M) + 1e-4), 0)) for M in covariances)
        spread = sum(jnp.sum((M - jnp.diag(jnp.diagonal(M))) ** 2) for M in covariances)
        return 25 * jnp.mean((z1 - z2) ** 2) + 25 * hinge / 2 + spread / shape[1]

    for ours, defined in (
        (partial(c.barlow_twins_loss, norm="batchnorm"), barlow_twins),
        (c.vicreg_loss, vicreg),
    ):
        found, expected = (jax.value_and_grad(loss, (0, 1))(*views) for loss in (ours, defined))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        for one, other in zip(found[1], expected[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.abs(other).max()))


def test_vectors_of_zeros_have_finite_gradients():
    z = jnp.zeros((2, D)).at[0, 0].set(1.0)
    assert np.isfinite(jax.grad(lambda z: c.nt_xent_loss(z, z).sum())(z)).all()
    assert np.isfinite(jax.grad(lambda z: c.barlow_twins_loss(z, z))(jnp.ones((3, 2)))).all()


@pytest.mark.parametrize("size", [3, 5])
def test_queue_wraps_and_keeps_the_last(size):
    """Written one after the other in numpy; a batch larger than the queue leaves its last keys."""
    queue, ptr = np.zeros((2, size), np.float32), 2
    state = c.KeyQueue(jnp.asarray(queue), jnp.asarray(ptr, jnp.int32))
    for step, count in enumerate((2, 2, size, size + 2)):
        keys = draw(count, 2, seed=step)
        for key in unit(keys)[-size:]:
            queue[:, ptr % size] = key
            ptr += 1
        state = jax.jit(c.queue_enqueue)(*state, jnp.asarray(keys, jnp.float32))
        np.testing.assert_allclose(state.queue, queue, rtol=1e-5)
        assert int(state.ptr) == ptr % size
    np.testing.assert_allclose(np.linalg.norm(state.queue, axis=0), 1, rtol=1e-5)


def test_first_queue_has_unit_keys():
    state = c.init_queue(jax.random.key(0), 6, 3, heads=2, shards=3)
    np.testing.assert_allclose(np.linalg.norm(state.queue, axis=1), np.ones((2, 6)), rtol=1e-5)


def test_momentum_rises_to_one():
    momenta = [float(c.cosine_momentum(step, 10, 0.99)) for step in (0, 5, 10)]
    np.testing.assert_allclose(momenta, [0.99, 0.995, 1.0], rtol=1e-6)


def test_bfloat16_is_computed_in_float32():
    z1, z2 = (jnp.asarray(draw(B, C, D, seed=s), jnp.bfloat16) for s in (0, 1))
    wide = z1.astype(jnp.float32), z2.astype(jnp.float32)
    low, high = (c.amcl_nt_xent_loss(*z, network())[0] for z in ((z1, z2), wide))
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(low, high)
    np.testing.assert_array_equal(
        c.nt_xent_loss(z1[:, 0], z2[:, 0]), c.nt_xent_loss(*(z[:, 0] for z in wide))
    )


def test_jit_and_vmap():
    z1, z2 = (jnp.asarray(draw(3, B, C, D, seed=s), jnp.float32) for s in (0, 1))
    own = lambda a, b: c.amcl_nt_xent_loss(a, b, network(), tau_min=0.1)[0]  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(own))(z1, z2)[2], own(z1[2], z2[2]), rtol=1e-5, atol=1e-5)


def test_probe_and_neighbours_know_separate_classes():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = jnp.asarray(np.eye(3)[y] * 3 + 0.1 * rng.standard_normal((60, 3)), jnp.float32)
    probe = c.linear_probe(jax.random.key(0), x, jnp.asarray(y), classes=3, epochs=20, batch_size=16)
    assert probe.accuracy(x, jnp.asarray(y)) == 1
    found = c.knn_classify(x, x, jnp.asarray(y), k=1000)  # more than there are
    np.testing.assert_array_equal(found.predictions, y)
    again = c.knn_classify(x, x, jnp.asarray(y), k=1000, block_size=7)
    np.testing.assert_allclose(again.scores, found.scores, rtol=1e-5)


def test_separation_by_brute_force():
    rng = np.random.default_rng(0)
    pos, neg = np.round(rng.uniform(-1, 1, 30), 1), np.round(rng.uniform(-1, 0.5, 40), 1)
    auc = np.mean((pos[:, None] > neg) + 0.5 * (pos[:, None] == neg))
    found = c.separation_metrics(jnp.asarray(pos, jnp.float32), jnp.asarray(neg, jnp.float32))
    np.testing.assert_allclose(found.auc, auc, rtol=1e-6)
    assert 0 <= found.overlap <= 1


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["topk", "lse"])
@pytest.mark.parametrize("tau_min", [0.05, 0.1])
def test_two_hundred_steps_stay_finite(negatives, tau_min):
    """Adam with clipped gradients on free vectors, which can follow every temperature down."""
    import optax

    phi = c.init_temperature_net(jax.random.key(0), D)
    params = {"z": jax.random.normal(jax.random.key(1), (2, 16, C, D)), "phi": phi}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def loss(params):
        given = {"tau_min": tau_min, "negatives": negatives, "topk": 10}
        return c.amcl_nt_xent_loss(*params["z"], params["phi"], **given)[0].mean()

    def step(state, _):
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, _), values = jax.jit(lambda s: jax.lax.scan(step, s, None, 200))((params, tx.init(params)))
    assert np.isfinite(values).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    _, aux = c.amcl_nt_xent_loss(*params["z"], params["phi"], tau_min=tau_min, negatives=negatives, topk=10)
    assert aux["tau_pos_min"] >= np.float32(tau_min)
