"""What every method returns where the gradients leave it no choice: the table of degenerate inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.mtl import (
    aligned_mtl,
    cagrad,
    config,
    dualproj,
    fairgrad,
    gradvac,
    imtl_g,
    mgda,
    nash,
    pcd,
    pcgrad,
    upgrad,
)

METHODS = {
    "mgda": mgda,
    "mgda l2": partial(mgda, normalizer="l2"),
    "mgda frank_wolfe": partial(mgda, solver="frank_wolfe"),
    "mgda pgd": partial(mgda, solver="pgd"),
    "pcgrad": partial(pcgrad, key=jax.random.key(0)),
    "gradvac": lambda G: gradvac(G, jnp.zeros_like(G), key=jax.random.key(0))[0],
    "cagrad": cagrad,
    "cagrad fast": partial(cagrad, solver="fast"),
    "imtl_g": imtl_g,
    "imtl_g G": partial(imtl_g, form="G"),
    "nash": nash,
    "nash clipped": partial(nash, max_norm=1.0),
    "fairgrad 2": partial(fairgrad, alpha=2.0),
    "aligned_mtl": aligned_mtl,
    "aligned_mtl median": partial(aligned_mtl, scale_mode="median"),
    "upgrad": upgrad,
    "dualproj": dualproj,
    "config": config,
    "pcd": pcd,
}
FAIR = ("imtl_g", "imtl_g G", "nash", "fairgrad 2", "config")

ROWS = np.random.default_rng(0).normal(size=(3, 12))
JACOBIANS = {
    "all zero": np.zeros((3, 12)),
    "zero row": np.concatenate([ROWS[:2], np.zeros((1, 12))]),
    "identical": np.repeat(ROWS[:1], 3, axis=0),
    "tiny": 1e-6 * ROWS,
    "huge": 1e6 * ROWS,
    "opposite": np.stack([ROWS[0], -ROWS[0]]),
    "one task": 2 * ROWS[:1],
}


@pytest.fixture(params=["float32", pytest.param("float64", marks=pytest.mark.slow)])
def precision(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(params=METHODS)
def weigh(request, precision):
    """``weigh(case) -> (w, J)``; the programs of one method are compiled once for each number of tasks."""
    method = METHODS[request.param]
    jitted = jax.jit(method, compiler_options={"xla_backend_optimization_level": 0})

    def weigh(case):
        J = JACOBIANS[case].astype(precision)
        weights = jitted(jnp.asarray(J @ J.T))
        assert weights.dtype == precision
        return np.asarray(weights, np.float64), J.astype(np.float64)

    weigh.method = request.param
    return weigh


def test_degenerate(weigh, precision):
    """One test a method and precision, so that each program is compiled once."""
    double = precision == "float64"
    for case in JACOBIANS:
        weights, J = weigh(case)
        assert np.all(np.isfinite(weights)), case

    weights, J = weigh("all zero")
    if weigh.method in FAIR:
        np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)

    weights, J = weigh("zero row")
    if weigh.method in ("mgda", "mgda frank_wolfe"):
        assert weights[2] == pytest.approx(1, abs=1e-6 if weigh.method == "mgda" else 1e-2)
    if weigh.method in FAIR:
        # Dropped: the others are weighed as if it were not there.
        assert weights[2] == 0
        alone = np.asarray(METHODS[weigh.method](jnp.asarray((J[:2] @ J[:2].T).astype(precision))))
        np.testing.assert_allclose(weights[:2], alone, rtol=1e-8 if double else 1e-4)

    weights, J = weigh("identical")
    symmetric = weigh.method not in ("mgda pgd", "mgda frank_wolfe", "pcd")
    if symmetric:
        np.testing.assert_allclose(weights, weights[0], rtol=1e-6 if double else 2e-3)
    # Identical tasks: the direction is that task's.
    assert (weights @ J) @ J[0] > 0

    weights, J = weigh("opposite")
    size = np.linalg.norm(J)
    if weigh.method.startswith("mgda"):
        np.testing.assert_allclose(
            weights * (size / np.sqrt(2) if "l2" in weigh.method else 1), 0.5, rtol=1e-3
        )
    cancelling = ("nash clipped", "mgda", "aligned_mtl", "upgrad", "dualproj", "pcgrad", "cagrad", "config")
    if weigh.method in cancelling:
        assert np.linalg.norm(weights @ J) <= (1e-6 if double else 1e-3) * size

    weights, J = weigh("one task")
    norm = np.linalg.norm(J)
    expected = {
        "nash": 1 / norm,
        "nash clipped": 1 / norm,
        "fairgrad 2": norm ** (-2 / 1.5),
        "mgda l2": 1 / norm,
    }.get(weigh.method, 1.0)
    np.testing.assert_allclose(weights, [expected], rtol=1e-5)


@pytest.mark.parametrize("method", ["nash", "fairgrad 2", "imtl_g", "mgda", "upgrad"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.slow
def test_a_common_scale_only_scales(method, scale, precision):
    """The direction of small and large gradients is that of ordinary ones."""
    options = {"norm_eps": 0.0} if method == "upgrad" else {}
    weigh = jax.jit(partial(METHODS[method], **options))
    J = ROWS.astype(precision)
    plain = np.asarray(weigh(jnp.asarray(J @ J.T))) @ ROWS
    scaled = np.asarray(weigh(jnp.asarray((scale * J) @ (scale * J).T))) @ ROWS
    plain, scaled = plain / np.linalg.norm(plain), scaled / np.linalg.norm(scaled)
    np.testing.assert_allclose(scaled, plain, atol=1e-7 if precision == "float64" else 1e-4)
