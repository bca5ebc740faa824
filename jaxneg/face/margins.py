"""Class logits with a margin at the true class: the class-centre negatives that UNPG calls CLPG.

Every head compares features with class centres by their cosine, replaces the entry at the true class by its
margin form, and scales. The margins themselves are in the files that have their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxneg.face.arcface import arcface_cosine
from jaxneg.face.arguments import (
    batch_features,
    batch_labels,
    check_positive,
    class_weights,
    one_of,
    rows_by_rows,
    unit_rows,
)
from jaxneg.face.combined_margin import combined_cosine
from jaxneg.face.cosface import cosface_cosine
from jaxneg.face.magface import MagFace, magface_cosine, magface_regulariser
from jaxneg.face.sphereface import sphereface_cosine

HEADS = ("softmax", "normface", "cosface", "arcface", "magface", "sphereface", "combined")
"""The margins by name; "softmax" and "normface" are the cosine without one."""


class Head(NamedTuple):
    """A margin with its settings, checked."""

    kind: str
    s: float | None
    m: Any
    monotone: bool
    mag: MagFace
    straight_through: bool

    def margined(self, cosine: Float[Array, "..."], norm: Float[Array, "..."]) -> Float[Array, "..."]:
        """What stands in for the cosine at the true class."""
        if self.kind == "cosface":
            return cosface_cosine(cosine, self.m)
        if self.kind == "arcface":
            return arcface_cosine(
                cosine, self.m, monotone=self.monotone, straight_through=self.straight_through
            )
        if self.kind == "magface":
            return magface_cosine(cosine, norm, self.mag)
        if self.kind == "sphereface":
            return sphereface_cosine(cosine, self.m)
        if self.kind == "combined":
            return combined_cosine(cosine, self.m, straight_through=self.straight_through)
        return cosine

    def regulariser(self, norm: Float[Array, " batch"]) -> Float[Array, " batch"]:
        """What is added to the loss of each example."""
        return magface_regulariser(norm, self.mag) if self.kind == "magface" else jnp.zeros_like(norm)

    def scale(self, norm: Float[Array, " batch"]) -> Any:
        """What cosines are multiplied by: a number, or one for each example ``[batch, 1]``."""
        return norm[:, None] if self.s is None else self.s


def checked_head(
    kind: str,
    s: float | None,
    m: float | Sequence[float],
    mag: MagFace | Mapping[str, float] | None = None,
    monotone: bool = False,
    straight_through: bool = False,
    name: str = "head",
) -> Head:
    """The head of these settings, or a ValueError that names the one that is wrong."""
    one_of(name, kind, HEADS)
    if s is None:
        if kind != "sphereface":
            raise ValueError(
                f"s: expected a number; only sphereface scales by the features' length, got {kind!r}"
            )
    else:
        check_positive(s=s)
    if isinstance(mag, Mapping):
        if unknown := sorted(set(mag) - set(MagFace._fields)):
            raise ValueError(f"mag: expected {', '.join(MagFace._fields)}, got {unknown[0]!r}")
        mag = MagFace(**mag)
    head = Head(kind, s, m, monotone, mag or MagFace(), straight_through)
    jax.eval_shape(head.margined, *[jax.ShapeDtypeStruct((1,), jnp.float32)] * 2)
    return head


def margin_logits(
    features: Float[Array, "batch dim"],
    weights: Float[Array, "classes dim"],
    labels: Int[Array, " batch"],
    *,
    kind: str = "cosface",
    s: float | None = 64.0,
    m: float | Sequence[float] = 0.5,
    monotone: bool = False,
    mag: MagFace | Mapping[str, float] | None = None,
    straight_through: bool = False,
) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
    """Scaled cosines between features and class centres, with a margin at the true class.

    ``s C'``, ``C = x/|x| (W/|W|)^T``, ``C'_ik = margin(C_ik)`` at ``k = y_i``, else ``C_ik``

    Args:
        features: embeddings, of any length.
        weights: class centres, of any length.
        labels: classes 0..K-1.
        kind: "softmax" or "normface" (no margin), "cosface", "arcface", "magface", "sphereface", "combined".
        s: scale. None, for sphereface: each example's own length, as the SphereFace paper has it.
        m: margin: of cosface on the cosine, of arcface in radians, of sphereface how many times the angle
            counts (4 in the paper), of combined ``(m1, m2, m3)``; magface has its own in ``mag``.
        monotone: of arcface, see `arcface_cosine`.
        mag: settings of magface, a `MagFace` or a mapping of its fields.
        straight_through: of arcface and combined: their gradient as insightface has it.

    Returns:
        Logits, and ``cosine`` (with margins, before scaling), ``target`` (its entry at the true class),
        ``norm`` (lengths of the features, for magface clipped) and ``regulariser`` (of magface, else 0),
        the last three ``[batch]``.

    Raises:
        TypeError: features or weights that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, labels out of range, an unknown kind, settings out of range.

    Source:
        arXiv:2203.11593, Section 3; the margins' own files name their papers.

    Example:
        >>> logits, _ = margin_logits(jnp.eye(2), jnp.eye(2), jnp.array([0, 1]), s=2.0, m=0.25)
        >>> logits.tolist()
        [[1.5, 0.0], [0.0, 1.5]]
    """
    head = checked_head(kind, s, m, mag, monotone, straight_through, "kind")
    features = batch_features(features)
    weights = class_weights(weights, features.shape[1])
    labels = batch_labels(labels, features.shape[0], weights.shape[0])
    norm = lengths(features)
    cosine = rows_by_rows(unit_rows(features), unit_rows(weights))
    hit = jnp.arange(weights.shape[0]) == labels[:, None]
    target = head.margined(jnp.sum(jnp.where(hit, cosine, 0), axis=1), norm)
    cosine = jnp.where(hit, target[:, None], cosine)
    aux = {
        "cosine": cosine,
        "target": target,
        "norm": jnp.clip(norm, head.mag.l_a, head.mag.u_a) if kind == "magface" else norm,
        "regulariser": head.regulariser(norm),
    }
    return head.scale(norm) * cosine, aux


def lengths(features: Float[Array, "batch dim"]) -> Float[Array, " batch"]:
    """Lengths of the features, with a gradient of zero where one is zero."""
    squares = jnp.sum(jnp.square(features), axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
