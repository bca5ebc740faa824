"""Memorisation and membership scores: against loops over tokens, scikit-learn, meshes, wrong arguments."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.metrics import roc_auc_score

from jaxneg.unlearning import (
    IGNORE,
    auc,
    exact_memorization,
    extraction_strength,
    gradient_norm_score,
    min_k,
    min_k_pp,
    privleak,
    reference_score,
    zlib_score,
)

BATCH, TOKENS, VOCABULARY = 5, 9, 6


def _case(seed=0, batch=BATCH, learned=0.6):
    """Rows of a prompt, an answer and padding; the model's first choice is often right."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((batch, TOKENS, VOCABULARY)).astype(np.float32)
    tokens = random.integers(0, VOCABULARY, (batch, TOKENS)).astype(np.int32)
    labels = np.full_like(tokens, IGNORE)
    for row in range(batch):
        start = random.integers(1, 4)
        end = random.integers(start + 2, TOKENS + 1)
        labels[row, start:end] = tokens[row, start:end]
        for t in range(start, end):
            if random.random() < learned:
                logits[row, t - 1, labels[row, t]] += 6
    return logits, labels


def _answers(logits, labels):
    """Log-probabilities [n, V] and labels [n] of each answer without its last token."""
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(np.float64), axis=-1))
    for row, row_labels in enumerate(labels):
        positions = np.flatnonzero(row_labels != IGNORE)[:-1]
        yield log_p[row, positions - 1], row_labels[positions]


def _expected(logits, labels, k):
    rows = {"exact": [], "extraction": [], "strict": [], "min_k": [], "min_k_pp": []}
    for log_p, targets in _answers(logits, labels):
        right = log_p.argmax(-1) == targets
        n = len(right)
        rows["exact"].append(right.mean())
        prefix = next(k for k in range(n + 1) if right[k:].all())
        rows["extraction"].append(1 - min(prefix, n - 1) / n)
        rows["strict"].append(1 - prefix / n)
        at_target = log_p[np.arange(n), targets]
        mean = (np.exp(log_p) * log_p).sum(-1)
        variance = (np.exp(log_p) * log_p**2).sum(-1) - mean**2
        z = (at_target - mean) / np.sqrt(np.maximum(variance, 1e-6))
        lowest = max(1, int(n * k))
        rows["min_k"].append(-np.sort(at_target)[:lowest].mean())
        rows["min_k_pp"].append(-np.sort(z)[:lowest].mean())
    return rows


def _measure(logits, labels, k=0.4):
    return {
        "exact": exact_memorization(logits, labels),
        "extraction": extraction_strength(logits, labels),
        "strict": extraction_strength(logits, labels, at_least_one=False),
        "min_k": min_k(logits, labels, k),
        "min_k_pp": min_k_pp(logits, labels, k),
    }


_compiled = jax.jit(_measure, static_argnames="k")


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.6, 1.0]))
def test_equal_loops_over_tokens(seed, learned):
    logits, labels = _case(seed, learned=learned)
    found, expected = _compiled(logits, labels), _expected(logits, labels, 0.4)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("k", [0.01, pytest.param(0.29, marks=pytest.mark.slow), 1.0])
def test_share_of_the_tokens(k):
    logits, labels = _case(3)
    found, expected = _compiled(logits, labels, k=k), _expected(logits, labels, k)
    np.testing.assert_allclose(found["min_k"], expected["min_k"], rtol=2e-5)
    np.testing.assert_allclose(found["min_k_pp"], expected["min_k_pp"], rtol=2e-5, atol=1e-5)


@pytest.mark.slow
def test_the_last_label_counts_on_request():
    logits, labels = _case()
    with_end = np.concatenate([labels, np.full((BATCH, 1), IGNORE, np.int32)], 1)
    for row in with_end:
        row[np.flatnonzero(row != IGNORE)[-1] + 1] = 0
    longer = np.pad(logits, ((0, 0), (0, 1), (0, 0)))
    for function in (min_k, min_k_pp):
        np.testing.assert_allclose(
            function(logits, labels, with_last=True), function(longer, with_end), rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
def test_jit_vmap_and_bfloat16():
    logits, labels = _case()
    eager, compiled = _measure(logits, labels), _compiled(logits, labels)
    narrow = jnp.asarray(logits, jnp.bfloat16)
    wide = narrow.astype(jnp.float32)
    for name in eager:
        np.testing.assert_allclose(eager[name], compiled[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for name, function in (("min_k", min_k), ("min_k_pp", min_k_pp), ("exact", exact_memorization)):
        stacked = jax.vmap(function)(jnp.stack([logits, -logits]), jnp.stack([labels, labels]))
        np.testing.assert_allclose(stacked[0], function(logits, labels), rtol=1e-6, atol=1e-6, err_msg=name)
        assert function(narrow, labels).dtype == jnp.float32
        np.testing.assert_allclose(function(narrow, labels), function(wide, labels), rtol=1e-5, atol=1e-5)


def test_certain_and_impossible_tokens_stay_finite():
    logits = jnp.full((1, 3, 4), -jnp.inf).at[..., 1].set(0)
    labels = jnp.array([[IGNORE, 1, 1]])
    found = _compiled(logits, labels)
    np.testing.assert_allclose([found["min_k"][0], found["min_k_pp"][0]], 0, atol=1e-6)


def test_rows_of_one_label_have_no_value():
    logits, labels = _case()
    labels[1] = IGNORE
    labels[1, 4] = 2
    for name, values in _compiled(logits, labels).items():
        assert np.isnan(values).tolist() == [False, True, False, False, False], name


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
def test_sharded_equals_unsharded(kind):
    logits, labels = _case(batch=8)
    expected = _compiled(logits, labels)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        placed = jax.device_put(logits, NamedSharding(mesh, P("data", None, "model")))
        found = jax.jit(_measure)(placed, jax.device_put(labels, NamedSharding(mesh, P("data"))))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_gradient_norms_of_each_row():
    logits, labels = _case()
    tokens = np.where(labels == IGNORE, 0, labels)
    params = {"table": jnp.asarray(logits[0, :VOCABULARY]), "scale": jnp.ones(VOCABULARY)}

    def apply(params, tokens):
        return params["table"][tokens] * params["scale"]

    def loss(params, row):
        (found,) = _answers_loss(apply(params, tokens[row][None]), labels[row][None])
        return found

    for order in (1, 2, float("inf")):
        expected = []
        for row in range(BATCH):
            gradient = jax.grad(loss)(params, row)
            expected.append(
                np.mean([np.linalg.norm(np.ravel(g), ord=order) for g in jax.tree.leaves(gradient)])
            )
        found = jax.jit(lambda p, order=order: gradient_norm_score(apply, p, tokens, labels, order))(params)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def _answers_loss(logits, labels):
    """Mean loss of each answer without its last token."""
    log_p = jax.nn.log_softmax(logits)
    for row, row_labels in enumerate(labels):
        positions = np.flatnonzero(row_labels != IGNORE)[:-1]
        yield -log_p[row, positions - 1, row_labels[positions]].mean()


_auc = jax.jit(lambda one, other: (auc(one, other), auc(other, one)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([(4, 7), (1, 1)]), st.sampled_from([2, 5, 1000]))
def test_auc_equals_scikit_learns(seed, sizes, ties):
    random = np.random.default_rng(seed)
    negative, positive = (random.integers(0, ties, size).astype(np.float32) for size in sizes)
    labels = np.repeat([0, 1], sizes)
    expected = roc_auc_score(labels, np.concatenate([negative, positive]))
    np.testing.assert_allclose(_auc(negative, positive), [expected, 1 - expected], rtol=1e-6, atol=1e-7)


def test_auc_of_nothing_and_of_nan():
    assert np.isnan(_auc(np.array([np.nan], np.float32), np.ones(1, np.float32))).all()
    with pytest.raises(ValueError, match=r"negative: expected a one-dimensional array .* got shape \(0,\)"):
        auc([], [1.0])
    with pytest.raises(ValueError, match=r"positive: expected a one-dimensional array .* got shape \(1, 1\)"):
        auc([1.0], [[1.0]])


def test_privacy_leakage():
    assert privleak(0.5, 0.5) == 0
    np.testing.assert_allclose(privleak(0.9, 0.6), 50)
    # A model that forgot nothing: forget texts are likelier than all holdout texts; MUSE's sign is negative.
    np.testing.assert_allclose(privleak(1.0, 0.5, complement=True), -100)
    with pytest.raises(ValueError, match=r"auc_unlearned: expected a number from 0 to 1, got 1.5"):
        privleak(1.5, 0.5)
    with pytest.raises(ValueError, match=r"auc_retrained: expected an AUC to compare with, got 0.0"):
        privleak(0.5, 0.0)
    with pytest.raises(ValueError, match=r"auc_retrained: expected an AUC to compare with, got 1.0"):
        privleak(0.5, 1.0, complement=True)


def test_scores_against_a_compressor_and_a_reference():
    texts = ["a", "Nobody knows the answer", "a" * 1000]
    expected = [2 / len(zlib.compress(text.encode())) for text in texts]
    np.testing.assert_allclose(zlib_score(np.full(3, 2.0), texts), expected, rtol=1e-12)
    assert reference_score(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])).tolist() == [-2, 1]
    with pytest.raises(ValueError, match=r"avg_loss: expected one for each of 3 texts, got shape \(2,\)"):
        zlib_score(np.ones(2), texts)
    with pytest.raises(ValueError, match="ref_avg_loss: expected the shape of avg_loss"):
        reference_score(jnp.ones(2), jnp.ones(3))


def test_wrong_arguments_of_the_gradient_norm():
    row = jnp.zeros((5, 9), int)
    with pytest.raises(ValueError, match="order: expected 1, 2 or infinity, got 3"):
        gradient_norm_score(lambda params, tokens: params[tokens], jnp.zeros((2, 2)), row, row, 3)
    with pytest.raises(ValueError, match=r"tokens: expected the shape of labels, \(5, 9\), got \(5, 8\)"):
        gradient_norm_score(lambda params, tokens: params[tokens], jnp.zeros((2, 2)), row[:, 1:], row)


@pytest.mark.parametrize("function", [exact_memorization, extraction_strength, min_k, min_k_pp])
def test_wrong_arguments(function):
    logits, labels = _case()
    with pytest.raises(TypeError, match="labels: expected an integer dtype, got float32"):
        function(logits, labels.astype(np.float32))
    with pytest.raises(ValueError, match=r"labels: expected the shape .* got \(5, 8\)"):
        function(logits, labels[:, 1:])
    if function in (min_k, min_k_pp):
        for wrong in (0, -0.1, 1.1):
            with pytest.raises(ValueError, match="k: expected a share above 0 and at most 1, got"):
                function(logits, labels, wrong)
