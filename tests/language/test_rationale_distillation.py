"""Losses of rationale distillation: goldens, loops, limits, gradients, transformations, bad input."""

import re
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import NamedSharding, PartitionSpec

from jaxneg.language import (
    contrastive_rationale_loss,
    discriminator_loss,
    dss_loss,
    next_token_distribution,
    qcrd_total,
    self_consistency,
    sequence_ce,
    token_mean_ce,
)
from jaxneg.train import make_mesh

# The goldens' README.
TOLERANCES = {np.float64: 1e-12, np.float32: 1e-6}
SCHEMES = ("minmax", "maxmin", "mean", "wmean", "sampling")

contrast = jax.jit(contrastive_rationale_loss, static_argnames=("scheme",))
discriminate = jax.jit(discriminator_loss, static_argnames=("denominator",))
ce = jax.jit(sequence_ce)


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    """Both precisions of the goldens."""
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def close(found, expected, dtype, name=""):
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance, err_msg=name
    )


def scores(golden, dtype):
    return [(1 / (1 + np.exp(-golden[f"score_logit_{end}"]))).astype(dtype) for end in ("pos", "neg")]


@pytest.mark.golden("qcrd", "qcrd*.npz")
def test_golden_costs(golden, dtype):
    for end in ("pos", "neg"):
        found = ce(golden[f"logits_{end}"].astype(dtype), golden[f"target_{end}"], golden[f"mask_{end}"])
        assert found.dtype == dtype
        close(found, golden[f"ce_{end}"], dtype, end)


@pytest.mark.golden("qcrd", "qcrd*.npz")
def test_golden_schemes(golden, dtype):
    """Every scheme: loss, both terms, what was selected; and without a judge."""
    costs = [golden[f"ce_{end}"].astype(dtype) for end in ("pos", "neg")]
    valid = [golden[f"valid_{end}"] for end in ("pos", "neg")]
    options = {"beta": golden["beta"].astype(dtype), "delta": golden["delta"].astype(dtype)}
    drawn = {"uniform": golden["uniform_for_sampling"]}
    for scheme in SCHEMES:
        extra = drawn if scheme == "sampling" else {}
        loss, aux = contrast(*costs, *valid, *scores(golden, dtype), scheme=scheme, **options, **extra)
        close(loss.mean(), golden[f"cl_{scheme}"], dtype, scheme)
        for name, of in (("pos_term", "pos_term"), ("neg_term", "neg_term")):
            close(aux[name], golden[f"{of}_{scheme}"], dtype, f"{scheme} {name}")
        for end in ("pos", "neg"):
            np.testing.assert_array_equal(aux[f"{end}_index"], golden[f"{end}_idx_{scheme}"], scheme)
    loss, _ = contrast(*costs, *valid, scheme="minmax", **options)
    close(loss.mean(), golden["cl_minmax_no_judge"], dtype)


@pytest.mark.golden("qcrd", "qcrd*.npz")
def test_golden_judge_and_total(golden, dtype):
    both, valid = scores(golden, dtype), [golden[f"valid_{end}"] for end in ("pos", "neg")]
    ratio = discriminate(*both, *valid)
    close(ratio, golden["disc_ratio"], dtype)
    close(discriminate(*both, *valid, denominator="all"), golden["disc_softmax"], dtype)
    parts = [golden[name].astype(dtype) for name in ("loss_pred", "cl_minmax", "disc_ratio", "alphas")]
    close(qcrd_total(*parts), golden["total"], dtype)


@pytest.mark.golden("qcrd", "qcrd*.npz")
def test_golden_self_consistency(golden):
    majority, positive = jax.jit(self_consistency)(golden["sc_answers"])
    np.testing.assert_array_equal(majority, golden["sc_majority"])
    np.testing.assert_array_equal(positive, golden["sc_positive"])


@pytest.mark.golden("qcrd", "qcrd*.npz")
def test_golden_temperatures(golden, dtype):
    """What the rationales are sampled from."""
    names = [name for name in golden if name.startswith("temp_probs_")]
    assert names
    for name in names:
        temperature = float(name.removeprefix("temp_probs_"))
        found = next_token_distribution(jnp.asarray(golden["temp_logits"], dtype), temperature)
        close(found, golden[name], dtype, name)


def example(seed, n=5, m=3, k=2):
    rng = np.random.default_rng(seed)
    ce_pos, ce_neg = rng.uniform(0, 5, (n, m)), rng.uniform(0, 5, (n, k))
    valid_pos, valid_neg = rng.random((n, m)) < 0.7, rng.random((n, k)) < 0.6
    given = rng.random((n, m)), rng.random((n, k))
    arrays = [np.asarray(array, np.float32) for array in (ce_pos, ce_neg)]
    return *arrays, valid_pos, valid_neg, *(np.asarray(s, np.float32) for s in given)


def by_loop(scheme, ce_pos, ce_neg, valid_pos, valid_neg, s_pos, s_neg, beta=0.2, delta=3.0):
    """Equations 3 to 7 for one example after the other."""
    losses = []
    for row in range(len(ce_pos)):
        pos = [(c, s) for c, s, v in zip(ce_pos[row], s_pos[row], valid_pos[row], strict=True) if v]
        neg = [
            (min(c - delta, 0), 1 - s)
            for c, s, v in zip(ce_neg[row], s_neg[row], valid_neg[row], strict=True)
            if v
        ]
        if scheme in ("minmax", "maxmin"):
            nearest, farthest = (min, max) if scheme == "minmax" else (max, min)
            p = np.prod(nearest(pos, key=lambda pair: pair[0])) if pos else 0
            q = np.prod(farthest(neg, key=lambda pair: pair[0])) if neg else 0
        elif scheme == "mean":
            p, q = (np.mean([c * s for c, s in each]) if each else 0 for each in (pos, neg))
        else:
            p, q = (
                sum(c * s for c, s in each) / sum(s for _, s in each) if each else 0 for each in (pos, neg)
            )
        losses.append(p - beta * q)
    return np.array(losses)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(["minmax", "maxmin", "mean", "wmean"]))
def test_schemes_by_brute_force(seed, scheme):
    arrays = example(seed)
    np.testing.assert_allclose(
        contrast(*arrays, scheme=scheme)[0], by_loop(scheme, *arrays), rtol=2e-5, atol=1e-6
    )


def test_costs_by_loop():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    targets, mask = rng.integers(0, 5, (2, 3, 4)), rng.random((2, 3, 4)) < 0.6
    mask[0, 0] = False
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    expected = np.where(mask, nll, 0).sum(-1) / np.maximum(mask.sum(-1), 1)
    np.testing.assert_allclose(ce(logits, targets, mask), expected, rtol=1e-5)
    assert expected[0, 0] == 0
    np.testing.assert_allclose(token_mean_ce(logits, targets, mask), nll[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(dss_loss(1.0, 2.0, 0.25), 1.75)
    gradient = jax.grad(lambda x: sequence_ce(x, targets, mask).sum())(logits)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~mask].any()
    wrong = jax.grad(lambda x: token_mean_ce(x, targets, mask & False))(logits)
    np.testing.assert_array_equal(wrong, 0)


def test_gradients_of_the_contrast():
    """Through what was selected alone; none through scores, beyond the margin, or in empty sets."""
    ce_pos, ce_neg = np.array([[1.0, 2.0], [2.0, 1.0]], "f4"), np.array([[1.0, 2.0], [5.0, 4.0]], "f4")
    every = np.ones((2, 2), bool)
    total = jax.jit(jax.grad(lambda *a: contrastive_rationale_loss(*a)[0].sum(), argnums=(0, 1, 4, 5)))
    s_pos, s_neg = np.full((2, 2), 0.5, "f4"), np.full((2, 2), 0.25, "f4")
    gp, gn, *of_scores = total(ce_pos, ce_neg, every, every, s_pos, s_neg)
    np.testing.assert_allclose(gp, [[0.5, 0], [0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(gn, [[0, -0.2 * 0.75], [0, 0]], rtol=1e-6)
    for gradient in of_scores:
        np.testing.assert_array_equal(gradient, 0)
    infinite = np.where(every, np.inf, 1).astype("f4")
    for gradient in total(infinite, np.nan * infinite, ~every, ~every, s_pos, np.nan * s_neg):
        np.testing.assert_array_equal(gradient, 0)


def test_without_the_margin_it_diverges():
    """The margin bounds the negative term; without it and with a large beta a student runs away."""

    def descend(delta):
        def loss(w):
            logits = jnp.stack([w, -w])[None, None, :].repeat(2, 0)
            costs = sequence_ce(logits, jnp.array([[0], [1]]), jnp.ones((2, 1), bool))
            some = jnp.ones((1, 1), bool)
            return contrastive_rationale_loss(
                costs[:1, None], costs[1:, None], some, some, beta=5.0, delta=delta
            )[0].sum()

        step = jax.jit(lambda w: w - 0.5 * jax.grad(loss)(w))
        w = jnp.zeros(())
        for _ in range(60):
            w = step(w)
        return float(w)

    assert descend(1e9) > 100
    assert descend(3.0) < 10


def test_a_set_alone():
    """A rationale of its own is its cost; no negatives at all; scores of 1 and 0 are no scores."""
    ce_pos, ce_neg, valid_pos, valid_neg, *_ = example(1)
    one = contrast(ce_pos[:, :1], ce_neg[:, :0], np.ones((5, 1), bool), valid_neg[:, :0])[0]
    np.testing.assert_allclose(one, ce_pos[:, 0], rtol=1e-6)
    plain = contrast(ce_pos, ce_neg, valid_pos, valid_neg)[0]
    trusted = contrast(ce_pos, ce_neg, valid_pos, valid_neg, np.ones_like(ce_pos), 0 * ce_neg)[0]
    np.testing.assert_allclose(plain, trusted, rtol=1e-6)
    none = contrast(ce_pos, ce_neg, valid_pos & False, valid_neg & False)
    np.testing.assert_array_equal(none[0], 0)
    for name in ("pos_index", "neg_index", "pos_term"):
        np.testing.assert_array_equal(none[1][name], 0)


def test_sampling_draws_each_valid_one():
    costs = np.tile(np.arange(4, dtype=np.float32), (4000, 1))
    valid = np.tile([True, False, True, True], (4000, 1))
    draw = jax.jit(
        lambda key: contrastive_rationale_loss(costs, costs, valid, valid, scheme="sampling", key=key)[1]
    )
    found = draw(jax.random.key(0))
    for name in ("pos_index", "neg_index"):
        share = np.bincount(found[name], minlength=4) / 4000
        np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)
    assert (found["pos_index"] != found["neg_index"]).any()


def test_discriminator_limits():
    """One of each: the difference of the scores; a judge that knows nothing: the log-ratio of the counts."""
    s_pos, s_neg, every = np.array([[0.9]], "f4"), np.array([[0.2]], "f4"), np.ones((1, 1), bool)
    np.testing.assert_allclose(discriminate(s_pos, s_neg, every, every), -0.7, rtol=1e-5)
    half = np.full((2, 3), 0.5, "f4")
    np.testing.assert_allclose(
        discriminate(half, half[:, :1], np.ones((2, 3)), np.ones((2, 1))), -np.log(3), rtol=1e-5
    )
    loss = jax.grad(lambda s: discriminator_loss(s, half, np.zeros((2, 3)), np.ones((2, 3))))(half)
    np.testing.assert_array_equal(loss, 0)


def test_transformations():
    """Eager, vmap and bfloat16 agree with jit."""
    arrays = example(3)
    found = contrast(*arrays)[0]
    np.testing.assert_allclose(contrastive_rationale_loss(*arrays)[0], found, rtol=1e-6)
    stacked = [np.stack([array, array[::-1]]) for array in arrays]
    mapped = jax.jit(jax.vmap(lambda *a: contrastive_rationale_loss(*a)[0]))(*stacked)
    np.testing.assert_allclose(mapped[1], found[::-1], rtol=1e-6)
    half = [jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a for a in arrays]
    rounded = contrast(*half)[0]
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, found, rtol=0.05, atol=0.05)
    logits = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32)
    targets, mask = np.ones((2, 3), int), np.ones((2, 3), bool)
    low = ce(jnp.asarray(logits, jnp.bfloat16), targets, mask)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, ce(logits, targets, mask), rtol=0.01)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_as_unsharded(explicit):
    arrays = example(4, n=8)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((8, 3, 4, 6)).astype(np.float32)
    targets, mask = rng.integers(0, 6, (8, 3, 4)), np.ones((8, 3, 4), bool)

    def everything(logits, targets, mask, ce_pos, ce_neg, valid_pos, valid_neg, s_pos, s_neg):
        both = (ce_pos, ce_neg, valid_pos, valid_neg, s_pos, s_neg)
        return (
            sequence_ce(logits, targets, mask),
            token_mean_ce(logits, targets, mask),
            contrastive_rationale_loss(*both)[0],
            contrastive_rationale_loss(*both, scheme="wmean")[0],
            discriminator_loss(s_pos, s_neg, valid_pos, valid_neg),
            self_consistency(targets[:, 0])[0],
        )

    inputs = (logits, targets, mask, *arrays)
    expected = jax.jit(everything)(*inputs)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    over_vocab = NamedSharding(mesh, PartitionSpec("data", None, None, "model"))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(inputs[0], over_vocab), *(jax.device_put(x, spread) for x in inputs[1:])]
        found = jax.jit(everything)(*placed)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


ONE = np.ones((2, 3), "f4")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: sequence_ce(np.ones((2, 3, 4), int), np.ones((2, 3), int), ONE), TypeError, "logits: exp"),
        (lambda: sequence_ce(np.ones((2, 3, 4), "f4"), ONE, ONE), TypeError, "targets: expected an integer"),
        (
            lambda: sequence_ce(np.ones((2, 3, 4), "f4"), np.ones((2, 3), int), np.ones((2, 4))),
            ValueError,
            "mask: expected the shape of logits without the vocabulary, (2, 3), got (2, 4)",
        ),
        (lambda: contrastive_rationale_loss(ONE, ONE, ONE, ONE, scheme="best"), ValueError, "scheme: exp"),
        (
            lambda: contrastive_rationale_loss(ONE, ONE, ONE, ONE, ONE),
            ValueError,
            "score_pos, score_neg: expected both or neither",
        ),
        (
            lambda: contrastive_rationale_loss(ONE, ONE, ONE, ONE, scheme="wmean"),
            ValueError,
            "'wmean' weighs",
        ),
        (
            lambda: contrastive_rationale_loss(ONE, ONE, ONE, ONE, scheme="sampling"),
            ValueError,
            "key: the scheme 'sampling' draws",
        ),
        (
            lambda: contrastive_rationale_loss(ONE, ONE, ONE[:, :2], ONE),
            ValueError,
            "valid_pos: expected the shape of ce_pos, (2, 3), got (2, 2)",
        ),
        (
            lambda: contrastive_rationale_loss(ONE, ONE[:1], ONE, ONE[:1]),
            ValueError,
            "ce_neg: expected as many examples as ce_pos, 2, got 1",
        ),
        (lambda: contrastive_rationale_loss(ONE[0], ONE, ONE, ONE), ValueError, "ce_pos: expected the shape"),
        (
            lambda: contrastive_rationale_loss(ONE.astype(int), ONE, ONE, ONE),
            TypeError,
            "ce_pos: expected a floating dtype, got int32",
        ),
        (
            lambda: contrastive_rationale_loss(ONE, ONE, ONE, ONE, ONE[:, :1], ONE),
            ValueError,
            "score_pos: expected the shape of ce_pos, (2, 3), got (2, 1)",
        ),
        (
            lambda: discriminator_loss(ONE, ONE, ONE, ONE, denominator="pos"),
            ValueError,
            "denominator: expected 'neg' or 'all', got 'pos'",
        ),
        (lambda: qcrd_total(1.0, 1.0, 1.0, (0.5, 0.5)), ValueError, "alphas: expected three weights"),
        (lambda: self_consistency(np.ones((2, 3))), TypeError, "answers: expected an integer dtype"),
        (lambda: self_consistency(np.ones(3, int)), ValueError, "answers: expected the shape"),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_self_consistency_by_counting():
    rng = np.random.default_rng(0)
    answers = rng.integers(-1, 3, (200, 4))
    majority, positive = map(np.asarray, jax.jit(self_consistency)(answers))
    for row, winner, agrees in zip(answers, majority, positive, strict=True):
        given = [answer for answer in row if answer != -1]
        best = max(given, key=given.count) if given else -1  # max takes the first of equal ones
        assert winner == best
        np.testing.assert_array_equal(agrees, (row == best) & (row != -1))


def test_total_decays():
    assert partial(qcrd_total, 0.0, 0.0, 1.0)(iteration=2) == pytest.approx(0.5 * 0.81)
