"""Prompts and negative weights that follow the camera: how Perp-Neg makes text-to-3D see every side.

Implements the view-conditioned part of Armandpour et al., arXiv:2304.04968, Section 5, in both published
schedules: the authors' own in stable-dreamfusion, and the four shifted exponentials of threestudio. Around
the object lie two sectors, from the front to the side and from the side to the back. In each the positive
prompt is interpolated between two views, and the side and the front view are negative prompts.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from jaxneg.diffusion.arguments import at_least_float32, one_of

# The views, in the order in which indices count them.
VIEWS = ("front", "side", "back", "overhead", "uncond")
FRONT, SIDE, BACK, OVERHEAD, UNCOND = range(len(VIEWS))

# What the two schedules take, with the published values.
PARAMETERS: dict[str, dict[str, Any]] = {
    "dreamfusion": {"negative_w": -2.0, "front_decay": 2.0, "side_decay": 10.0},
    "threestudio": {
        "f_fs": (4.0, 0.5, -2.426),
        "f_sf": (4.0, 0.5, -2.426),
        "f_sb": (1.0, 0.5, -0.606),
        "f_fsb": (1.0, 0.5, 0.967),
        "overhead_threshold": 60.0,
    },
}

Schedule = Literal["dreamfusion", "threestudio"]


def view_weights(
    azimuth_deg: Float[ArrayLike, " batch"],
    elevation_deg: Float[ArrayLike, " batch"] | None = None,
    *,
    schedule: Schedule = "dreamfusion",
    **params: Any,
) -> dict[str, Array]:
    """How much of which view is wanted and unwanted from where the camera stands.

    With the azimuth ``phi`` wrapped to [-180, 180) and ``a = |phi|``:

    - front to side (``a < 90``): ``r = 1 - a / 90``; negatives (front, ``w_f``), (side, ``w_s``)
    - side to back: ``r = 2 - a / 90``; negatives (side, ``w_s``), (front, ``w_f``)

    "dreamfusion", where -90 belongs to the first sector: in the first ``w_f = n exp(-front_decay r)``, 0 for
    ``r > 0.8``, and ``w_s = n exp(-side_decay (1 - r))``, 0 for ``r < 0.2``; in the second
    ``w_s = n / 2 exp(-side_decay r)``, 0 for ``r > 0.8``, and ``w_f = n``; ``n`` is ``negative_w``.

    "threestudio", with ``f(r) = a exp(-b r) + c``: in the first ``w_f = -f_fs(r)``, ``w_s = -f_sf(1 - r)``;
    in the second ``w_s = -f_sb(r)``, ``w_f = -f_fsb(r)``; seen from overhead both are 0.

    Args:
        azimuth_deg: where the camera stands, degrees; 0 is in front.
        elevation_deg: how far above the horizon, degrees; for "threestudio" alone. None: never overhead.
        schedule: "dreamfusion" or "threestudio".
        **params: of the schedule: ``negative_w``, ``front_decay``, ``side_decay``; or ``f_fs``, ``f_sf``,
            ``f_sb``, ``f_fsb``, each ``(a, b, c)``, and ``overhead_threshold`` in degrees.

    Returns:
        A dictionary: ``r [batch]``; ``sector [batch]``: 0 from front to side, 1 from side to back, 2
        overhead; ``neg_index [batch, 2]``, the negatives as indices of ``VIEWS``; ``weights [batch, 2]``.

    Raises:
        TypeError: angles that are not floating, or a parameter that the schedule does not have.
        ValueError: an unknown schedule, angles of different shapes or not ``[batch]``, or elevations for a
            schedule without an overhead view.

    Source:
        arXiv:2304.04968, Section 5; stable-dreamfusion, adjust_text_embeddings; threestudio,
        get_text_embeddings_perp_neg.

    Example:
        >>> view_weights(jnp.array([0.0, 135.0]))["weights"].round(2).tolist()
        [[0.0, -2.0], [..., -2.0]]
    """
    p = _parameters(schedule, params)
    azimuth, elevation = _angles(azimuth_deg, elevation_deg)
    if schedule == "dreamfusion" and elevation is not None:
        raise ValueError(
            "elevation_deg: expected None with schedule 'dreamfusion', which has no overhead view"
        )
    phi = wrap_degrees(azimuth)
    a = jnp.abs(phi)
    first = (phi >= -90) & (phi < 90) if schedule == "dreamfusion" else a < 90
    r = jnp.where(first, 1 - a / 90, 2 - a / 90)

    if schedule == "dreamfusion":
        n, front_decay, side_decay = p["negative_w"], p["front_decay"], p["side_decay"]
        fs_front = jnp.where(r > 0.8, 0, n * jnp.exp(-front_decay * r))
        fs_side = jnp.where(r < 0.2, 0, n * jnp.exp(-side_decay * (1 - r)))
        sb_side = jnp.where(r > 0.8, 0, n / 2 * jnp.exp(-side_decay * r))
        sb_front = jnp.full_like(r, n)
    else:
        fs_front, fs_side = -_shifted(p["f_fs"], r), -_shifted(p["f_sf"], 1 - r)
        sb_side, sb_front = -_shifted(p["f_sb"], r), -_shifted(p["f_fsb"], r)

    weights = [jnp.where(first, fs_front, sb_side), jnp.where(first, fs_side, sb_front)]
    negatives = [jnp.where(first, FRONT, SIDE), jnp.where(first, SIDE, FRONT)]
    sector = jnp.where(first, 0, 1)
    if elevation is not None:
        above = elevation > p["overhead_threshold"]
        weights = [jnp.where(above, 0, weight) for weight in weights]
        negatives = [jnp.where(above, UNCOND, negative) for negative in negatives]
        sector = jnp.where(above, 2, sector)
    return {
        "r": r,
        "sector": sector,
        "neg_index": jnp.stack(negatives, 1),
        "weights": jnp.stack(weights, 1),
    }


def view_embeddings(
    table: Mapping[str, Float[Array, "*shape"]],
    azimuth_deg: Float[ArrayLike, " batch"],
    elevation_deg: Float[ArrayLike, " batch"] | None = None,
    *,
    schedule: Schedule = "dreamfusion",
    **params: Any,
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch 2 *shape"], Float[Array, "batch 2"]]:
    """The prompts' embeddings from where the camera stands, and the weights of the negative ones.

    ``z = r z_front + (1 - r) z_side`` from front to side, ``r z_side + (1 - r) z_back`` from side to back.

    For `perp_neg_guidance` and its like, whose prompts lie on the leading axis, move the axis of length 2 to
    the front of both results.

    Args:
        table: embeddings by view, "front", "side" and "back", all of one shape; with elevations also
            "overhead" and "uncond", the empty prompt's.
        azimuth_deg: as in `view_weights`.
        elevation_deg: as in `view_weights`.
        schedule: as in `view_weights`.
        **params: as in `view_weights`.

    Returns:
        The positive embeddings, the two negative ones, and the weights of these, in the order of
        `view_weights`. Embeddings keep the type of the table.

    Raises:
        TypeError: as in `view_weights`, or an embedding that is not floating.
        ValueError: as in `view_weights`, or a table that lacks a view or whose views differ in shape.

    Source:
        arXiv:2304.04968, Section 5.

    Example:
        >>> table = {"front": jnp.array([1.0, 0.0, 0.0]), "side": jnp.array([0.0, 1.0, 0.0])}
        >>> positive, _, _ = view_embeddings(table | {"back": jnp.array([0.0, 0.0, 1.0])}, jnp.array([45.0]))
        >>> positive.tolist()
        [[0.5, 0.5, 0.0]]
    """
    found = view_weights(azimuth_deg, elevation_deg, schedule=schedule, **params)
    needed = VIEWS[:3] if elevation_deg is None else VIEWS
    if missing := [view for view in needed if view not in table]:
        raise ValueError(f"table: expected the views {', '.join(needed)}, got none for {', '.join(missing)}")
    z = {view: at_least_float32(f"table[{view!r}]", table[view]) for view in needed}
    shapes = {view: leaf.shape for view, leaf in z.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"table: expected embeddings of one shape, got {shapes}")
    kind, axes = jnp.asarray(table["front"]).dtype, [1] * z["front"].ndim

    def where(condition: Array, yes: Array, no: Array) -> Array:
        return jnp.where(condition.reshape(-1, *axes), yes, no)

    r = found["r"].reshape(-1, *axes).astype(jnp.promote_types(found["r"].dtype, z["front"].dtype))
    first, above = found["sector"] == 0, found["sector"] == 2
    positive = where(first, r * z["front"] + (1 - r) * z["side"], r * z["side"] + (1 - r) * z["back"])
    negatives = [where(first, z["front"], z["side"]), where(first, z["side"], z["front"])]
    if elevation_deg is not None:
        positive = where(above, z["overhead"], positive)
        negatives = [where(above, z["uncond"], negative) for negative in negatives]
    return positive.astype(kind), jnp.stack(negatives, 1).astype(kind), found["weights"]


def view_index(
    azimuth_deg: Float[ArrayLike, " batch"],
    elevation_deg: Float[ArrayLike, " batch"] | None = None,
    *,
    front_threshold: float = 45.0,
    back_threshold: float = 45.0,
    overhead_threshold: float = 60.0,
) -> Int[Array, " batch"]:
    """Which view the camera sees, where only one of them is asked for.

    Front for ``|phi| < front_threshold``, back for ``|phi| > 180 - back_threshold``, overhead above its
    threshold, else side.

    Args:
        azimuth_deg: where the camera stands, degrees; 0 is in front.
        elevation_deg: how far above the horizon, degrees. None: never overhead.
        front_threshold: half width of the front view, degrees.
        back_threshold: half width of the back view, degrees.
        overhead_threshold: elevation above which the view is the overhead one, degrees.

    Returns:
        Indices of ``VIEWS``; for choosing an empty prompt that depends on the view, as threestudio's does.

    Raises:
        TypeError: angles that are not floating.
        ValueError: angles of different shapes, or not ``[batch]``.

    Source:
        threestudio, get_text_embeddings_perp_neg.

    Example:
        >>> view_index(jnp.array([10.0, 45.0, -170.0])).tolist()
        [0, 1, 2]
    """
    azimuth, elevation = _angles(azimuth_deg, elevation_deg)
    a = jnp.abs(wrap_degrees(azimuth))
    index = jnp.where(a < front_threshold, FRONT, jnp.where(a > 180 - back_threshold, BACK, SIDE))
    return index if elevation is None else jnp.where(elevation > overhead_threshold, OVERHEAD, index)


def rotation_embeddings(
    z_1: Float[Array, "*shape"], z_2: Float[Array, "*shape"], c: Float[ArrayLike, " batch"]
) -> tuple[Float[Array, "batch *shape"], Float[Array, "2 batch *shape"]]:
    """The prompts of the 2D rotation sampler, halfway views by interpolation.

    ``z = c z_1 + (1 - c) z_2``, with both ends as negative prompts

    Args:
        z_1: embedding of one view.
        z_2: embedding of the other.
        c: share of the first, in [0, 1].

    Returns:
        The positive embeddings, and the negative ones in the layout of `perp_neg_guidance`; the authors weigh
        both by -1.5.

    Raises:
        TypeError: an array that is not floating.
        ValueError: embeddings of different shapes, or c that is not ``[batch]``.

    Source:
        arXiv:2304.04968, Section 5; the authors' pipeline_perpneg_stable_diffusion_rotation.

    Example:
        >>> rotation_embeddings(jnp.array([4.0]), jnp.array([0.0]), jnp.array([0.25, 1.0]))[0].tolist()
        [[1.0], [4.0]]
    """
    kind = jnp.asarray(z_1).dtype
    one, two = at_least_float32("z_1", z_1), at_least_float32("z_2", z_2)
    if one.shape != two.shape:
        raise ValueError(f"z_2: expected the shape of z_1, {one.shape}, got {two.shape}")
    share, _ = _angles(c, None, "c")
    share = share.reshape(-1, *[1] * one.ndim).astype(one.dtype)
    negatives = jnp.stack([one, two])[:, None] + jnp.zeros_like(share)
    return (share * one + (1 - share) * two).astype(kind), negatives.astype(kind)


def wrap_degrees(angle: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """An angle in [-180, 180): ``(angle + 180) mod 360 - 180``.

    Args:
        angle: degrees.

    Returns:
        The same direction.

    Example:
        >>> wrap_degrees(jnp.array([180.0, 270.0, 30.0])).tolist()
        [-180.0, -90.0, 30.0]
    """
    return (angle + 180) % 360 - 180


def _shifted(coefficients: tuple[float, float, float], r: Array) -> Array:
    a, b, c = coefficients
    return a * jnp.exp(-b * r) + c


def _parameters(schedule: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The published parameters of a schedule with those that were given in their place."""
    one_of("schedule", schedule, PARAMETERS)
    known = PARAMETERS[schedule]
    if unknown := [name for name in params if name not in known]:
        raise TypeError(f"params: schedule {schedule!r} takes {', '.join(known)}, got {', '.join(unknown)}")
    return {**known, **params}


def _angles(azimuth: ArrayLike, elevation: ArrayLike | None, name: str = "azimuth_deg") -> tuple[Array, Any]:
    first = at_least_float32(name, azimuth)
    if first.ndim != 1:
        raise ValueError(f"{name}: expected one number for each sample, [batch], got shape {first.shape}")
    if elevation is None:
        return first, None
    second = at_least_float32("elevation_deg", elevation)
    if second.shape != first.shape:
        raise ValueError(f"elevation_deg: expected the shape of {name}, {first.shape}, got {second.shape}")
    return first, second
