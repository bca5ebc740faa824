"""SimCLR's augmentations on the device, a batch at a time, every image by a draw of its own.

T. Chen et al. 2020, arXiv:2002.05709, Appendix A; the letters and strengths of AMCL, arXiv:2310.05615,
Section 4. Each part does what torchvision's transform of the same name does to a float image.

dm-pix is not used: its contrast is about each channel's own mean, its saturation goes through HSV, its
brightness is added, its blur pads with zeros, and it has no resized crop; only its hue and its greys agree
with torchvision. Crops are products with small matrices of interpolation weights, which costs a TPU nothing
and a CPU less than gathers.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

LETTERS = "abcde"
"""a: resized crop, b: blur, c: grey, d: colour jitter, e: horizontal flip."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images, by channel."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R 601-2), as torchvision has them."""
ATTEMPTS = 10
"""How often a crop is drawn before the central one is taken."""

Images = Float[Array, "batch height width 3"]


def augment_batch(
    key: PRNGKeyArray,
    images: Array,
    letters: str = "acde",
    *,
    size: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    strength: float = 0.5,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Float[Array, "batch size size 3"]:
    """A view of every image: crop, flip, jitter, grey, blur, in this order, and normalised.

    Args:
        key: random key.
        images: ``[batch, height, width, 3]``, uint8 from 0 to 255, or floating from 0 to 1.
        letters: which augmentations, of "abcde": a crops and resizes, b blurs (half of the images, kernel a
            tenth of the size, made odd, 3 at least, sigma from 0.1 to 2), c makes grey (a fifth of them),
            d jitters brightness, contrast, saturation and hue (four fifths, in random order), e mirrors
            (half).
        size: side of the views; by default the images', without "a" it must be.
        scale: smallest and largest share of the area in a crop.
        ratio: smallest and largest width over height of a crop.
        strength: of the jitter: 0.8 of it for brightness, contrast and saturation, 0.2 of it for hue.
        mean: subtracted, by channel.
        std: divided by, by channel.

    Returns:
        Views in float32.

    Raises:
        ValueError: letters that do not exist, images of another shape, ranges that are none, a size without
            crop.
        TypeError: images that are neither uint8 nor floating.

    Source:
        arXiv:2002.05709, Appendix A; arXiv:2310.05615, Section 4.

    Example:
        >>> augment_batch(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8), "abcde").shape
        (2, 8, 8, 3)
    """
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"images: expected [batch, height, width, 3], got shape {images.shape}")
    if unknown := sorted(set(letters) - set(LETTERS)):
        raise ValueError(f"letters: expected some of {LETTERS!r}, got {unknown[0]!r} in {letters!r}")
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"scale, ratio: expected ranges above 0, scale up to 1, got {scale} and {ratio}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 to 1, got {strength}")
    if images.dtype == jnp.uint8:
        x = images.astype(jnp.float32) / 255
    elif jnp.issubdtype(images.dtype, jnp.floating):
        x = images.astype(jnp.float32)
    else:
        raise TypeError(f"images: expected uint8 or a floating dtype, got {images.dtype}")
    batch, height, width, _ = x.shape
    if "a" not in letters and size is not None and (size, size) != (height, width):
        raise ValueError(f"size: expected that of the images without the crop 'a', {height}, got {size}")
    keys = dict(zip(LETTERS, jax.random.split(key, len(LETTERS)), strict=True))
    if "a" in letters:
        top, left, tall, wide = crop_boxes(keys["a"], batch, height, width, scale, ratio)
        x = resized_crop(x, top, left, tall, wide, size or height)
    if "e" in letters:
        x = _some(keys["e"], 0.5, x[:, :, ::-1], x)
    if "d" in letters:
        chosen, drawn = jax.random.split(keys["d"])
        x = _some(chosen, 0.8, colour_jitter(drawn, x, 0.8 * strength, 0.2 * strength), x)
    if "c" in letters:
        x = _some(keys["c"], 0.2, jnp.broadcast_to(_grey(x), x.shape), x)
    if "b" in letters:
        chosen, drawn = jax.random.split(keys["b"])
        sigma = jax.random.uniform(drawn, (batch,), minval=0.1, maxval=2.0)
        x = _some(chosen, 0.5, gaussian_blur(x, sigma, max(3, int(0.1 * x.shape[1]) | 1)), x)
    return normalise(x, mean, std)


def normalise(
    images: Images, mean: tuple[float, float, float] = MEAN, std: tuple[float, float, float] = STD
) -> Images:
    """Images from 0 to 1 over the statistics of a data set: what an encoder sees without augmentation.

    Args:
        images: from 0 to 1.
        mean: by channel.
        std: by channel.

    Returns:
        ``(images - mean) / std``.

    Example:
        >>> normalise(jnp.full((1, 1, 1, 3), 0.5), (0.5,) * 3, (1.0,) * 3).ravel().tolist()
        [0.0, 0.0, 0.0]
    """
    return (images - jnp.asarray(mean)) / jnp.asarray(std)


def crop_boxes(
    key: PRNGKeyArray,
    batch: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Array, Array, Array, Array]:
    """Boxes of random area and shape, in whole pixels; the central one where ten draws do not fit.

    Args:
        key: random key.
        batch: number of boxes.
        height: of the images.
        width: of the images.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width over height, drawn evenly in its logarithm.

    Returns:
        Top, left, height and width of each box, ``[batch]`` integers.

    Source:
        torchvision's RandomResizedCrop.

    Example:
        >>> [x.shape for x in crop_boxes(jax.random.key(0), 5, 8, 8, (0.1, 1.0), (0.75, 1.33))]
        [(5,), (5,), (5,), (5,)]
    """
    of_area, of_ratio, of_top, of_left = jax.random.split(key, 4)
    shape = (batch, ATTEMPTS)
    area = jax.random.uniform(of_area, shape, minval=scale[0], maxval=scale[1]) * (height * width)
    low, high = jnp.log(jnp.asarray(ratio))
    aspect = jnp.exp(jax.random.uniform(of_ratio, shape, minval=low, maxval=high))
    wide, tall = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height)
    first = jnp.argmax(fits, 1)[:, None]
    wide, tall = (jnp.take_along_axis(x, first, 1)[:, 0].astype(jnp.int32) for x in (wide, tall))
    own = width / height
    central_wide = width if own <= ratio[1] else round(height * ratio[1])
    central_tall = height if own >= ratio[0] else round(width / ratio[0])
    found = fits.any(1)
    tall, wide = jnp.where(found, tall, central_tall), jnp.where(found, wide, central_wide)

    def placed(key: PRNGKeyArray, free: Array) -> Array:
        drawn = jnp.floor(jax.random.uniform(key, (batch,)) * (free + 1)).astype(jnp.int32)
        return jnp.where(found, jnp.minimum(drawn, free), free // 2)

    return placed(of_top, height - tall), placed(of_left, width - wide), tall, wide


def resized_crop(x: Images, top: Array, left: Array, tall: Array, wide: Array, size: int) -> Array:
    """Boxes of images, resized to squares by bilinear interpolation, antialiased where they shrink.

    Args:
        x: images.
        top: first row of each box, ``[batch]``.
        left: first column.
        tall: rows.
        wide: columns.
        size: side of the squares.

    Returns:
        ``[batch, size, size, 3]``.

    Source:
        Pillow's and torchvision's ``resize`` with bilinear interpolation and antialiasing.

    Example:
        >>> whole = jnp.array([0]), jnp.array([0]), jnp.array([4]), jnp.array([4])
        >>> resized_crop(jnp.ones((1, 4, 4, 3)), *whole, 2).shape
        (1, 2, 2, 3)
    """
    rows = jax.vmap(partial(_weights, x.shape[1], size))(top, tall)
    columns = jax.vmap(partial(_weights, x.shape[2], size))(left, wide)
    x = jnp.einsum("bsh,bhwc->bswc", rows, x, precision="highest")
    return jnp.einsum("btw,bswc->bstc", columns, x, precision="highest")


def colour_jitter(key: PRNGKeyArray, x: Images, amount: ArrayLike, hue: ArrayLike) -> Images:
    """Brightness, contrast, saturation and hue, changed in a random order for each image.

    The first three mix an image with black, with its mean grey, and with its greys; the mix is clipped to 0
    and 1.

    Args:
        key: random key.
        x: images from 0 to 1.
        amount: factors of the first three are drawn from 1 - amount to 1 + amount.
        hue: largest turn of the hue, in whole turns.

    Returns:
        Images.

    Source:
        torchvision's ColorJitter.

    Example:
        >>> colour_jitter(jax.random.key(0), jnp.ones((2, 4, 4, 3)), 0.0, 0.0).mean().item()
        1.0
    """
    of_order, of_factors, of_hue = jax.random.split(key, 3)
    batch = len(x)
    order = jnp.argsort(jax.random.uniform(of_order, (batch, 4)), -1)  # 3 stands for the hue
    factors = 1 + amount * jax.random.uniform(of_factors, (batch, 3), minval=-1.0, maxval=1.0)
    turns = jnp.asarray(hue) * jax.random.uniform(of_hue, (batch,), minval=-1.0, maxval=1.0)
    when = jnp.argmax(order == 3, -1)
    mixes = jnp.take_along_axis(order, jnp.arange(3) + (jnp.arange(3) >= when[:, None]), -1)

    def mixed(x: Array, place: int, applies: Array) -> Array:
        kind = mixes[:, place, None, None, None]
        factor = jnp.take_along_axis(factors, mixes[:, place, None], -1)[:, :, None, None]
        grey = _grey(x)
        target = jnp.where(kind == 0, 0.0, jnp.where(kind == 1, grey.mean((1, 2), keepdims=True), grey))
        new = jnp.clip(factor * x + (1 - factor) * target, 0.0, 1.0)
        return jnp.where(applies[:, None, None, None], new, x)

    for place in range(3):
        x = mixed(x, place, place < when)
    x = turned_hue(x, turns)
    for place in range(3):
        x = mixed(x, place, place >= when)
    return x


def turned_hue(x: Images, turns: Float[Array, " batch"]) -> Images:
    """Images with their hue turned; saturation and value stay.

    Args:
        x: images from 0 to 1.
        turns: of the hue, 1 is once around.

    Returns:
        Images.

    Source:
        A. R. Smith 1978, "Color gamut transform pairs", doi:10.1145/965139.807361.

    Example:
        >>> red = jnp.array([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)
        >>> turned_hue(red, jnp.array([1 / 3])).round(3).ravel().tolist()
        [0.0, 1.0, 0.0]
    """
    red, green, blue = (x[..., channel] for channel in range(3))
    value = jnp.max(x, -1)
    chroma = value - jnp.min(x, -1)
    over = 1 / jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        value == red,
        (green - blue) * over,
        jnp.where(value == green, 2 + (blue - red) * over, 4 + (red - green) * over),
    )
    sixths += 6 * turns[:, None, None]

    def channel(offset: float) -> Array:
        place = (offset + sixths) % 6
        return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], -1)


def gaussian_blur(x: Images, sigma: Float[Array, " batch"], kernel: int) -> Images:
    """Images blurred by a Gaussian, mirrored at their borders.

    Args:
        x: images.
        sigma: standard deviation of each image's Gaussian, in pixels.
        kernel: pixels that the Gaussian is cut to, odd.

    Returns:
        Images.

    Raises:
        ValueError: a kernel that is even, or too large to be mirrored.

    Source:
        torchvision's GaussianBlur.

    Example:
        >>> gaussian_blur(jnp.ones((1, 4, 4, 3)), jnp.array([1.0]), 3).round(3).mean().item()
        1.0
    """
    half = kernel // 2
    if kernel % 2 == 0 or half >= min(x.shape[1:3]):
        raise ValueError(
            f"kernel: expected an odd number below twice the images' side {min(x.shape[1:3])}, got {kernel}"
        )
    offsets = jnp.arange(-half, half + 1)
    weights = jnp.exp(-0.5 * jnp.square(offsets / sigma[:, None]))
    weights = (weights / weights.sum(-1, keepdims=True))[:, :, None, None, None]
    for axis in (1, 2):
        padding = [(half, half) if each == axis else (0, 0) for each in range(4)]
        padded, length = jnp.pad(x, padding, mode="reflect"), x.shape[axis]
        shifted = (jax.lax.slice_in_dim(padded, at, at + length, axis=axis) for at in range(kernel))
        x = sum(weights[:, at] * part for at, part in enumerate(shifted))  # pyright: ignore[reportAssignmentType]
    return x


def _grey(x: Array) -> Array:
    return jnp.sum(x * jnp.asarray(GREY, x.dtype), -1, keepdims=True)


def _some(key: PRNGKeyArray, share: float, changed: Array, x: Array) -> Array:
    chosen = jax.random.bernoulli(key, share, (len(x),))
    return jnp.where(chosen[:, None, None, None], changed, x)


def _weights(pixels: int, size: int, first: Array, length: Array) -> Float[Array, "size pixels"]:
    """Interpolation weights of the pixels of a box in each pixel of the result."""
    step = length / size
    support = jnp.maximum(step, 1.0)
    centres = first + (jnp.arange(size) + 0.5) * step
    at = jnp.arange(pixels) + 0.5
    weights = jnp.maximum(0.0, 1 - jnp.abs(at - centres[:, None]) / support)
    weights = jnp.where((at > first) & (at < first + length), weights, 0.0)
    return weights / weights.sum(-1, keepdims=True)
