"""Gram matrices and combinations: values, precision, sharding, and what crosses the mesh."""

import contextlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.mtl import combine, cross_gram, gram, gram_sharded, task_grads
from jaxneg.mtl.gram import _blocked_products, _products

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def jacobian(tasks, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(tasks, 16, 8)), dtype),
        "bias": jnp.asarray(rng.normal(size=(tasks, 32)), dtype),
        "scale": jnp.asarray(rng.normal(size=(tasks,)), dtype),
    }


def flat(jac):
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jac)], 1
    )


def test_gram_and_combination_are_matrix_products():
    jac = jacobian(3)
    J, weights = flat(jac), np.array([0.5, -1.0, 2.0])
    np.testing.assert_allclose(gram(jac), J @ J.T, rtol=1e-5)
    np.testing.assert_allclose(
        flat(jax.tree.map(lambda g: g[None], combine(jnp.asarray(weights), jac)))[0],
        weights @ J,
        rtol=1e-4,
        atol=1e-5,
    )


def test_products_of_two_batches():
    left, right = jacobian(3), jacobian(3, seed=1)
    np.testing.assert_allclose(cross_gram(left, right), flat(left) @ flat(right).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tasks", "parameters"), [(3, 16384), (3, 3 * 16384 + 77), (17, 9000)])
def test_blocks_are_the_product(tasks, parameters):
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(tasks, parameters)), jnp.float32)
    np.testing.assert_allclose(_blocked_products(leaf), _products(leaf), rtol=1e-5, atol=1e-3)


def test_blocks_differentiate_like_the_product():
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 17000)), jnp.float32)
    weights = jnp.arange(9.0).reshape(3, 3)
    ours, product = (
        jax.grad(lambda x, f=f: jnp.sum(weights * f(x)))(leaf) for f in (_blocked_products, _products)
    )
    np.testing.assert_allclose(ours, product, rtol=1e-5, atol=1e-5)


def test_a_lone_device_multiplies_in_blocks(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(3, 70000)), jnp.float32)
    assert "while" in str(jax.make_jaxpr(gram)(leaf)) or "scan" in str(jax.make_jaxpr(gram)(leaf))
    np.testing.assert_allclose(jax.jit(gram)(leaf), _products(leaf), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    rows = jnp.full((2, 40000), 0.1, dtype)
    exact = 40000 * float(rows[0, 0]) ** 2
    for product in (gram, _products, _blocked_products):
        assert product(rows).dtype == jnp.float32
        np.testing.assert_allclose(product(rows), exact, rtol=1e-4)
    combined = combine(jnp.array([1.0, 2.0]), rows)
    assert combined.dtype == dtype
    np.testing.assert_allclose(np.asarray(combined, np.float32), 3 * float(rows[0, 0]), rtol=1e-2)


def test_float64_stays(x64):
    jac = jacobian(3, dtype=np.float64)
    assert gram(jac).dtype == jnp.float64
    np.testing.assert_allclose(gram(jac), flat(jac) @ flat(jac).T, rtol=1e-13)
    assert combine(jnp.ones(3), jac)["bias"].dtype == jnp.float64


SPECS = {
    "both axes": {"kernel": P(None, "data", "model"), "bias": P(None, "model"), "scale": P()},
    "one axis over all": {
        "kernel": P(None, ("data", "model")),
        "bias": P(None, ("data", "model")),
        "scale": P(),
    },
    "replicated": {"kernel": P(), "bias": P(), "scale": P()},
    "task axis": {"kernel": P("data", None, "model"), "bias": P("data"), "scale": P("data")},
}


@pytest.mark.parametrize("inside_mesh", [False, True])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", SPECS)
def test_sharded_is_unsharded(name, axis_type, inside_mesh):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    tasks = 4
    jac = jacobian(tasks)
    J, weights = flat(jac), jnp.arange(1.0, tasks + 1)
    sharded = {
        leaf: jax.device_put(jac[leaf], NamedSharding(mesh, spec)) for leaf, spec in SPECS[name].items()
    }
    with jax.set_mesh(mesh) if inside_mesh else contextlib.nullcontext():
        matrix = jax.jit(gram)(sharded)
        combined = jax.jit(combine)(weights, sharded)
    np.testing.assert_allclose(matrix, J @ J.T, rtol=1e-5, atol=1e-5)
    expected = combine(weights, jac)
    for leaf in jac:
        np.testing.assert_allclose(combined[leaf], expected[leaf], rtol=1e-5, atol=1e-5)
        if name != "task axis":
            kept = NamedSharding(mesh, P(*SPECS[name][leaf][1:]))
            assert combined[leaf].sharding.is_equivalent_to(kept, combined[leaf].ndim)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("tasks", [3, 9])
def test_collectives_carry_only_the_gram_matrix(tasks, axis_type):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    spec = NamedSharding(mesh, P(None, "data", "model"))
    jac = [jax.device_put(jnp.ones((tasks, 64, 128)), spec) for _ in range(3)]

    def aggregate(jac):
        return combine(jnp.sum(gram(jac), axis=0), jac)

    text = jax.jit(aggregate).lower(jac).compile().as_text()
    moved = [sum(_sizes(shapes)) for shapes, _ in COLLECTIVE.findall(text)]
    assert moved, "nothing crossed the mesh: the Gram matrix cannot be complete"
    # One matrix for each leaf and mesh axis at most; a gathered leaf would be 8192 T.
    assert sum(moved) <= 3 * 2 * tasks**2


def _sizes(shapes):
    return [
        math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


def test_gram_inside_shard_map():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    J = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)
    inside = jax.shard_map(
        lambda block: gram_sharded({"w": block}, "model"), mesh=mesh, in_specs=P(None, "model"), out_specs=P()
    )
    np.testing.assert_allclose(jax.jit(inside)(J), J @ J.T, rtol=1e-5, atol=1e-5)


def test_task_grads_on_an_explicit_mesh():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    params = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("model")))

    def losses(params, batch):
        return jnp.stack([jnp.sum(params**2), jnp.sum(jnp.sin(params)) * batch])

    with jax.set_mesh(mesh):
        for chunk_size in (None, 1):
            _, jac = jax.jit(lambda p, c=chunk_size: task_grads(losses, p, 2.0, chunk_size=c))(params)
            np.testing.assert_allclose(jac[0], 2 * np.arange(8.0), rtol=1e-6)
            np.testing.assert_allclose(jac[1], 2 * np.cos(np.arange(8.0)), rtol=1e-5, atol=1e-6)
