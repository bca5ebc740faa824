"""A trunk for all tasks and a head for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.nn import MLP_RULES, mlp
from jaxneg.train import make_mesh, partition_specs, shardings


def test_it_is_the_formula():
    model = mlp(4, (8, 6), (3, 1), activation=jnp.tanh)
    params = model.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    h = x
    for i in "01":
        h = np.tanh(h @ params["trunk"][i]["kernel"] + params["trunk"][i]["bias"])
    for i, output in enumerate(model.apply(params, x)):
        head = params["heads"][str(i)]
        np.testing.assert_allclose(output, h @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)


def test_without_a_trunk_it_is_linear():
    model = mlp(4, (), (2,))
    params = model.init(jax.random.key(0))
    assert set(params) == {"heads"}
    (y,) = model.apply(params, 2 * jnp.eye(4))
    np.testing.assert_allclose(y, 2 * params["heads"]["0"]["kernel"], rtol=1e-6)


def test_bfloat16():
    model = mlp(4, (8,), (2,), dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0))
    assert params["trunk"]["0"]["kernel"].dtype == jnp.float32
    assert model.apply(params, jnp.ones((3, 4)))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_is_unsharded(explicit):
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    model = mlp(6, (16, 8, 8), (3, 2), activation=jnp.tanh)
    params = model.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)

    def loss(params, x):
        return sum(jnp.square(y).mean() for y in model.apply(params, x))

    expected, expected_grads = jax.jit(jax.value_and_grad(loss))(params, x)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings(params, mesh, MLP_RULES))
        value, grads = jax.jit(jax.value_and_grad(loss))(
            placed, jax.device_put(x, NamedSharding(mesh, P("data")))
        )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected_grads)
    specs = partition_specs(params, mesh, MLP_RULES)
    assert specs["trunk"]["0"]["kernel"] == P(None, "model")
    assert specs["trunk"]["1"]["kernel"] == P("model", None)
    assert specs["heads"]["0"]["kernel"] == P()


@pytest.mark.parametrize("arguments", [(4, (8,), ()), (4, (0,), (1,)), (0, (), (1,)), (4, (), (-1,))])
def test_sizes_that_are_not_positive(arguments):
    with pytest.raises(ValueError, match="expected positive sizes and at least one task, got"):
        mlp(*arguments)
