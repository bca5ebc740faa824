"""The judge of rationales: what it reads, what it ignores, types, sharding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import ENCODER_DECODER_RULES, EncoderDecoderConfig, encoder_decoder, rationale_judge
from jaxneg.nn.rationale_judge import joined
from jaxneg.train import make_mesh, shardings

SEPARATOR = 10
CONFIG = EncoderDecoderConfig(vocab=12, width=8, heads=2, hidden=8, encoder_layers=1, decoder_layers=1)
MODEL = rationale_judge(CONFIG, SEPARATOR)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
apply = jax.jit(MODEL.apply)


def inputs(rows=3, sets=2, source=5, tokens=4, seed=0):
    rng = np.random.default_rng(seed)
    question, rationales = rng.integers(0, 10, (rows, source)), rng.integers(0, 10, (rows, sets, tokens))
    masks = (
        np.arange(size) < rng.integers(1, size, shape)[..., None]
        for size, shape in ((source, (rows,)), (tokens, (rows, sets)))
    )
    return question, next(masks), rationales, next(masks)


def test_joined():
    some = np.array([True, True, False])
    tokens, mask = joined(np.array([5, 6, 0]), some, np.array([7, 8, 3]), some, 9)
    assert tokens[:5].tolist() == [5, 6, 9, 7, 8]
    assert mask.tolist() == [True] * 5 + [False] * 2


def test_padding_is_not_read():
    """What padding holds, and how much of it there is; but tokens, order and sides are read."""
    question, question_mask, rationales, mask = inputs()
    found = apply(PARAMS, question, question_mask, rationales, mask)
    assert found.shape == (3, 2)
    assert ((found > 0) & (found < 1)).all()
    other = np.where(question_mask, question, 3), np.where(mask, rationales, 4)
    np.testing.assert_allclose(apply(PARAMS, other[0], question_mask, other[1], mask), found, rtol=1e-5)
    cut = question_mask.sum(1).max()
    shorter = apply(PARAMS, question[:, :cut], question_mask[:, :cut], rationales, mask)
    np.testing.assert_allclose(shorter, found, rtol=1e-4)
    changed = rationales.copy()
    changed[:, :, 0] = (changed[:, :, 0] + 1) % 10
    assert (np.abs(apply(PARAMS, question, question_mask, changed, mask) - found) > 1e-4).any()
    alone = apply(PARAMS, question, question_mask, rationales[:, ::-1], mask[:, ::-1])
    np.testing.assert_allclose(alone, found[:, ::-1], rtol=1e-5)


@pytest.mark.slow
def test_its_encoder_is_that_of_the_encoder_decoder():
    """Same paths and shapes, so that pretrained ones fit; gradients are finite; bfloat16 agrees."""
    theirs = jax.eval_shape(encoder_decoder(CONFIG).init, jax.random.key(0))
    for part in ("embed", "encoder"):
        assert jax.tree.map(jnp.shape, PARAMS[part]) == jax.tree.map(jnp.shape, theirs[part])
    arrays = inputs()
    gradient = jax.jit(jax.grad(lambda params: MODEL.apply(params, *arrays).sum()))(PARAMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    low = rationale_judge(dataclasses.replace(CONFIG, dtype=jnp.bfloat16), SEPARATOR)
    found = low.apply(PARAMS, *arrays)
    np.testing.assert_allclose(found, apply(PARAMS, *arrays), atol=0.03)
    mapped = jax.vmap(lambda params: MODEL.apply(params, *arrays))(
        jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), PARAMS)
    )
    np.testing.assert_allclose(mapped[0], apply(PARAMS, *arrays), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_as_unsharded(explicit):
    arrays = inputs(rows=8)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    rules = () if explicit else ENCODER_DECODER_RULES
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS, shardings(PARAMS, mesh, rules, fsdp=None))
        found = jax.jit(MODEL.apply)(params, *(jax.device_put(array, spread) for array in arrays))
    np.testing.assert_allclose(found, apply(PARAMS, *arrays), rtol=1e-4)


def test_too_long_for_learned_positions():
    short = rationale_judge(dataclasses.replace(CONFIG, positions="learned", max_length=9), SEPARATOR)
    shapes = jax.eval_shape(short.init, jax.random.key(0))
    with pytest.raises(ValueError, match="10 are more than max_length = 9"):
        jax.eval_shape(short.apply, shapes, *inputs())
