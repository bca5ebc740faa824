"""The digits: latents by a decomposition written out, the way back, the classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import digits


def test_pixels():
    from sklearn.datasets import load_digits

    pixels = digits.digit_pixels()
    np.testing.assert_array_equal((pixels.x + 1) * 8, load_digits().data)
    np.testing.assert_array_equal(pixels.y, load_digits().target)
    assert (pixels.x.dtype, pixels.y.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("fitted", [None, 1437])
def test_latents_by_hand(fitted):
    """The eigenvectors of the covariance, up to their signs; one scale for all coefficients."""
    pixels, latents = digits.digit_pixels(), digits.digit_latents(fitted)
    known = pixels.x[:fitted].astype(np.float64)
    mean = known.mean(0)
    _, vectors = np.linalg.eigh(np.cov(known.T))
    directions = vectors[:, ::-1][:, :16].T
    coefficients = (known - mean) @ directions.T
    expected = (pixels.x - mean) @ directions.T / coefficients.std()
    signs = np.sign((latents.components * directions).sum(1))
    np.testing.assert_allclose(latents.components * signs[:, None], directions, atol=1e-5)
    np.testing.assert_allclose(latents.x * signs, expected, atol=1e-4)
    assert latents.x[:fitted].std() == pytest.approx(1, rel=1e-5)
    assert latents.x.dtype == np.float32
    np.testing.assert_array_equal(latents.y, pixels.y)


def test_decoding():
    """The nearest images of the subspace, clipped; under jit and with further axes too."""
    pixels, latents = digits.digit_pixels(), digits.digit_latents()
    found = jax.jit(digits.Latents.decode)(latents, latents.x[None, :50])
    back = (pixels.x[:50] - latents.mean) @ latents.components.T @ latents.components + latents.mean
    np.testing.assert_allclose(found[0], np.clip(back, -1, 1), atol=1e-5)
    assert float(jnp.abs(found).max()) == 1
    full = digits.digit_latents(dims=64)
    np.testing.assert_allclose(full.decode(full.x), pixels.x, atol=1e-4)


def test_features_by_hand():
    rng = np.random.default_rng(0)
    shapes = list(zip(digits.WIDTHS[:-1], digits.WIDTHS[1:], strict=True))
    params = [{"kernel": rng.normal(size=shape), "bias": rng.normal(size=shape[1])} for shape in shapes]
    x = rng.normal(size=(5, 64))
    first = np.maximum(x @ params[0]["kernel"] + params[0]["bias"], 0)
    second = np.maximum(first @ params[1]["kernel"] + params[1]["bias"], 0)
    found = digits.features(params, x)
    assert found.shape == (5, 32)
    np.testing.assert_allclose(found, second, rtol=1e-4, atol=1e-3)
    last = second @ params[2]["kernel"] + params[2]["bias"]
    np.testing.assert_allclose(digits.logits(params, x), last, rtol=1e-4, atol=1e-2)
    right = np.arange(10)[None] == last.argmax(1)[:, None]
    assert float(digits.accuracy(params, x, last.argmax(1))) == 1
    assert float(digits.accuracy(params, x, right.argmin(1))) == 0


@pytest.mark.slow
def test_classifiers_learn():
    """Digits that they have not seen, about as well as the paper's reproduction; each from its own key."""
    pixels = digits.digit_pixels()
    first, second = (digits.train_classifier(jax.random.key(seed)) for seed in range(2))
    for params in (first, second):
        assert float(digits.accuracy(params, pixels.x[digits.TRAIN :], pixels.y[digits.TRAIN :])) > 0.9
        assert float(digits.accuracy(params, pixels.x[: digits.TRAIN], pixels.y[: digits.TRAIN])) > 0.98
    assert not np.allclose(first[0]["kernel"], second[0]["kernel"])


def test_an_untrained_classifier_begins_as_he_says():
    params = digits.train_classifier(jax.random.key(0), steps=0)
    for layer, rows in zip(params, digits.WIDTHS[:-1], strict=True):
        assert float(layer["kernel"].std()) == pytest.approx(np.sqrt(2 / rows), rel=0.1)
        assert not layer["bias"].any()
