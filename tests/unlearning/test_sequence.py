"""Likelihoods of sequences: against log_softmax, masks, wrong labels, memory, dtypes, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.unlearning import IGNORE, answer_lengths, check_labels, sequence_nll, token_mean_ce, token_nll


def _case(seed=0, batch=4, tokens=6, vocab=16, masked=0.3, scale=3.0):
    random = np.random.default_rng(seed)
    logits = (scale * random.standard_normal((batch, tokens, vocab))).astype(np.float32)
    labels = random.integers(0, vocab, (batch, tokens)).astype(np.int32)
    labels[random.random((batch, tokens)) < masked] = IGNORE
    return jnp.asarray(logits), jnp.asarray(labels)


def _naive(logits, labels):
    log_probabilities = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    mask = labels[:, 1:] != IGNORE
    picked = jnp.take_along_axis(log_probabilities, jnp.where(mask, labels[:, 1:], 0)[..., None], -1)[..., 0]
    return -jnp.where(mask, picked, 0).sum(-1), mask.sum(-1)


def _total(logits, labels, function=sequence_nll):
    nll, _ = function(logits, labels)
    return jnp.sum(nll * jnp.arange(1, nll.size + 1))


@jax.jit
def _both(logits, labels):
    """Likelihoods, counts and a gradient: ours, and through log_softmax."""
    return [
        (*function(logits, labels), jax.grad(_total)(logits, labels, function))
        for function in (sequence_nll, _naive)
    ]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([(1, 2, 1), (3, 5, 7)]), st.floats(0, 1), st.floats(0, 100))
def test_equals_log_softmax(seed, shape, masked, scale):
    found, expected = _both(*_case(seed, *shape, masked=masked, scale=scale))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5 * (1 + scale))
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_jit_vmap_and_both_second_derivatives():
    logits, labels = _case()
    np.testing.assert_allclose(
        jax.jit(sequence_nll)(logits, labels)[0], sequence_nll(logits, labels)[0], rtol=1e-6
    )
    stacked = jax.vmap(sequence_nll)(jnp.stack([logits, 2 * logits]), jnp.stack([labels, labels]))
    np.testing.assert_allclose(stacked[0][1], sequence_nll(2 * logits, labels)[0], rtol=1e-6)
    along = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
    gradient, expected = (lambda x, f=f: jax.grad(_total)(x, labels, f) for f in (sequence_nll, _naive))
    forward = jax.jit(lambda x: jax.jvp(gradient, (x,), (along,))[1])(logits)
    backward = jax.jit(jax.grad(lambda x: jnp.vdot(gradient(x), along)))(logits)
    exact = jax.jit(lambda x: jax.jvp(expected, (x,), (along,))[1])(logits)
    np.testing.assert_allclose(forward, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(backward, exact, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    logits, labels = _case(vocab=300)
    narrow = logits.astype(jnp.bfloat16)
    nll, _ = sequence_nll(narrow, labels)
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, sequence_nll(narrow.astype(jnp.float32), labels)[0], rtol=1e-6)
    gradient = jax.grad(_total)(narrow, labels)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        gradient.astype(np.float32), jax.grad(_total)(narrow.astype(jnp.float32), labels), rtol=1e-2
    )


def test_float64_is_kept(x64):
    logits, labels = _case()
    assert sequence_nll(logits.astype(jnp.float64), labels)[0].dtype == jnp.float64


def test_long_and_extreme_sequences_stay_finite():
    logits = jnp.full((1, 3, 4), -1e4).at[..., 0].set(1e4)
    nll, _ = sequence_nll(logits, jnp.array([[1, 1, 0]]))
    assert nll.tolist() == [2e4]
    assert bool(jnp.isfinite(jax.grad(_total)(logits, jnp.array([[1, 1, 0]]))).all())


def test_the_backward_pass_keeps_no_softmax():
    """Nothing of the logits' size beyond the logits and their gradient, neither stored nor in passing."""
    logits, labels = _case(batch=4, tokens=16, vocab=4096)
    _, pullback = jax.vjp(lambda x: token_nll(x, labels)[0], logits)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if getattr(leaf, "size", 0) >= logits.size]
    assert len(kept) == 1, "the logits themselves"
    compiled = jax.jit(jax.value_and_grad(_total)).lower(logits, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < logits.nbytes / 4
    naive = jax.jit(jax.value_and_grad(lambda x, y: _total(x, y, _naive))).lower(logits, labels).compile()
    assert naive.memory_analysis().temp_size_in_bytes > logits.nbytes / 2


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data", None, "model"), P(("data", "model")), P(None, None, "model")])
def test_sharded_equals_unsharded(kind, spec):
    logits, labels = _case(batch=8, vocab=32)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        placed = jax.device_put(logits, NamedSharding(mesh, spec))
        placed_labels = jax.device_put(labels, NamedSharding(mesh, P(*spec[:1])))
        found = jax.jit(jax.value_and_grad(token_mean_ce))(placed, placed_labels)
    expected = jax.value_and_grad(token_mean_ce)(logits, labels)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-8)
    assert found[1].sharding.is_equivalent_to(placed.sharding, 3)


def test_logits_are_not_gathered():
    logits, labels = _case(batch=8, tokens=16, vocab=512)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(logits, NamedSharding(mesh, P("data", None, "model")))
        text = jax.jit(jax.value_and_grad(token_mean_ce)).lower(placed, labels).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text


def test_token_mean_is_one_mean_over_the_batch():
    logits, _ = _case(batch=2, tokens=4)
    labels = jnp.array([[0, 1, 2, 3], [IGNORE, IGNORE, IGNORE, 3]])
    nll, n_tokens = sequence_nll(logits, labels)
    assert n_tokens.tolist() == [3, 1]
    np.testing.assert_allclose(token_mean_ce(logits, labels), nll.sum() / 4, rtol=1e-6)
    assert not np.isclose(token_mean_ce(logits, labels), (nll / n_tokens).mean())


def test_a_row_without_labels_counts_nothing():
    logits, labels = _case()
    labels = labels.at[0].set(IGNORE)
    nll, n_tokens = sequence_nll(logits, labels)
    assert (float(nll[0]), int(n_tokens[0])) == (0, 0)
    gradient = jax.grad(token_mean_ce)(logits, labels)
    assert not gradient[0].any()
    assert gradient[1:].any()


def test_a_batch_without_labels_is_not_a_number():
    """A mean over nothing: the loop's guard stops on it, and check_labels has the message."""
    logits, labels = _case()
    nothing = jnp.full_like(labels, IGNORE)
    assert bool(jnp.isnan(token_mean_ce(logits, nothing)))
    assert sequence_nll(logits, nothing)[0].tolist() == [0.0] * 4
    with pytest.raises(
        ValueError, match=r"retain: expected at least one token to learn from, got -100 in all 4"
    ):
        check_labels({"retain": nothing}, 16)


@pytest.mark.parametrize("wrong", [16, 1000, -1, -99])
def test_a_label_outside_the_vocabulary_is_not_a_number(wrong):
    logits, labels = _case(masked=0.0)
    nll, _ = jax.jit(sequence_nll)(logits, labels.at[2, 3].set(wrong))
    assert np.isnan(nll).tolist() == [False, False, True, False]
    message = f"labels: expected ids from 0 to 15 or -100, got {wrong} in row 2 at position 3"
    with pytest.raises(ValueError, match=message):
        check_labels(labels.at[2, 3].set(wrong), 16)


def test_answer_lengths_count_the_first_label():
    labels = jnp.array([[1, 2, 3], [IGNORE, 2, IGNORE]])
    assert answer_lengths(labels).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ((2, 3, 4, "int32"), (2, 3, "int32"), TypeError, "logits: expected a floating dtype, got int32"),
        ((2, 3, 4, "float32"), (2, 3, "bool"), TypeError, "labels: expected an integer dtype, got bool"),
        (
            (2, 3, "float32"),
            (2, 3, "int32"),
            ValueError,
            r"logits: expected the shape \[batch, tokens, vocab\]",
        ),
        ((2, 3, 4, "float32"), (2, 4, "int32"), ValueError, r"labels: expected the shape .* got \(2, 4\)"),
        ((0, 3, 4, "float32"), (0, 3, "int32"), ValueError, "logits: expected at least one row"),
        ((2, 3, 0, "float32"), (2, 3, "int32"), ValueError, "one vocabulary entry"),
        ((2, 1, 4, "float32"), (2, 1, "int32"), ValueError, "at least two tokens in a row, got 1"),
    ],
)
@pytest.mark.parametrize("function", [sequence_nll, token_mean_ce, token_nll])
def test_static_mistakes(function, logits, labels, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(function, *(jax.ShapeDtypeStruct(each[:-1], each[-1]) for each in (logits, labels)))


def test_an_empty_set():
    with pytest.raises(ValueError, match="forget: expected at least one row, got none: the set is empty"):
        check_labels({"forget": np.zeros((0, 5), np.int32)}, 4)


def test_labels_of_a_wrong_dtype():
    with pytest.raises(TypeError, match="forget: expected an integer dtype, got float64"):
        check_labels({"forget": np.zeros((1, 2))}, 4)
