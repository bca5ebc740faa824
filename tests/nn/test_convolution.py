"""Convolutions and their derivatives against `jax.lax` in all settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")
SMALL = ((1, 1), (2, 2), (3, 3), (2, 5), (4, 4), (1, 9))
LARGE = ((5, 7), (6, 6))
PADDINGS = ("SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (3, 0)))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def both(strides, padding, dilation=None, layout=LAYOUT):
    """Ours and that of `jax.lax`."""
    return (
        lambda x, k: convolve(x, k, strides, padding, None, dilation, layout),
        lambda x, k: jax.lax.conv_general_dilated(x, k, strides, padding, None, dilation, layout),
    )


def convolutions(function, *arguments):
    """The layouts of the convolutions in a program."""
    found = []

    def look(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                found.append(tuple(eqn.params["dimension_numbers"]))
            for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
                if hasattr(leaf, "jaxpr"):
                    look(leaf.jaxpr)

    look(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize(
    ("sides", "padding"),
    [(s, p) for s in SMALL + LARGE for p in PADDINGS if p != "VALID" or min(s) >= 3],
)
def test_values_and_gradients(sides, padding):
    x, k = draw(3, *sides, 4), draw(3, 3, 4, 5, seed=1)
    for strides in ((1, 1), (2, 2), (1, 2)):
        found, expected = (
            jax.jit(lambda x, k, f=f: (f(x, k), *jax.vjp(f, x, k)[1](jnp.cos(f(x, k)))))(x, k)
            for f in both(strides, padding)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize("dilation", [(2, 2), (1, 3)])
def test_dilated_kernels(dilation):
    x, k = draw(2, 7, 8, 3), draw(3, 3, 3, 4, seed=1)
    for padding in ("SAME", ((2, 2), (3, 1))):
        found, expected = (
            jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), (0, 1))(x, k)
            for f in both((1, 1), padding, dilation)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize("side", [2, 6])
def test_forward_and_second_derivatives(side):
    x, k = draw(2, side, side, 3), draw(3, 3, 3, 4, seed=1)
    dx, dk = draw(*x.shape, seed=2), draw(*k.shape, seed=3)

    def product(f):
        loss = lambda x, k: jnp.sin(f(x, k)).sum()  # noqa: E731
        gradient = jax.grad(loss, (0, 1))
        return (
            jax.jvp(f, (x, k), (dx, dk))[1],
            jax.jvp(lambda x: f(x, k), (x,), (dx,))[1],
            jax.jvp(lambda k: f(x, k), (k,), (dk,))[1],
            jax.jvp(gradient, (x, k), (dx, dk))[1],
            jax.grad(lambda x, k: sum(map(jnp.vdot, gradient(x, k), (dx, dk))), (0, 1))(x, k),
        )

    found, expected = (product(f) for f in both((1, 1), "SAME"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("side", [2, 6])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_mapped_gradients_are_each_its_own(side, axes):
    many = (draw(3, 2, side, side, 4), draw(3, 3, 3, 4, 5, seed=1))
    x, k = (a if axis == 0 else a[0] for a, axis in zip(many, axes, strict=True))
    ours, lax = both((1, 1), "SAME")
    gradient = jax.grad(lambda x, k: jnp.sin(ours(x, k)).sum(), (0, 1))
    found = jax.vmap(gradient, axes)(x, k)
    for i in range(3):
        one = [a[i] if axis == 0 else a for a, axis in zip((x, k), axes, strict=True)]
        expected = jax.grad(lambda x, k: jnp.sin(lax(x, k)).sum(), (0, 1))(*one)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-4)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_cpu_computes_gradients_fast_inside_of_loops(strides):
    """XLA does so for convolutions in this layout only."""
    numbers = jax.lax.conv_dimension_numbers((2, 6, 6, 3), (3, 3, 3, 4), LAYOUT)
    x, k = draw(2, 6, 6, 3), draw(3, 3, 3, 4, seed=1)
    ours, lax = (
        convolutions(jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), (0, 1)), x, k)
        for f in both(strides, "SAME")
    )
    assert ours == 3 * [tuple(numbers)]
    assert len(set(lax)) > 1
    assert len(convolutions(jax.grad(lambda k: jnp.sin(both(strides, "SAME")[0](x, k)).sum()), k)) == 2


def test_images_smaller_than_the_kernel_become_products():
    def left(side, padding="SAME", **options):
        groups = options.get("feature_group_count", 1)
        return len(
            convolutions(
                lambda x, k: convolve(x, k, (1, 1), padding, dimension_numbers=LAYOUT, **options),
                draw(2, side, side, 4),
                draw(3, 3, 4 // groups, 4),
            )
        )

    assert [left(side) for side in (1, 2, 3, 4, 16)] == [0, 0, 1, 1, 1]
    assert left(4, "VALID") == 0  # the result is
    assert left(2, feature_group_count=2) == 1
    assert left(2, rhs_dilation=(2, 2)) == 1
    assert left(2, ((1, 1), (1, 1)), lhs_dilation=(2, 2)) == 1


def test_other_layouts_groups_and_dimensions():
    x, k = draw(2, 6, 6, 4), draw(3, 3, 2, 4, seed=1)
    options = {"dimension_numbers": LAYOUT, "feature_group_count": 2}
    np.testing.assert_array_equal(
        convolve(x, k, (1, 1), "SAME", **options),
        jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", **options),
    )
    x, k = draw(2, 4, 2, 2), draw(5, 4, 3, 3, seed=1)
    ours, lax = both((1, 1), "SAME", layout=None)
    np.testing.assert_array_equal(ours(x, k), lax(x, k))
    x, k = draw(2, 7, 4), draw(3, 4, 5, seed=1)
    ours, lax = both((1,), "SAME", layout=("NWC", "WIO", "NWC"))
    np.testing.assert_array_equal(ours(x, k), lax(x, k))


@pytest.mark.parametrize("side", [2, 6])
def test_bfloat16(side):
    x, k = draw(2, side, side, 4).astype(jnp.bfloat16), draw(3, 3, 4, 5, seed=1).astype(jnp.bfloat16)
    found = convolve(x, k, (1, 1), "SAME", None, None, LAYOUT)
    exact = both((1, 1), "SAME")[1](x.astype(jnp.float32), k.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.1, rtol=0.02)
    wide = convolve(x, k, (1, 1), "SAME", None, None, LAYOUT, preferred_element_type=jnp.float32)
    np.testing.assert_allclose(wide, exact, atol=1e-4)
