"""Partners of the forget rows: fixed or drawn anew, of the row alone, uniform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.unlearning import draw_partners

KEY = jax.random.key(3)
draw = jax.jit(partial(draw_partners, KEY), static_argnames=("n_retain", "n_refusals", "fixed_pairing"))
SIZES = {"n_retain": 60, "n_refusals": 20}


def test_fixed_pairs_stay_and_others_change():
    rows = jnp.arange(40)
    fixed = [draw(rows, epoch, **SIZES, fixed_pairing=True) for epoch in (0, 1)]
    anew = [draw(rows, epoch, **SIZES) for epoch in (0, 1)]
    for i in range(2):
        np.testing.assert_array_equal(fixed[0][i], fixed[1][i])
        assert (anew[0][i] != anew[1][i]).mean() > 0.8
    np.testing.assert_array_equal(anew[0][0], draw(rows, 0, **SIZES)[0])


def test_a_row_does_not_depend_on_its_batch():
    rows = jnp.arange(40)
    whole = draw(rows, 2, **SIZES)
    order = jnp.asarray(np.random.default_rng(0).permutation(40))
    for found, expected in zip(draw(rows[order], 2, **SIZES), whole, strict=True):
        np.testing.assert_array_equal(found, expected[order])


def test_uniform():
    """Counts within five standard errors; retain row and refusal are drawn apart."""
    retain, refusals = draw(jnp.arange(20_000), 0, **SIZES)
    for found, n in ((retain, 60), (refusals, 20)):
        counts = np.bincount(found, minlength=n)
        assert len(counts) == n
        assert np.abs(counts - 20_000 / n).max() < 5 * (20_000 / n) ** 0.5
    assert abs(np.corrcoef(retain, refusals)[0, 1]) < 5 / 20_000**0.5


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="n_retain: expected a positive finite number, got 0"):
        draw_partners(KEY, jnp.arange(3), 0, n_retain=0, n_refusals=5)
    with pytest.raises(ValueError, match="n_refusals: expected a positive finite number, got 0"):
        draw_partners(KEY, jnp.arange(3), 0, n_retain=5, n_refusals=0)
