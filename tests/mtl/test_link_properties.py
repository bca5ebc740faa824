"""What holds for every method as a link: one task, identical tasks, tasks in another order, no conflict."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.mtl import multitask

# Compilation makes these the dearest tests: they are left to the slow suite.
pytestmark = pytest.mark.slow

PARAMETERS = 8
NEEDS = {
    name: {} for name in ("equal", "rlw", "si", "gls", "stch", "mgda", "pcgrad", "cagrad", "imtl_g", "nash")
}
NEEDS |= {name: {} for name in ("fairgrad", "aligned_mtl", "upgrad", "dualproj", "config", "graddrop")}
NEEDS |= {
    name: {"n_tasks": True}
    for name in ("dwa", "uw", "imtl_l", "famo", "gradnorm", "imtl", "gradvac", "moco", "dbmtl", "excess_mtl")
} | {name: {"n_tasks": True} for name in ("sdmgrad", "modo", "pcd")}
# Methods that draw an order or weights for each task, or that have a first one.
ORDERED = {"rlw", "pcgrad", "gradvac", "pcd"}
# Of one task these make a positive multiple; the others its gradient.
MULTIPLES = ("si", "nash", "fairgrad", "cagrad", "uw", "imtl_l", "imtl", "moco", "dbmtl")
QUICK = ("mgda", "nash", "upgrad", "famo", "graddrop")
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NEEDS]
SYMMETRIC = [method for method, name in zip(METHODS, NEEDS, strict=True) if name not in ORDERED]
ROWS = np.random.default_rng(0).normal(size=(3, PARAMETERS)).astype(np.float32)
LOSSES = np.array([0.5, 1.0, 2.0], np.float32)


def directions(method, J, losses, steps=3):
    """Of some steps with the same gradients."""
    options = {"n_tasks": len(J)} if NEEDS[method] else {}
    link, params = multitask(method, **options), jnp.zeros(PARAMETERS)

    @jax.jit
    def step(state, key, J, losses):
        return link.update(J, state, params, losses=losses, key=key, pair=(J, J))

    state, found = link.init(params), []
    for number in range(steps):
        direction, state = step(state, jax.random.key(number), jnp.asarray(J), jnp.asarray(losses))
        found.append(np.asarray(direction))
    return np.stack(found)


def test_no_method_is_left_out():
    with pytest.raises(ValueError, match="method: expected one of") as error:
        multitask("no such method")
    names = str(error.value).removeprefix("method: expected one of ").split(", or a function")[0].split(", ")
    assert sorted(names) == sorted(NEEDS)


@pytest.mark.parametrize("method", METHODS)
def test_one_task_is_its_gradient(method):
    for direction in directions(method, ROWS[:1], LOSSES[1:2] * 1.5):
        factor = direction @ ROWS[0] / (ROWS[0] @ ROWS[0])
        np.testing.assert_allclose(direction, factor * ROWS[0], atol=1e-5)
        assert factor > 0
        if method not in MULTIPLES:
            assert factor == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_identical_gradients_are_the_direction(method):
    for direction in directions(method, np.repeat(ROWS[:1], 3, axis=0), LOSSES):
        cosine = direction @ ROWS[0] / np.linalg.norm(direction) / np.linalg.norm(ROWS[0])
        assert cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", SYMMETRIC)
def test_the_order_of_tasks_does_not_matter(method):
    order = np.array([2, 0, 1])
    plain, permuted = directions(method, ROWS, LOSSES), directions(method, ROWS[order], LOSSES[order])
    np.testing.assert_allclose(permuted, plain, atol=2e-4 * np.abs(plain).max())


@pytest.mark.parametrize(
    "method",
    ["mgda", "upgrad", *(pytest.param(m, marks=pytest.mark.slow) for m in ("dualproj", "nash", "config"))],
)
def test_no_task_is_hurt(x64, method):
    """``J d >= 0``; UPGrad's and DualProj's regularisation costs 1e-4 of the trace."""
    link = multitask(method)
    jacobians = jnp.asarray(np.random.default_rng(1).normal(size=(200, 3, PARAMETERS)))
    found = jax.jit(jax.vmap(lambda J: J @ link.update(J, link.init(J[0]))[0]))(jacobians)
    slack = 1e-3 if method in ("upgrad", "dualproj") else 1e-7
    assert np.all(found >= -slack * np.sum(jacobians**2, axis=(1, 2))[:, None])
    # The sum does hurt tasks here.
    assert np.any(np.einsum("ntp,np->nt", jacobians, jacobians.sum(1)) < 0)


@pytest.mark.parametrize(("alpha", "degree"), [(0.5, 1 / 3), (1.0, 0.0), (2.0, -1 / 3)])
def test_fairgrad_scales_as_its_equation(x64, alpha, degree):
    """``G w = w^(-1/alpha)``: a common factor s of the gradients gives ``s^((1-alpha) / (1+alpha)) d``."""
    link = multitask("fairgrad", alpha=alpha)
    plain, scaled = (
        link.update(jnp.asarray(s * ROWS, jnp.float64), link.init(jnp.zeros(PARAMETERS)))[0] for s in (1, 7.0)
    )
    np.testing.assert_allclose(scaled, 7.0**degree * plain, rtol=1e-6)


@pytest.mark.parametrize("method", ["si", "gls"])
def test_the_scale_of_losses_does_not_matter(method):
    """A factor on one loss scales its gradient too: the direction stays, up to GLS's common factor."""
    scales = np.array([0.1, 1.0, 10.0], np.float32)
    (plain,) = directions(method, ROWS, LOSSES, 1)
    (scaled,) = directions(method, scales[:, None] * ROWS, scales * LOSSES, 1)
    np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-5)


def test_a_chain_with_an_optimiser_keeps_shapes():
    tx = optax.chain(multitask("upgrad"), optax.adam(0.1))
    params = jnp.zeros(PARAMETERS)
    updates, _ = tx.update(jnp.asarray(ROWS), tx.init(params), params)
    assert updates.shape == params.shape
