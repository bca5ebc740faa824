"""The group effect."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.federated import group_effect


@pytest.mark.golden("fedka", "group_effect*.npz")
def test_golden(golden, x64):
    np.testing.assert_allclose(
        group_effect(golden["global_acc"], golden["client_acc"]), golden["ge"], rtol=1e-9, atol=1e-11
    )


def test_who_takes_no_part_does_not_count():
    effect = group_effect(jnp.array(0.9), jnp.array([0.5, 0.0]), where=jnp.array([True, False]))
    np.testing.assert_allclose(effect, 0.4, rtol=1e-6)


def test_bad_shape():
    with pytest.raises(ValueError, match=r"client_acc: expected shape \(2, 'clients'\), got \(3, 2\)"):
        group_effect(jnp.ones(2), jnp.ones((3, 2)))
