"""CET: the official arithmetic, the coupled step beside NumPy, its options, sharding, bad input."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

from jaxneg.retrieval import (
    coupled_weights,
    init_cet,
    ips_weight,
    linear_warmup_decay,
    make_cet_step,
    pairwise_ce,
    weighted_pairwise_loss,
)
from jaxneg.train import NonFiniteError, fit, make_mesh, shard_step

TX = optax.sgd(0.1)
MODELS = "RS"


# Golden vectors


def objectives(golden, dtype):
    pos, neg = ({m: jnp.asarray(golden[f"{side}_{m}"], dtype) for m in MODELS} for side in ("pos", "neg"))
    weights = dict(zip(MODELS, coupled_weights(neg["R"], neg["S"], float(golden["tau"])), strict=True))
    return pos, neg, weights


def check_losses(golden, dtype, tolerance):
    pos, neg, weights = objectives(golden, dtype)
    for m in MODELS:
        bounded = golden[f"w_for_{m}"] < (np.inf if dtype == np.float64 else np.exp(80))
        np.testing.assert_allclose(
            np.asarray(weights[m])[bounded], golden[f"w_for_{m}"][bounded], rtol=tolerance
        )
        if not bounded.all():
            continue
        loss, plain = weighted_pairwise_loss(pos[m], neg[m], weights[m])
        np.testing.assert_allclose(loss, golden[f"loss_{m}"], rtol=tolerance)
        np.testing.assert_allclose(plain, golden[f"loss_{m}_plain"], rtol=tolerance)
        gradients = jax.grad(lambda p, n, w=weights[m]: weighted_pairwise_loss(p, n, w)[0], (0, 1))(
            pos[m], neg[m]
        )
        for side, gradient in zip(("pos", "neg"), gradients, strict=True):
            expected = golden[f"dloss_{m}_d{side}"]
            np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance * 1e-6)


@pytest.mark.golden("cet", "losses_*.npz")
def test_golden_losses_float32(golden):
    check_losses(golden, np.float32, 1e-5)


@pytest.mark.golden("cet", "losses_*.npz")
def test_golden_losses_float64(golden, x64):
    check_losses(golden, np.float64, 1e-10)


def trajectory(golden, dtype):
    """Parameters, metrics and weights after and before every step."""

    def linear(params, x):
        return x @ params["a"] + params["c"]

    schedule = linear_warmup_decay(float(golden["peak_lr"]), int(golden["warmup"]), int(golden["total"]))
    decay = optax.adamw(schedule, weight_decay=float(golden["weight_decay"]), mask={"a": True, "c": False})
    tx = optax.chain(optax.clip_by_global_norm(float(golden["clip"])), decay)
    start = [{n: jnp.asarray(golden[f"{n}{m}_init"], dtype) for n in "ac"} for m in MODELS]
    tau = float(golden["tau"])
    step = make_cet_step(linear, linear, tx, tx, tau)
    batches = {m: jnp.asarray(golden[f"X_{m}"], dtype) for m in MODELS}

    def body(state, batch):
        neg = [linear(state.params[m], batch[m][1::2]) for m in MODELS]
        weights = dict(zip(MODELS, coupled_weights(*neg, tau), strict=True))
        state, metrics = step(state, batch)
        return state, (state.params, metrics, weights)

    state = init_cet(jax.random.key(0), *start, tx, tx)
    _, found = jax.jit(lambda s, b: jax.lax.scan(body, s, b))(state, batches)
    rates = [float(schedule(t)) for t in range(len(golden["lr"]))]
    return found, rates


def check_trajectory(golden, dtype, tolerance):
    (params, metrics, weights), rates = trajectory(golden, dtype)
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(rates, golden["lr"], **close)
    for m in MODELS:
        np.testing.assert_allclose(params[m]["a"], golden[f"a{m}"], **close)
        np.testing.assert_allclose(params[m]["c"], golden[f"c{m}"], **close)
        np.testing.assert_allclose(weights[m], golden[f"w_for_{m}"], **close)
        np.testing.assert_allclose(metrics[f"weight_{m}"], golden[f"w_for_{m}"].mean(1), **close)
        for name in ("loss_{}", "loss_{}_plain"):
            np.testing.assert_allclose(metrics[name.format(m)], golden[name.format(m)], **close)
        np.testing.assert_allclose(metrics[f"grad_norm_{m}"], golden[f"gnorm_{m}"], **close)


@pytest.mark.golden("cet", "trajectory_*.npz")
def test_golden_trajectory_float32(golden):
    check_trajectory(golden, np.float32, 1e-4)


@pytest.mark.golden("cet", "trajectory_*.npz")
def test_golden_trajectory_float64(golden, x64):
    check_trajectory(golden, np.float64, 1e-6)


# Losses and weights


def test_weights_where_the_published_form_overflows():
    scores = jnp.array([-np.inf, -1e4, 0.0, 17.0, 79.0, 1e4, np.inf, np.nan])
    w = np.asarray(ips_weight(scores, 1.0))
    expected = 1 + np.exp([-np.inf, -1e4, 0.0, 17.0, 79.0, 80.0, 80.0])
    np.testing.assert_allclose(w[:-1], expected, rtol=1e-5)
    assert np.isnan(w[-1])
    np.testing.assert_allclose(ips_weight(scores[:-1], 1.0, clip=2.0)[3:], 1 + np.exp(2.0), rtol=1e-6)
    assert np.all(np.asarray(jax.grad(lambda s: ips_weight(s, 1.0).sum())(scores[:5])) == 0)


def test_weights_in_float64_have_more_room(x64):
    np.testing.assert_allclose(ips_weight(jnp.array([130.0]), 1.0), 1 + np.exp(130.0), rtol=1e-12)
    assert np.isfinite(ips_weight(jnp.array([1e5]), 1.0)).all()


def test_losses_in_bfloat16_are_float32():
    pos, neg = jnp.array([1.0, 200.0], jnp.bfloat16), jnp.array([0.5, -200.0], jnp.bfloat16)
    losses = pairwise_ce(pos, neg)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-0.5)), 0.0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(pairwise_ce)(pos, neg), losses, rtol=1e-6)
    assert pairwise_ce(neg, pos)[1] == 400
    assert all(w.dtype == jnp.float32 for w in coupled_weights(neg, pos, 10.0))
    gradient = jax.grad(lambda p: pairwise_ce(p, neg).sum())(pos)
    assert gradient.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(gradient).all())


number = st.floats(-8, 8, width=32)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(number, number), min_size=4, max_size=4), st.sampled_from([0.5, 1.0, 10.0]))
def test_properties_of_the_weights(pairs, tau):
    neg_R, neg_S = np.array(pairs, np.float32).T
    w_R, w_S = (np.asarray(w) for w in coupled_weights(neg_R, neg_S, tau))
    np.testing.assert_allclose(w_R, 1 / (1 - 1 / (1 + np.exp(-neg_S.astype(float) / tau))), rtol=1e-4)
    np.testing.assert_allclose(w_S, 1 / (1 - 1 / (1 + np.exp(-neg_R.astype(float) / tau))), rtol=1e-4)
    swapped = coupled_weights(neg_S, neg_R, tau)  # the models' roles are the same
    np.testing.assert_allclose(swapped[0], w_S, rtol=1e-6)
    mean_R, _ = coupled_weights(neg_R, neg_S, tau, normalise="mean")
    np.testing.assert_allclose(mean_R, w_R / w_R.mean(), rtol=1e-4)
    level, _ = coupled_weights(neg_R, neg_S + 5, tau, center=True)  # the level of the scores is free
    np.testing.assert_allclose(level, coupled_weights(neg_R, neg_S, tau, center=True)[0], rtol=1e-4)
    np.testing.assert_allclose(coupled_weights(neg_R, neg_S, 1e9)[0], 2.0, rtol=1e-5)


def test_positive_propensities_multiply():
    rng = np.random.default_rng(0)
    pos_R, neg_R, pos_S, neg_S = rng.normal(size=(4, 5))
    for center in (False, True):
        level = neg_S.mean() if center else 0.0
        w, _ = coupled_weights(neg_R, neg_S, 2.0, center=center, pos_R=pos_R, pos_S=pos_S)
        sigmoid = 1 / (1 + np.exp(-(pos_S - level) / 2))
        np.testing.assert_allclose(w, (1 + np.exp((neg_S - level) / 2)) / sigmoid, rtol=1e-5)
    w, _ = coupled_weights(neg_R, neg_S, 2.0, "mean", pos_R=pos_R, pos_S=pos_S)
    assert float(w.mean()) == pytest.approx(1.0, rel=1e-5)


def test_schedule():
    rates = [float(linear_warmup_decay(3e-6, 0, 4)(t)) for t in range(6)]
    np.testing.assert_allclose(rates, 3e-6 * np.array([1, 0.75, 0.5, 0.25, 0, 0]), rtol=1e-6)
    assert float(linear_warmup_decay(1.0, 3, 3)(3)) == 0
    with pytest.raises(ValueError, match="warmup: expected at least 0, got -1"):
        linear_warmup_decay(1.0, -1, 3)
    with pytest.raises(ValueError, match="total: expected at least warmup = 5 and 1, got 4"):
        linear_warmup_decay(1.0, 5, 4)


# The step


def linear(params, x):
    return x @ params


def noisy(params, x, key):
    """A linear scorer with dropout of its input."""
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, 0.0)
    return x @ params


def example(pairs=8, shared=False):
    rng = np.random.default_rng(0)
    x_R, x_S = rng.normal(size=(2 * pairs, 4)), rng.normal(size=(2 * pairs, 4 if shared else 3))
    x_S = x_R if shared else x_S
    params = rng.normal(size=4), rng.normal(size=x_S.shape[1])
    arrays = [jnp.asarray(x, jnp.float32) for x in (x_R, x_S, *params)]
    return {"R": arrays[0], "S": arrays[1]}, init_cet(jax.random.key(1), *arrays[2:], TX, TX)


def by_hand(batch, params, weights):
    """Parameters after one step of gradient descent, in NumPy."""
    found = {}
    for m in MODELS:
        x, p = np.asarray(batch[m], float), np.asarray(params[m], float)
        apart = x[1::2] - x[::2]
        slope = weights[m] / (1 + np.exp(-apart @ p))
        found[m] = p - 0.1 * (slope[:, None] * apart).mean(0)
    return found


def negatives(batch, params):
    return {m: np.asarray(batch[m][1::2], float) @ np.asarray(params[m], float) for m in MODELS}


@pytest.mark.parametrize("shared", [False, True])
def test_step_by_hand(shared):
    batch, state = example(shared=shared)
    step = jax.jit(
        make_cet_step(linear, linear, TX, TX, 2.0, inputs="shared" if shared else "separate"),
    )
    after, metrics = step(state, batch["R"] if shared else batch)
    neg = negatives(batch, state.params)
    weights = {"R": 1 + np.exp(neg["S"] / 2), "S": 1 + np.exp(neg["R"] / 2)}
    expected = by_hand(batch, state.params, weights)
    for m in MODELS:
        np.testing.assert_allclose(after.params[m], expected[m], rtol=1e-5)
        assert float(metrics[f"weight_{m}"]) == pytest.approx(weights[m].mean(), rel=1e-5)
        assert float(metrics[f"neg_{m}"]) == pytest.approx(neg[m].mean(), rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["loss_R"] + metrics["loss_S"]))
    assert int(after.step) == 1


def test_options_by_hand():
    batch, state = example()
    neg = negatives(batch, state.params)
    pos = {m: np.asarray(batch[m][::2], float) @ np.asarray(state.params[m], float) for m in MODELS}
    w = {"R": 1 + np.exp(neg["S"]), "S": 1 + np.exp(neg["R"])}
    propensity = {"R": 1 + np.exp(-pos["S"]), "S": 1 + np.exp(-pos["R"])}
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 1.0])
    cases = [
        ({"weighting": "none"}, None, {m: np.ones(8) for m in MODELS}),
        ({"weighting": "none"}, mask, dict.fromkeys(MODELS, mask)),
        ({"weighting": "constant"}, None, {m: np.full(8, w[m].mean()) for m in MODELS}),
        ({"normalise": "mean"}, None, {m: w[m] / w[m].mean() for m in MODELS}),
        ({"positive_ips": True}, None, {m: w[m] * propensity[m] for m in MODELS}),
        ({"clip": 0.5}, None, {m: 1 + np.exp(np.minimum(neg[o], 0.5)) for m, o in ("RS", "SR")}),
        (
            {"center": True},
            mask,
            {m: mask * (1 + np.exp(neg[o] - neg[o].mean())) for m, o in ("RS", "SR")},
        ),
    ]
    for options, pair_weight, weights in cases:
        after, _ = make_cet_step(linear, linear, TX, TX, 1.0, **options)(state, batch, None, pair_weight)
        expected = by_hand(batch, state.params, weights)
        for m in MODELS:
            np.testing.assert_allclose(after.params[m], expected[m], rtol=1e-4, err_msg=str(options))


def test_interleaved_equals_pairs():
    batch, state = example()
    step = jax.jit(make_cet_step(linear, linear, TX, TX, 1.0))
    pairs = {m: {"pos": batch[m][::2], "neg": batch[m][1::2]} for m in MODELS}
    for a, b in zip(*(jax.tree.leaves(step(state, x)[1]) for x in (batch, pairs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    one = jax.tree.map(lambda x: x[:2], batch)  # one pair
    assert all(np.isfinite(float(x)) for x in step(state, one)[1].values())


def test_dropout_is_off_for_the_weights():
    batch, state = example()
    plain = make_cet_step(linear, linear, TX, TX, 1.0)(state, batch)[1]
    step = jax.jit(make_cet_step(noisy, noisy, TX, TX, 1.0, dropout=True))
    (first, metrics), (again, _) = step(state, batch), step(state, batch)
    for m in MODELS:
        assert float(metrics[f"weight_{m}"]) == pytest.approx(float(plain[f"weight_{m}"]), rel=1e-5)
        assert float(metrics[f"loss_{m}_plain"]) != pytest.approx(float(plain[f"loss_{m}_plain"]), rel=1e-3)
        np.testing.assert_array_equal(first.params[m], again.params[m])
    other = step(state, batch, jax.random.key(7))[1]
    assert float(other["loss_R_plain"]) != float(metrics["loss_R_plain"])
    later = step(state._replace(step=jnp.int32(1)), batch)[1]  # another step, another mask
    assert float(later["loss_R_plain"]) != float(metrics["loss_R_plain"])
    with_positives = make_cet_step(noisy, noisy, TX, TX, 1.0, dropout=True, positive_ips=True)
    without = make_cet_step(linear, linear, TX, TX, 1.0, positive_ips=True)
    weight = float(without(state, batch)[1]["weight_R"])
    assert float(with_positives(state, batch)[1]["weight_R"]) == pytest.approx(weight, rel=1e-5)


def test_step_under_vmap_and_in_bfloat16():
    batch, state = example()

    def first_step(tau):
        return make_cet_step(linear, linear, TX, TX, tau)(state, batch)[0].params["R"]

    taus = jnp.array([1.0, 4.0])
    found = jax.jit(jax.vmap(first_step))(taus)
    for row, tau in zip(found, taus, strict=True):
        np.testing.assert_allclose(row, first_step(float(tau)), rtol=1e-5)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), batch)
    low_state = init_cet(jax.random.key(0), *(p.astype(jnp.bfloat16) for p in state.params.values()), TX, TX)
    after, metrics = make_cet_step(linear, linear, TX, TX, 2.0)(low_state, low)
    assert after.params["R"].dtype == jnp.bfloat16
    assert metrics["loss_R"].dtype == jnp.float32
    expected = make_cet_step(linear, linear, TX, TX, 2.0)(state, batch)[1]
    assert float(metrics["loss_R"]) == pytest.approx(float(expected["loss_R"]), rel=0.03)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_equals_unsharded(explicit):
    batch, state = example(pairs=16)

    def score(params, x, key):
        if key is not None:
            x = x * 1.5
        return jnp.einsum("rd,d->r", x, params)

    step = make_cet_step(score, score, TX, TX, 1.0, dropout=True)
    for part in (batch, {m: {"pos": x[::2], "neg": x[1::2]} for m, x in batch.items()}):
        expected, metrics = jax.jit(step)(state, part)
        sharded = shard_step(step, make_mesh({"data": 8}, explicit=explicit), state, part, fsdp=None)
        after, found = sharded(sharded.place_state(state), sharded.place_batch(part))
        for m in MODELS:
            np.testing.assert_allclose(after.params[m], expected.params[m], rtol=1e-5)
            np.testing.assert_allclose(found[f"loss_{m}"], metrics[f"loss_{m}"], rtol=1e-5)


# Bad input


def test_nan_stops_a_training_loop():
    batch, state = example()
    bad = {"R": batch["R"], "S": batch["S"].at[1].set(jnp.nan)}
    step = jax.jit(make_cet_step(linear, linear, TX, TX, 1.0))
    _, metrics = step(state, bad)
    assert np.isnan(float(metrics["loss_R"]))  # S's negative weighs R's loss
    with pytest.raises(NonFiniteError, match=r"at step 2"):
        fit(step, state, [batch, bad, batch], steps=3, progress=False)


def test_bad_input():
    batch, state = example()
    pos, neg = jnp.ones(3), jnp.ones(4)
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"tau: expected a positive number, got {tau}"):
            ips_weight(pos, tau)
        with pytest.raises(ValueError, match=f"tau: expected a positive number, got {tau}"):
            make_cet_step(linear, linear, TX, TX, tau)
    cases = [
        (lambda: pairwise_ce(pos, neg), r"neg: expected the shape of pos, \(3,\), got \(4,\)"),
        (lambda: weighted_pairwise_loss(pos, pos, neg), r"w: expected the shape of pos, \(3,\), got \(4,\)"),
        (lambda: weighted_pairwise_loss(pos[:0], pos[:0], pos[:0]), r"pos: expected at least one pair, got"),
        (lambda: coupled_weights(pos, neg, 1.0), r"neg_S: expected the shape of neg_R, \(3,\), got \(4,\)"),
        (lambda: coupled_weights(pos, pos, 1.0, "max"), "normalise: expected one of mean, none, got 'max'"),
        (lambda: coupled_weights(pos, pos, 1.0, pos_R=pos), "pos_R, pos_S: expected both or neither"),
        (lambda: coupled_weights(pos, pos, 1.0, pos_R=neg, pos_S=neg), "pos: expected the shape of neg"),
        (lambda: ips_weight(pos, 1.0, clip=float("nan")), "clip: expected a number, got nan"),
    ]
    for option, allowed in (("inputs", "separate, shared"), ("weighting", "constant, coupled, none")):
        cases.append(
            (
                lambda option=option: make_cet_step(linear, linear, TX, TX, 1.0, **{option: "x"}),
                f"{option}: expected one of {allowed}, got 'x'",
            )
        )
    step = make_cet_step(linear, linear, TX, TX, 1.0)
    odd = {"R": batch["R"][:3], "S": batch["S"][:3]}
    uneven = {"R": {"pos": batch["R"], "neg": batch["R"][:3]}, "S": batch["S"]}
    cases += [
        (lambda: step(state, {"R": batch["R"]}), r"batch: expected .* for separate inputs, got \['R'\]"),
        (lambda: step(state, batch["R"]), "batch: expected .* for separate inputs, got ArrayImpl"),
        (lambda: step(state, odd), "batch of R: expected an even number of rows, .* got 3"),
        (lambda: step(state, jax.tree.map(lambda x: x[:0], batch)), "batch of R: .* got 0"),
        (lambda: step(state, uneven), r"batch of R: expected negatives of the positives' shapes, \(16, 4\)"),
        (lambda: step(state, {"R": batch["R"], "S": batch["S"][:4]}), "expected as many pairs .* 8 and 2"),
        (lambda: step(state, {"R": jnp.ones(()), "S": batch["S"]}), "batch of R: expected arrays with the"),
        (lambda: step(state, batch, None, jnp.ones(3)), r"pair_weight: expected the shape .*\(8,\), got"),
        (
            lambda: make_cet_step(lambda p, x: x, linear, TX, TX, 1.0)(state, batch),
            r"apply_R: expected scores of shape \(16,\), one a row, got \(16, 4\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
