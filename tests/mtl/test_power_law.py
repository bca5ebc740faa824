"""Power-law exponents against weightwatcher's, and on spectra whose exponent is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.mtl import pl_alpha, pl_alpha_matrix, pl_alpha_tree


@pytest.mark.golden("rep_mtl", "pl_alpha.npz")
@pytest.mark.slow
def test_weightwatcher(golden, x64):
    for case in {name.split("__")[0] for name in golden}:
        W, evals = golden[f"{case}__W"], golden[f"{case}__evals"]
        assert np.sum(evals > 1e-5) == golden[f"{case}__n"]
        for fit in (pl_alpha(jnp.asarray(evals)), pl_alpha_matrix(jnp.asarray(W))):
            for name, found in fit._asdict().items():
                np.testing.assert_allclose(found, golden[f"{case}__ww_{name}"], rtol=1e-6, err_msg=case)
        # Its standard error.
        tail = np.sum(evals >= float(fit.xmin) * (1 - 1e-9))
        np.testing.assert_allclose((fit.alpha - 1) / np.sqrt(tail), golden[f"{case}__ww_sigma"], rtol=1e-5)


@pytest.mark.parametrize("alpha", [2.0, 3.0, 4.5])
def test_a_power_law_has_its_exponent(alpha):
    draws = (1 - np.random.default_rng(0).uniform(size=3000)) ** (-1 / (alpha - 1))
    assert float(jax.jit(pl_alpha)(jnp.asarray(draws, jnp.float32)).alpha) == pytest.approx(alpha, rel=0.1)


@pytest.mark.slow
def test_small_values_and_short_spectra_do_not_count():
    x = jnp.asarray(np.random.default_rng(0).pareto(2.0, 50) + 1)
    padded = jnp.concatenate([x, jnp.full(30, 1e-6)])
    np.testing.assert_allclose(pl_alpha(padded).alpha, pl_alpha(x).alpha, rtol=1e-5)
    assert np.isnan(pl_alpha(x[:7]).alpha)
    assert np.isnan(pl_alpha(jnp.ones(40)).alpha)


@pytest.mark.slow
def test_kernels_pool_their_slices():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 16, 12)), jnp.float32)
    slices = np.reshape(kernel, (9, 16, 12))
    values = np.concatenate([np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in slices])
    np.testing.assert_allclose(pl_alpha_matrix(kernel).alpha, pl_alpha(jnp.asarray(values)).alpha, rtol=1e-3)
    fits = pl_alpha_tree({"conv": {"kernel": kernel, "bias": jnp.ones(12)}, "small": jnp.ones((3, 3))})
    assert list(fits) == ["conv/kernel"]
    assert fits["conv/kernel"]["alpha"] > 1


def test_mistakes():
    with pytest.raises(ValueError, match=r"evals: expected a vector, got shape \(2, 2\)"):
        pl_alpha(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"W: expected a matrix or a kernel, got shape \(3,\)"):
        pl_alpha_matrix(jnp.ones(3))
