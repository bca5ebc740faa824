"""Projection heads: each head is a perceptron of its own, and what normalisation and mistakes do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import mlp_mixer, multi_head_predictor, multi_head_projector, resnet_cifar

X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)


def test_each_head_is_a_perceptron():
    model = multi_head_projector(4, heads=3, hidden=5, outputs=2)
    params = model.init(jax.random.key(0))
    found = model.apply(params, X)
    first, second = params["layers"]["0"], params["layers"]["1"]
    for head in range(3):
        hidden = np.maximum(X @ first["kernel"][head] + first["bias"][head], 0)
        expected = hidden @ second["kernel"][head] + second["bias"][head]
        np.testing.assert_allclose(found[:, head], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[:, 0], found[:, 1])
    for layer, inputs in ((first, 4), (second, 5)):  # PyTorch's initialisation
        assert 0.5 < np.abs(layer["kernel"]).max() * inputs**0.5 <= 1


def test_normalised_heads():
    """Three layers; the last is standardised over the batch and has neither scale nor bias."""
    model = multi_head_projector(4, heads=2, hidden=5, outputs=3, norm=True)
    params = model.init(jax.random.key(0))
    found = np.asarray(model.apply(params, X))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-2)
    assert len(params["layers"]) == 3
    assert set(params["norms"]) == {"0", "1"}
    predictor = multi_head_predictor(3, heads=2, hidden=2)
    predicted = predictor.apply(predictor.init(jax.random.key(1)), jnp.asarray(found))
    assert predicted.shape == found.shape


def test_computation_in_bfloat16():
    model = multi_head_projector(4, heads=2, hidden=5, outputs=3, norm=True, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0))
    assert model.apply(params, X).dtype == jnp.bfloat16
    assert params["layers"]["0"]["kernel"].dtype == jnp.float32


def test_mixer_reads_patches():
    """Patches in another order give the same mean where places are not mixed, and another where they are."""
    model = mlp_mixer(4, patch=2, width=6, layers=1)
    params = model.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 4, 3)), jnp.float32)
    blind = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "token" in jax.tree_util.keystr(path) else leaf, params
    )
    swapped = jnp.concatenate([x[:, 2:], x[:, :2]], 1)  # the upper patches below
    np.testing.assert_allclose(model.apply(blind, swapped), model.apply(blind, x), rtol=1e-4, atol=1e-5)
    assert np.abs(model.apply(params, swapped) - model.apply(params, x)).max() > 1e-3
    with pytest.raises(ValueError, match=r"x: expected images \[batch, 4, 4, 3\]"):
        model.apply(params, x[:, :3])


def test_pooled_resnet():
    from jaxneg.nn import resnet

    pooled, whole = resnet_cifar(18, width=2), resnet(18, width=2, small_images=True)
    params = whole.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 8, 3)), jnp.float32)
    own, features = (jax.jit(model.apply)(params, x) for model in (pooled, whole))
    np.testing.assert_allclose(own, features.mean((1, 2)), rtol=1e-5)
    assert own.shape == (2, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: multi_head_projector(4, heads=0), "heads: expected at least 1, got 0"),
        (lambda: multi_head_predictor(0), "outputs: expected at least 1, got 0"),
        (lambda: mlp_mixer(5, patch=2), "patch: expected a divisor of size 5, got 2"),
        (lambda: mlp_mixer(4, width=0), "expected at least 1, got 4, 4, 0"),
        (lambda: resnet_cifar(20), "depth: expected one of"),
        (lambda: resnet_cifar(18, width=0), "width: expected at least 1, got 0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
