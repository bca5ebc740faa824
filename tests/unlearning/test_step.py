"""The whole step: what it updates, the three ways to the reference, meshes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from jaxneg.unlearning import (
    IGNORE,
    UnlearnConfig,
    make_unlearn_loss,
    make_unlearn_step,
    precompute_reference,
)

VOCAB, ROWS, TOKENS = 12, 8, 6
CFG = UnlearnConfig("npo+rt", beta=0.5)
TX = optax.sgd(0.3)


def _apply(params, tokens):
    """A bigram model."""
    return jax.nn.one_hot(tokens, VOCAB, dtype=params.dtype) @ params


def _params(seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32))


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    found = {}
    for part in ("forget", "retain"):
        ids = random.integers(0, VOCAB, (ROWS, TOKENS)).astype(np.int32)
        labels = np.where(np.arange(TOKENS) < random.integers(1, TOKENS, (ROWS, 1)), IGNORE, ids)
        found[part] = {"tokens": jnp.asarray(ids), "labels": jnp.asarray(labels.astype(np.int32))}
    return found


@pytest.fixture(scope="module")
def expected(batch):
    """The loss and the parameters after plain gradient descent."""
    cached = precompute_reference(_apply, _params(1), batch, CFG)
    loss_fn = make_unlearn_loss(_apply, CFG)
    (loss, _), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(_params(0), cached, None)
    return loss, _params(0) - 0.3 * gradient


def _same(found, expected):
    np.testing.assert_allclose(found.metrics["loss"], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found.params, expected[1], rtol=1e-5, atol=1e-6)


def test_the_reference_as_numbers_and_as_parameters(batch, expected):
    step = make_unlearn_step(_apply, CFG, TX)
    cached = precompute_reference(_apply, _params(1), batch, CFG)
    _same(step(_params(0), TX.init(_params(0)), cached), expected)
    found = step(_params(0), TX.init(_params(0)), batch, _params(1))
    _same(found, expected)
    assert {"forget_loss", "retain_loss", "npo_weight"} <= found.metrics.keys()


def test_the_reference_as_a_function_of_what_is_trained(batch, expected):
    """As with LoRA, whose adapters are off in the reference; what is frozen stays."""
    both = {"frozen": _params(1), "change": _params(0) - _params(1)}
    tx = optax.transforms.partition(
        {"change": TX, "frozen": optax.set_to_zero()}, {"change": "change", "frozen": "frozen"}
    )
    step = make_unlearn_step(
        lambda p, tokens: _apply(jax.lax.stop_gradient(p["frozen"]) + p["change"], tokens),
        CFG,
        tx,
        reference=lambda p, tokens: _apply(p["frozen"], tokens),
    )
    found = step(both, tx.init(both), batch)
    np.testing.assert_array_equal(found.params["frozen"], both["frozen"])
    _same(found._replace(params=found.params["frozen"] + found.params["change"]), expected)
    with pytest.raises(
        ValueError, match="ref_params: expected None where the step was made with a reference"
    ):
        step(both, tx.init(both), batch, both)


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
def test_sharded_equals_unsharded(kind, batch, expected):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    step = make_unlearn_step(_apply, CFG, TX, mesh)
    _same(step(_params(0), TX.init(_params(0)), batch, _params(1)), expected)


@pytest.mark.slow
def test_steps_forget(batch):
    """Donated arguments are gone; NPO's weight falls from 1."""
    step, params = make_unlearn_step(_apply, CFG, TX, donate=True), _params(1)
    cached = precompute_reference(_apply, params, batch, CFG)
    state, weights = (params, TX.init(params)), []
    for _ in range(20):
        *state, metrics = step(*state, cached)
        weights.append(float(metrics["npo_weight"]))
    assert params.is_deleted()
    np.testing.assert_allclose(weights[0], 1, rtol=1e-5)
    assert weights[-1] < 0.9


def test_mistakes(batch):
    params = _params(0)
    with pytest.raises(ValueError, match="'rmu' reads hidden states: build its loss by make_unlearn_loss"):
        make_unlearn_step(_apply, UnlearnConfig("rmu"), TX)
    with pytest.raises(ValueError, match="mesh: expected an axis 'data', got"):
        make_unlearn_step(_apply, CFG, TX, jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,)))
    with pytest.raises(
        ValueError, match=r"expected 'ref_seq_nll' for 'npo.rt'.*precompute_reference adds it"
    ):
        make_unlearn_step(_apply, CFG, TX)(params, TX.init(params), batch)
    other = precompute_reference(_apply, params, batch, CFG)
    other["forget"]["ref_rows"] = other["forget"]["ref_rows"][::-1]
    assert jnp.isnan(make_unlearn_step(_apply, CFG, TX)(params, TX.init(params), other).metrics["loss"])
