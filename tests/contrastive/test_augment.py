"""Augmentations: each part against Pillow or a definition in numpy, and the whole's letters and shares."""

import colorsys
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve1d

from jaxneg.contrastive import augment, augment_batch

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
X = jnp.asarray(IMAGES, jnp.float32) / 255
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.fixture(scope="module")
def view():
    return jax.jit(partial(augment_batch, **PLAIN), static_argnames=("letters", "size"))


@pytest.mark.parametrize("size", [8, 5, 13])
def test_crops_are_pillows(size):
    """Cropped first and resized then, as torchvision does: shrinking and enlarging."""
    boxes = np.array([[0, 0, 8, 8], [2, 1, 3, 6], [5, 4, 2, 3], [7, 7, 1, 1]])
    found = augment.resized_crop(X[: len(boxes)], *(jnp.asarray(column) for column in boxes.T), size)
    for image, (top, left, tall, wide), ours in zip(np.asarray(X), boxes, found, strict=False):
        for channel in range(3):
            part = Image.fromarray(image[top : top + tall, left : left + wide, channel])
            expected = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(ours[..., channel], expected, atol=1e-5)


def test_boxes_lie_inside_and_have_the_right_area():
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    top, left, tall, wide = (np.asarray(x) for x in augment.crop_boxes(KEY, 4000, 32, 32, scale, ratio))
    assert top.min() == 0 == left.min()
    assert (top + tall).max() == 32 == (left + wide).max()
    area = tall * wide / 32**2
    assert 0.06 < area.min() < 0.1  # rounded to pixels
    # Large areas of an extreme shape do not fit and are drawn again: below the mean of an even draw.
    assert 0.48 < area.mean() < 0.54
    assert (wide / tall).max() < 1.5
    # A shape that never fits: the central box of the nearest shape.
    found = augment.crop_boxes(KEY, 3, 10, 40, (1.0, 1.0), (1.0, 1.0))
    assert [np.asarray(x).tolist() for x in found] == [[0] * 3, [15] * 3, [10] * 3, [10] * 3]


@pytest.mark.parametrize(("sigma", "kernel"), [(0.1, 3), (1.0, 3), (2.0, 5)])
def test_blur_is_a_mirrored_gaussian(sigma, kernel):
    offsets = np.arange(kernel) - kernel // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    expected = convolve1d(convolve1d(np.asarray(X[:3]), weights, 1, mode="mirror"), weights, 2, mode="mirror")
    found = augment.gaussian_blur(X[:3], jnp.full(3, sigma), kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_hue_turns_as_colorsys_does():
    turns = np.linspace(-0.5, 0.9, 4, dtype=np.float32)
    found = np.asarray(augment.turned_hue(X[:4], jnp.asarray(turns)))
    for image, turn, ours in zip(np.asarray(X), turns, found, strict=False):
        for pixel, new in zip(image.reshape(-1, 3), ours.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            np.testing.assert_allclose(
                new, colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), atol=1e-5
            )
    grey = jnp.full((1, 2, 2, 3), 0.3)
    np.testing.assert_allclose(augment.turned_hue(grey, jnp.array([0.4])), grey, atol=1e-7)


def test_jitter_is_a_sequence_of_mixes():
    """One of the 24 orders gives every image, with factors that are found from the same key."""
    amount, hue, batch = 0.4, 0.1, 6
    _, of_factors, of_hue = jax.random.split(KEY, 3)
    factors = 1 + amount * jax.random.uniform(of_factors, (batch, 3), minval=-1.0, maxval=1.0)
    turns = hue * jax.random.uniform(of_hue, (batch,), minval=-1.0, maxval=1.0)
    found = np.asarray(augment.colour_jitter(KEY, X[:batch], amount, hue))

    def mixed(x, kind, i):
        if kind == 3:
            return np.asarray(augment.turned_hue(jnp.asarray(x)[None], turns[i : i + 1]))[0]
        grey = x @ np.array(augment.GREY, np.float32)
        target = (0.0, grey.mean(), grey[..., None])[kind]
        return np.clip(float(factors[i, kind]) * x + (1 - float(factors[i, kind])) * target, 0, 1)

    orders = set()
    for i in range(batch):
        distances = {}
        for order in itertools.permutations(range(4)):
            x = np.asarray(X[i])
            for kind in order:
                x = mixed(x, kind, i)
            distances[order] = np.abs(x - found[i]).max()
        orders.add(min(distances, key=distances.__getitem__))
        assert min(distances.values()) < 1e-5
    assert len(orders) > 1


def test_letters(view):
    np.testing.assert_allclose(view(KEY, IMAGES, ""), X, atol=1e-6)
    flipped = np.asarray(view(KEY, IMAGES, "e"))
    kept, mirrored = (np.isclose(flipped, x, atol=1e-6).all((1, 2, 3)) for x in (X, X[:, :, ::-1]))
    assert (kept ^ mirrored).all()
    assert 0.3 < mirrored.mean() < 0.7
    grey = np.ptp(np.asarray(view(KEY, IMAGES, "c")), -1).max((1, 2)) < 1e-6
    assert 0.05 < grey.mean() < 0.4
    for letters, low, high in (("b", 0.3, 0.7), ("d", 0.6, 0.95), ("a", 0.9, 1.0)):
        changed = ~np.isclose(view(KEY, IMAGES, letters), X, atol=1e-4).all((1, 2, 3))
        assert low <= changed.mean() <= high, letters
    everything = np.asarray(view(KEY, IMAGES, "abcde", size=6))
    assert everything.shape == (64, 6, 6, 3)
    assert 0 <= everything.min() <= everything.max() <= 1 + 1e-6


def test_a_key_is_a_draw(view):
    first, again, other = (view(key, IMAGES, "abcde", size=6) for key in (KEY, KEY, jax.random.key(1)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_allclose(view(KEY, X, "abcde", size=6), first, atol=1e-6)  # floats from 0 to 1


def test_no_letter_but_a_crops():
    with pytest.raises(ValueError, match="size: expected that of the images without the crop 'a', 8, got 6"):
        augment_batch(KEY, IMAGES, "cde", size=6)
    with pytest.raises(ValueError, match="letters: expected some of 'abcde', got 'f' in 'af'"):
        augment_batch(KEY, IMAGES, "af")
    with pytest.raises(ValueError, match="scale, ratio: expected ranges above 0"):
        augment_batch(KEY, IMAGES, "a", scale=(0.5, 0.1))
    with pytest.raises(ValueError, match="strength: expected 0 to 1, got 2"):
        augment_batch(KEY, IMAGES, "d", strength=2.0)
    with pytest.raises(ValueError, match="kernel: expected an odd number"):
        augment.gaussian_blur(X, jnp.ones(64), 4)


def test_normalised_by_imagenets_statistics():
    found = augment_batch(KEY, np.full((1, 2, 2, 3), 255, np.uint8), "")
    np.testing.assert_allclose(
        found[0, 0, 0], (1 - np.array(augment.MEAN)) / np.array(augment.STD), rtol=1e-5
    )
