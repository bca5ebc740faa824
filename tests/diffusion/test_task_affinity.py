"""Task affinity: goldens, brute force, streaming in blocks, sharding, degenerate gradients, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.diffusion import task_affinity, task_affinity_of


def tiny_network(flat, x, t, *, d, h, T):
    """The goldens' network: tanh of a dense layer of x and four features of t / T, then another layer."""
    u = jnp.broadcast_to(t / T, x.shape[:1])[:, None]
    features = jnp.concatenate(
        [x, jnp.sin(jnp.pi * u), jnp.cos(jnp.pi * u), jnp.sin(4 * jnp.pi * u), jnp.cos(4 * jnp.pi * u)], 1
    )
    W1, b1, W2, b2 = jnp.split(flat, np.cumsum([(d + 4) * h, h, h * d]))
    return jnp.tanh(features @ W1.reshape(d + 4, h) + b1) @ W2.reshape(h, d) + b2


@pytest.mark.golden("ant", "task_affinity.npz")
def test_golden(golden, x64):
    d, h, T = (int(golden[name]) for name in ("d", "h", "T"))
    grads, alphas_cumprod = golden["grads"], golden["alphas_cumprod"]
    found = np.stack([task_affinity(jnp.asarray(g)) for g in grads])
    np.testing.assert_allclose(found, golden["tas_per_checkpoint"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.mean(0), golden["tas_mean"], rtol=0, atol=1e-10)

    # The same from the data: two batches of half the examples, with the noise of the golden in the batch.
    def loss_fn(flat, batch, t, key):
        noise = batch["noise"][:, t]
        x = jnp.sqrt(alphas[t]) * batch["x0"] + jnp.sqrt(1 - alphas[t]) * noise
        return jnp.mean((tiny_network(flat, x, t, d=d, h=h, T=T) - noise) ** 2, axis=1)

    alphas = jnp.asarray(alphas_cumprod)
    x0, noise = golden["x0"], golden["eps"].swapaxes(0, 1)
    batches = {"x0": x0.reshape(2, -1, d), "noise": noise.reshape(2, -1, T, d)}
    affinity_of = functools.partial(task_affinity_of, loss_fn, key=jax.random.key(0), batches=batches)
    for params, expected in zip(golden["params"], golden["tas_per_checkpoint"], strict=True):
        found = affinity_of(jnp.asarray(params), timesteps=np.arange(T))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    grid = np.array([1, T // 2, T - 1])
    np.testing.assert_allclose(
        affinity_of(jnp.asarray(params), timesteps=grid), expected[np.ix_(grid, grid)], rtol=0, atol=1e-10
    )


def sample(seed=0, T=6, shapes=((3, 5), (7,))):
    rng = np.random.default_rng(seed)
    leaves = [rng.normal(size=(T, *shape)).astype(np.float32) for shape in shapes]
    return {str(number): jnp.asarray(leaf) for number, leaf in enumerate(leaves)}


def flat(gradients):
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in gradients.values()], 1
    )


def cosines(rows):
    units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
    return units @ units.T


def test_trees_are_the_same_as_rows():
    gradients = sample()
    found = task_affinity(gradients)
    np.testing.assert_allclose(found, cosines(flat(gradients)), atol=1e-6)
    np.testing.assert_allclose(found, task_affinity(jnp.asarray(flat(gradients))), atol=1e-6)
    np.testing.assert_allclose(found, jax.jit(task_affinity)(gradients), atol=1e-6)
    stacked = jax.vmap(task_affinity)(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), gradients))
    np.testing.assert_allclose(stacked, np.stack([found, found]), atol=1e-6)


def test_no_gradient_no_affinity():
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.float32).at[2].set(0.0)
    found = np.asarray(task_affinity(gradients))
    assert np.all(found[2] == 0)
    assert np.all(found[:, 2] == 0)
    np.testing.assert_allclose(np.diagonal(found)[[0, 1, 3]], 1, rtol=1e-6)
    derivative = jax.grad(lambda g: task_affinity(g)[0, 1])(gradients)
    assert np.all(np.isfinite(derivative))


def test_low_precision_is_accumulated_in_float32():
    gradients = jnp.ones((3, 20_000), jnp.bfloat16)
    found = task_affinity(gradients)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(axis_type):
    gradients = sample(shapes=((8, 5), (16,)))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    specs = {"0": PartitionSpec(None, "model"), "1": PartitionSpec(None, ("data", "model"))}
    placed = {
        name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in gradients.items()
    }
    with jax.set_mesh(mesh):
        found = jax.jit(task_affinity)(placed)
    np.testing.assert_allclose(found, task_affinity(gradients), atol=1e-6)


def linear_loss(params, batch, t, key):
    """Its gradients depend on the timestep, the examples and the key."""
    scale = 1 + 0.3 * jax.random.normal(key, batch.shape)
    return (batch * scale) @ (params["w"] * jnp.cos(t * jnp.arange(4.0))) + params["b"]


@pytest.mark.slow
def test_blocks_of_rows():
    params = {"w": jnp.ones(4), "b": jnp.zeros(())}
    batches = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    timesteps, key = jnp.array([0, 3, 4, 8, 9]), jax.random.key(3)
    compute = jax.jit(functools.partial(task_affinity_of, linear_loss), static_argnames="rows")
    whole = compute(params, timesteps, batches, key)
    gradients = []
    for place, t in enumerate(np.asarray(timesteps)):
        keys = [jax.random.fold_in(jax.random.fold_in(key, place), number) for number in range(2)]
        gradients.append(
            jax.tree.map(
                lambda a, b: a + b,
                *(
                    jax.grad(lambda p, b=b, k=k, t=t: linear_loss(p, b, t, k).mean())(params)
                    for b, k in zip(batches, keys, strict=True)
                ),
            )
        )
    rows = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in gradients])
    np.testing.assert_allclose(whole, cosines(rows), atol=1e-5)
    for count in (2, 3):
        np.testing.assert_allclose(compute(params, timesteps, batches, key, rows=count), whole, atol=1e-6)
    # The same key, the same answer; another key, another answer.
    assert not np.allclose(compute(params, timesteps, batches, jax.random.key(4)), whole, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5, 9])
def test_any_number_of_rows(rows):
    params = {"w": jnp.ones(4), "b": jnp.zeros(())}
    batches, key = jnp.ones((1, 3, 4)), jax.random.key(0)
    whole = task_affinity_of(linear_loss, params, jnp.arange(5), batches, key)
    np.testing.assert_allclose(
        task_affinity_of(linear_loss, params, jnp.arange(5), batches, key, rows=rows), whole, atol=1e-6
    )


def test_bad_input():
    params, batches, key = {"w": jnp.ones(4), "b": jnp.zeros(())}, jnp.ones((2, 5, 4)), jax.random.key(0)

    def of(timesteps=(0, 1), batches=batches, **options):
        return task_affinity_of(linear_loss, params, np.array(timesteps), batches, key, **options)

    cases = [
        (ValueError, r"gradients: expected \[T, P\].* got shapes \[\]", lambda: task_affinity({})),
        (ValueError, r"gradients: .* got shapes \[\(\)\]", lambda: task_affinity(jnp.ones(()))),
        (ValueError, r"gradients: .* got shapes \[\(0, 3\)\]", lambda: task_affinity(jnp.ones((0, 3)))),
        (
            ValueError,
            r"gradients: .* got shapes \[\(2, 3\), \(3, 3\)\]",
            lambda: task_affinity([jnp.ones((2, 3)), jnp.ones((3, 3))]),
        ),
        (
            TypeError,
            "gradients: expected floating point, got int32",
            lambda: task_affinity(jnp.ones((2, 3), jnp.int32)),
        ),
        (ValueError, r"timesteps: expected \[T'\] with at least one, got shape \(0,\)", lambda: of(())),
        (TypeError, "timesteps: expected integers, got float", lambda: of((0.5, 1.0))),
        (ValueError, r"batches: .* got shapes \[\(0, 5, 4\)\]", lambda: of(batches=batches[:0])),
        (
            ValueError,
            r"batches: .* got shapes \[\(2, 5, 4\), \(1, 5, 4\)\]",
            lambda: of(batches=[batches, batches[:1]]),
        ),
        (ValueError, "rows: expected at least 1, or None for all at once, got 0", lambda: of(rows=0)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
