"""Modules as pure functions, and products that are not ambiguous."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.nn import bridge, contract
from jaxneg.train import make_mesh


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.scale = nnx.Param(jnp.full(3, 2.0))

    def __call__(self, x, shift=0.0):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x * self.scale + shift


def test_pure_functions_are_the_module():
    model, key, x = bridge(Stack), jax.random.key(3), jnp.ones((2, 3))
    params = model.init(key)
    assert set(params) == {"layers", "scale"}
    assert set(params["layers"]) == {str(i) for i in range(11)}
    assert set(params["layers"]["10"]) == {"kernel", "bias"}
    expected = Stack(nnx.Rngs(key))(x)
    np.testing.assert_array_equal(model.apply(params, x), expected)
    np.testing.assert_array_equal(model.apply(params, x, shift=1.0), expected + 1)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-6)


def test_the_layers_keep_their_order():
    model = bridge(Stack)
    params = model.init(jax.random.key(0))
    params["layers"]["10"]["kernel"] = jnp.zeros((3, 3))
    params["layers"]["10"]["bias"] = jnp.full(3, 0.5)
    np.testing.assert_allclose(
        model.apply(params, jnp.ones((1, 3))), 2 * np.tanh(np.full((1, 3), 0.5)), rtol=1e-6
    )


def test_transforms():
    model = bridge(Stack)
    params, x = model.init(jax.random.key(0)), jnp.ones((4, 2, 3))
    grads = jax.grad(lambda p: model.apply(p, x[0]).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert float(jnp.abs(grads["layers"]["0"]["kernel"]).sum()) > 0
    assert jax.vmap(model.apply, (None, 0))(params, x).shape == (4, 2, 3)
    keys = jax.random.split(jax.random.key(0), 5)
    assert jax.vmap(model.init)(keys)["layers"]["3"]["bias"].shape == (5, 3)


def test_module_with_other_state():
    with pytest.raises(TypeError, match=r"holds nnx.Param only, got also \['BatchStat'\]"):
        bridge(lambda rngs: nnx.BatchNorm(3, rngs=rngs))


def test_parameters_of_another_model():
    model = bridge(Stack)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="params: 'scale' is missing or too much"):
        model.apply({"layers": params["layers"]}, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="params: 'extra' is missing or too much"):
        model.apply(params | {"extra": 1.0}, jnp.ones((1, 3)))


@pytest.mark.parametrize("explicit", [False, True])
def test_contraction_over_a_sharded_axis(explicit):
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 6, 8)).astype(np.float32), rng.normal(size=(4, 8, 5)).astype(np.float32)
    numbers = (((2,), (1,)), ((0,), (0,)))
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in ((a, P("data", None, "model")), (b, P("data", "model")))
        ]
        product = jax.jit(contract, static_argnums=2)(*placed, numbers)
        grad = jax.jit(jax.grad(lambda x: contract(x, placed[1], numbers).sum()))(placed[0])
    np.testing.assert_allclose(product, a @ b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, np.broadcast_to(b.sum(2)[:, None], a.shape), rtol=1e-5, atol=1e-5)
    if explicit:
        assert product.sharding.spec[0] == "data"
