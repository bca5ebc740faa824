"""Task gradients against ``jax.jacrev``, all at once and a few at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.mtl import gram, mgda, task_grads

TASKS = 5
RNG = np.random.default_rng(0)
PARAMS = {
    "trunk": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32),
    "heads": jnp.asarray(RNG.normal(size=(TASKS, 6)), jnp.float32),
}
BATCH = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)


def losses_of(params, batch, power=2.0):
    return jnp.mean(jnp.abs(jnp.tanh(batch @ params["trunk"]) @ params["heads"].T) ** power, axis=0)


def assert_trees_close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, TASKS, 100])
def test_jacobian(chunk_size):
    losses, jac = jax.jit(lambda p, b: task_grads(losses_of, p, b, chunk_size=chunk_size))(PARAMS, BATCH)
    assert_trees_close(losses, losses_of(PARAMS, BATCH))
    assert_trees_close(jac, jax.jacrev(losses_of)(PARAMS, BATCH))


def test_eager_is_jit():
    assert_trees_close(
        task_grads(losses_of, PARAMS, BATCH), jax.jit(task_grads, static_argnums=0)(losses_of, PARAMS, BATCH)
    )


def test_more_arguments_and_auxiliary_output():
    def with_aux(params, batch, power):
        return losses_of(params, batch, power), {"mean": batch.mean()}

    (losses, aux), jac = task_grads(with_aux, PARAMS, BATCH, 4.0, has_aux=True)
    assert_trees_close(losses, losses_of(PARAMS, BATCH, 4.0))
    assert_trees_close(jac, jax.jacrev(losses_of)(PARAMS, BATCH, 4.0))
    assert aux["mean"] == BATCH.mean()


def test_the_forward_pass_runs_once():
    calls = []

    def counted(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return losses_of(params, batch)

    jax.block_until_ready(task_grads(counted, PARAMS, BATCH))
    jax.effects_barrier()
    assert len(calls) == 1


def test_heads_of_other_tasks_have_no_gradient():
    _, jac = task_grads(losses_of, PARAMS, BATCH)
    others = ~np.eye(TASKS, dtype=bool)
    np.testing.assert_array_equal(np.asarray(jac["heads"])[others], 0)


def test_low_precision_parameters_keep_their_dtype():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    _, jac = task_grads(losses_of, params, BATCH.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(jac)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(jnp.shape, jac) == {"trunk": (TASKS, 4, 6), "heads": (TASKS, TASKS, 6)}
    reference = task_grads(losses_of, PARAMS, BATCH)[1]["trunk"]
    size = np.abs(reference).max()
    np.testing.assert_allclose(jac["trunk"].astype(jnp.float32), reference, atol=0.1 * size)


def test_gradient_through_the_weighting():
    """A hyper-gradient: the shortest combination, differentiated by the batch."""

    def shortest(batch):
        _, jac = task_grads(losses_of, PARAMS, batch)
        G = gram(jac["trunk"])
        weights = mgda(G)
        return weights @ G @ weights

    gradient = jax.jit(jax.grad(shortest))(BATCH)
    assert np.all(np.isfinite(gradient))
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    expected = 1e-2 * float(jnp.linalg.norm(gradient))
    change = float(shortest(BATCH + step) - shortest(BATCH - step)) / 2
    assert change == pytest.approx(expected, rel=0.05)
