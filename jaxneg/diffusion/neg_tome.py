"""Negative token merging: features of images in the making, pushed away from those of other images.

Implements Singh, Gould and Zheng 2024, "Negative Token Merging: Image-based Adversarial Feature Guidance",
arXiv:2412.01339, Section 3 and Algorithm 1. At the output of an attention block each token of an image is
matched with the most similar token of a reference and, where they are similar enough, extrapolated away:

1. match: ``j*(i) = argmax_j cos(h_i, r_j)``, ``s*(i)`` the cosine;
2. gate: active where ``s*(i) > threshold``;
3. extrapolate: ``h'_i = h_i + alpha (h_i - r_{j*(i)})``.

The reference is another image of the batch, all others, or a given image that runs as an entry of the batch.

The released code takes the maximum over the other axis, over the source tokens of each reference position,
and reads the indices that it finds there as those of reference tokens; ``match="official"`` does the same.

No matrix of all similarities is formed: blocks of source tokens meet the references one after the other, so
that memory is linear in the number of reference tokens. The norms scale the products instead of the tokens.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.diffusion.arguments import check_range, one_of

Match = Literal["paper", "official"]
Reference = Literal["first", "leave_one_out", "external"]

_ROWS, _TILE = 256, 1024
"""Source tokens in a block, and tokens on a side of a tile where images meet each other."""

_MASKED = -1e30
"""The similarity of what may not be matched: finite, so that nothing becomes NaN in narrow types."""

_NO_GROUPS = "reference: 'external' takes the whole batch as one group; give no group_size or group_ids"


@dataclass(frozen=True)
class NegToMeConfig:
    """Strength, place and time of negative token merging; hashable, so it may be a static argument."""

    alpha: float = 0.9
    """How far tokens are pushed; a negative number pulls them towards the reference."""
    threshold: float = 0.65
    """Cosine that a match must exceed."""
    t_start: float = 1000.0
    """The first and noisiest timestep at which tokens are pushed, in the scheduler's units."""
    t_end: float = 900.0
    """The last one."""
    dropout: float = 0.0
    """Share of the matches that are left alone at random."""
    blocks: str = ""
    """Regular expression that is searched for in a block's name; the empty one is in all of them."""
    min_tokens: int = 0
    """Blocks with fewer image tokens are left alone."""
    reference: Reference = "first"
    """What an image is pushed away from, see `negtome_batch`."""
    match: Match = "paper"
    """The axis of the maximum: that of the paper, or that of the released code."""

    def __post_init__(self) -> None:
        one_of("reference", self.reference, get_args(Reference))
        one_of("match", self.match, get_args(Match))
        check_range("dropout", self.dropout, 0, 1)
        if self.t_end > self.t_start:
            raise ValueError(f"t_end: expected at most t_start = {self.t_start}, got {self.t_end}")

    @classmethod
    def flux(cls) -> "NegToMeConfig":
        """Flux.1-dev: image tokens in all joint and single blocks, before the out-projection."""
        return cls()

    @classmethod
    def sdxl(cls) -> "NegToMeConfig":
        """SDXL: the outputs of self- and cross-attention in the up-blocks of 32 x 32 tokens and more."""
        return cls(threshold=0.7, t_end=800.0, blocks="up_blocks", min_tokens=32 * 32)

    def applies_to(self, block: str, tokens: int) -> bool:
        """Whether a block of this name with so many image tokens is one of those that are changed.

        Example:
            >>> NegToMeConfig.sdxl().applies_to("up_blocks.0.attentions.1", 1024)
            True
        """
        return tokens >= self.min_tokens and re.search(self.blocks, block) is not None


def in_window(t: Any, t_start: Any, t_end: Any) -> Bool[Array, "..."]:
    """Whether a timestep lies in the window, both ends included.

    ``t_end <= t <= t_start``

    Args:
        t: timesteps, in the scheduler's units (0 to 1000), any shape.
        t_start: the noisiest timestep of the window.
        t_end: the least noisy one.

    Returns:
        Booleans of the shape of ``t``.

    Source:
        arXiv:2412.01339, the released code: tokens are pushed in the first sampling steps.

    Example:
        >>> in_window(jnp.array([1000, 950, 899]), 1000, 900).tolist()
        [True, True, False]
    """
    t = jnp.asarray(t)
    return (t >= t_end) & (t <= t_start)


def match_tokens(
    src: Float[Array, "batch tokens width"],
    ref: Float[Array, "references others width"],
    *,
    ref_mask: Bool[Array, "*batch others"] | None = None,
    match: Match = "paper",
) -> tuple[Int[Array, "batch tokens"], Float[Array, "batch tokens"]]:
    """The most similar reference token of every source token, and their cosine.

    ``S_ij = h_i . r_j / (max(|h_i|, 1e-12) max(|r_j|, 1e-12))``;
    ``"paper": j*(i) = argmax_j S_ij, s*(i) = max_j S_ij``;
    ``"official": j*(j) = argmax_i S_ij, s*(j) = max_i S_ij``

    Args:
        src: h, tokens of B images.
        ref: r, tokens of one reference for all images, or of one for each.
        ref_mask: true where a reference token may be matched, ``[M]`` or ``[B, M]``; None: all may be. With
            ``"official"`` it is the source token at the same position that goes without.
        match: the axis of the maximum. ``"official"`` needs as many reference as source tokens.

    Returns:
        Indices of reference tokens (the lowest one of equals), int32, and cosines at least in float32; where
        nothing may be matched index 0 and -1e30.

    Raises:
        TypeError: tokens that are not floating, a mask that is not boolean.
        ValueError: shapes that do not fit, an unknown match.

    Source:
        arXiv:2412.01339, Section 3, step 1; for ``"official"`` the released code.

    Example:
        >>> tokens = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
        >>> index, similarity = match_tokens(tokens, tokens[:, ::-1])
        >>> index.tolist(), similarity.tolist()
        ([[1, 0]], [[1.0, 1.0]])
    """
    _check_tokens(src, ref, match)
    keep = _checked_mask(ref_mask, (ref.shape[1],), (src.shape[0], ref.shape[1]))

    def matched(src: Array, ref: Array, keep: Array | None) -> tuple[Array, Array]:
        return _matched(src, ref, keep, match)

    return _on_auto_axes(matched, src, 2, src, ref, keep)


def negative_token_merge(
    h: Float[Array, "batch tokens width"],
    ref: Float[Array, "references others width"],
    *,
    alpha: float | Array,
    threshold: float | Array,
    ref_mask: Bool[Array, "*batch others"] | None = None,
    active: Bool[Array, " batch"] | None = None,
    dropout: float | Array = 0.0,
    key: PRNGKeyArray | None = None,
    match: Match = "paper",
) -> Float[Array, "batch tokens width"]:
    """Tokens pushed away from the most similar tokens of a reference.

    ``h'_i = h_i + alpha (h_i - r_{j*(i)})`` where ``s*(i) > threshold``, else ``h_i``

    The tokens themselves are mixed, not their directions, and no norm is restored.

    Args:
        h: output of an attention block for B images.
        ref: tokens of one reference for all images, or of one for each, at the same block and timestep.
        alpha: strength, a number or one for each image; below 0 it pulls towards the reference. It and the
            threshold may be traced.
        threshold: cosine that a match must exceed, likewise.
        ref_mask: as in `match_tokens`; a token that no reference token may match stays as it is.
        active: images that are changed; None: all.
        dropout: probability that a match is left alone.
        key: for the dropout.
        match: as in `match_tokens`.

    Returns:
        The tokens, in their dtype. The gradient takes the matches as given.

    Raises:
        TypeError: tokens that are not floating, masks that are not boolean.
        ValueError: shapes that do not fit, an unknown match, a dropout outside [0, 1] or without a key.

    Source:
        arXiv:2412.01339, Section 3 and Algorithm 1.

    Example:
        >>> h, ref = jnp.array([[[1.0, 0.0], [0.0, 2.0]]]), jnp.array([[[0.0, 1.0]]])
        >>> negative_token_merge(h, ref, alpha=0.5, threshold=0.6).tolist()
        [[[1.0, 0.0], [0.0, 2.5]]]
    """
    _check_tokens(h, ref, match)
    keep = _checked_mask(ref_mask, (ref.shape[1],), (h.shape[0], ref.shape[1]))
    strength = _strength(h, alpha, threshold, active, dropout, key)

    def merged(h: Array, ref: Array, keep: Array | None, strength: _Strength) -> Array:
        index, similarity = _matched(jax.lax.stop_gradient(h), jax.lax.stop_gradient(ref), keep, match)
        return _extrapolated(h, ref, index, similarity, strength)

    return _on_auto_axes(merged, h, 3, h, ref, keep, strength)


def negtome_batch(
    h: Float[Array, "batch tokens width"],
    *,
    group_size: int | None = None,
    group_ids: Int[Array, " batch"] | None = None,
    reference: Reference = "first",
    alpha: float | Array,
    threshold: float | Array,
    ref_mask: Bool[Array, "*batch tokens"] | None = None,
    active: Bool[Array, " batch"] | None = None,
    dropout: float | Array = 0.0,
    key: PRNGKeyArray | None = None,
    match: Match = "paper",
) -> Float[Array, "batch tokens width"]:
    """Tokens pushed away from those of other images of the batch, within groups of images.

    ``"first"``: away from the first image of the group, which stays as it is. ``"leave_one_out"``: away from
    all other images of the group; each pair of images is compared once, for both. ``"external"``: the first
    entry of the batch is a given image that runs along, and all others are pushed away from it.

    On a mesh a group is best kept on one device: what a token is compared with is gathered otherwise.

    Args:
        h: output of an attention block for B images.
        group_size: images of one prompt, G; they lie next to each other, and G divides B. Default: B.
        group_ids: instead of it the group of each image, in any order; costs as much as one group of all.
        reference: what an image is pushed away from.
        alpha: as in `negative_token_merge`.
        threshold: likewise.
        ref_mask: true where a token may serve as reference: ``[N]``, or ``[B, N]`` for each image by itself.
        active: images that are changed; None: all that have a reference.
        dropout: probability that a match is left alone.
        key: for the dropout.
        match: as in `match_tokens`; ``"official"`` knows no ``"leave_one_out"``.

    Returns:
        The tokens, in their dtype. An image that is alone in its group stays as it is.

    Raises:
        TypeError: tokens that are not floating, ids that are not integers, masks that are not boolean.
        ValueError: shapes that do not fit, a group size that does not divide B, both ways to name groups, a
            choice that does not exist, a dropout outside [0, 1] or without a key.

    Source:
        arXiv:2412.01339, Section 3; ``"first"`` over the whole batch is the released code.

    Example:
        >>> h = jnp.ones((4, 9, 8)).at[1].mul(2.0)
        >>> pushed = negtome_batch(h, group_size=2, alpha=0.5, threshold=0.6)
        >>> pushed[:, 0, 0].tolist()
        [1.0, 2.5, 1.0, 1.0]
    """
    one_of("reference", reference, get_args(Reference))
    _check_tokens(h, h, match)
    batch, tokens, _ = h.shape
    if match == "official" and reference == "leave_one_out":
        raise ValueError("match: expected 'paper' with reference='leave_one_out', got 'official'")
    if reference == "external" and (group_size is not None or group_ids is not None):
        raise ValueError(_NO_GROUPS)
    if group_size is not None and group_ids is not None:
        raise ValueError("group_ids: expected either group_size or group_ids, got both")
    size = batch if group_size is None else group_size
    if size < 1 or batch % size:
        raise ValueError(f"group_size: expected a divisor of the batch of {batch} images, got {group_size}")
    keep = _checked_mask(ref_mask, (tokens,), (batch, tokens))
    strength = _strength(h, alpha, threshold, active, dropout, key)
    groups = batch // size
    ids = None if group_ids is None else _checked_ids(group_ids, batch)
    if size == 1:
        return h

    def merged(h: Array, keep: Array | None, strength: _Strength, ids: Array | None) -> Array:
        fixed = jax.lax.stop_gradient(h)
        keep = None if keep is None else jnp.broadcast_to(keep, (batch, tokens))
        if reference == "leave_one_out":
            index, similarity = _best_of_others(fixed, keep, groups, ids)
        elif ids is None:
            index, similarity = _best_of_first(fixed, keep, groups, match)
        else:
            first = jnp.argmax(ids == ids[:, None], axis=1)
            index, similarity = _matched(fixed, fixed[first], None if keep is None else keep[first], match)
            index = index + tokens * first[:, None]
            similarity = jnp.where((first == jnp.arange(batch))[:, None], _MASKED, similarity)
        rows = h.reshape(groups, -1, h.shape[-1])
        rows = jax.vmap(lambda rows, index: rows[index])(rows, index.reshape(groups, -1))
        return _pushed(h, rows.reshape(h.shape), similarity, strength)

    return _on_auto_axes(merged, h, 3, h, keep, strength, ids)


def negtome_joint(
    h: Float[Array, "batch text+tokens width"], num_text_tokens: int, **options: Any
) -> Float[Array, "batch text+tokens width"]:
    """Negative token merging of the image tokens behind the text tokens of a joint attention (MM-DiT).

    ``[h_text, negtome_batch(h_image)]``

    Args:
        h: output of the attention, heads merged, before the out-projection: first the text, then the image.
        num_text_tokens: how many tokens in front stay as they are.
        **options: those of `negtome_batch`.

    Returns:
        The tokens, in their dtype.

    Raises:
        TypeError: as `negtome_batch`.
        ValueError: as `negtome_batch`; more text tokens than tokens.

    Source:
        arXiv:2412.01339, the released code for Flux.

    Example:
        >>> negtome_joint(jnp.ones((2, 7, 4)), 3, alpha=0.9, threshold=0.65).shape
        (2, 7, 4)
    """
    if h.ndim != 3 or not 0 <= num_text_tokens < h.shape[1]:
        raise ValueError(
            f"num_text_tokens: expected fewer than the tokens of h, of shape {h.shape}, got {num_text_tokens}"
        )
    text, image = h[:, :num_text_tokens], h[:, num_text_tokens:]
    return jnp.concatenate([text, negtome_batch(image, **options)], axis=1)


def negtome_cfg(
    h: Float[Array, "2*batch tokens width"],
    *,
    group_size: int | None = None,
    group_ids: Int[Array, " batch"] | None = None,
    ref_mask: Bool[Array, "*batch tokens"] | None = None,
    active: Bool[Array, " batch"] | None = None,
    **options: Any,
) -> Float[Array, "2*batch tokens width"]:
    """Negative token merging where the batch holds both branches of classifier-free guidance.

    Each half is merged within itself, with its own references.

    Args:
        h: output of an attention block for the B images without and then with their condition.
        group_size: as in `negtome_batch`, within a half.
        group_ids: likewise, for one half.
        ref_mask: likewise, ``[N]``, or ``[B, N]`` for one half.
        active: likewise, for one half.
        **options: the others of `negtome_batch`.

    Returns:
        The tokens, in their dtype.

    Raises:
        TypeError: as `negtome_batch`.
        ValueError: as `negtome_batch`; an odd batch.

    Source:
        arXiv:2412.01339, the released code for SDXL.

    Example:
        >>> negtome_cfg(jnp.ones((4, 9, 8)), alpha=0.9, threshold=0.7).shape
        (4, 9, 8)
    """
    if h.ndim != 3 or h.shape[0] % 2:
        raise ValueError(f"h: expected both halves of a batch, [2 B, N, D], got shape {h.shape}")
    half = h.shape[0] // 2
    if options.get("reference") == "external":
        if group_size is not None or group_ids is not None:
            raise ValueError(_NO_GROUPS)
        options["reference"] = "first"
    if group_ids is None:
        size = half if group_size is None else group_size
        if size < 1 or half % size:
            raise ValueError(
                f"group_size: expected a divisor of the batch of {half} images, got {group_size}"
            )
        group: dict[str, Any] = {"group_size": size}
    else:
        ids = _checked_ids(group_ids, half)
        # A half alone decides what is a group: the other one's ids are moved out of the way.
        group = {"group_ids": jnp.concatenate([2 * ids, 2 * ids + 1]), "group_size": group_size}
    if ref_mask is not None and jnp.ndim(ref_mask) == 2:
        ref_mask = jnp.concatenate([jnp.asarray(ref_mask)] * 2)
    if active is not None:
        active = jnp.concatenate([jnp.asarray(active)] * 2)
    return negtome_batch(h, **group, ref_mask=ref_mask, active=active, **options)


def negtome_hook(
    config: NegToMeConfig,
    t: float | Array,
    *,
    num_text_tokens: int = 0,
    guided: bool = False,
    group_size: int | None = None,
    group_ids: Int[Array, " batch"] | None = None,
    ref_mask: Bool[Array, "*batch tokens"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Callable[..., Array]:
    """Negative token merging of one sampling step, as a function of an attention block's output.

    Outside the window of timesteps nothing is computed (`jax.lax.cond`).

    Args:
        config: strength, place and time.
        t: the timestep of the whole batch, a scalar; it may be traced.
        num_text_tokens: of a joint attention, in front of the image tokens.
        guided: whether the batch holds both halves of classifier-free guidance.
        group_size: as in `negtome_batch`, in a half.
        group_ids: likewise.
        ref_mask: likewise.
        key: for the dropout.

    Returns:
        ``hook(h [batch, text + tokens, width], block=None) -> h``; ``block`` is the name that
        ``config.blocks`` is searched in.

    Raises:
        ValueError: a timestep that is no scalar; from the hook, as `negtome_batch`, and where
            ``config.blocks`` chooses among blocks and the caller does not name them.

    Source:
        arXiv:2412.01339, Section 3.

    Example:
        >>> hook = negtome_hook(NegToMeConfig.flux(), 950.0)
        >>> hook(jnp.ones((2, 9, 8)), "single_blocks.3").shape
        (2, 9, 8)
    """
    if jnp.ndim(t):
        raise ValueError(f"t: expected one timestep for the whole batch, got shape {jnp.shape(t)}")
    merge = negtome_cfg if guided else negtome_batch

    def push(h: Array) -> Array:
        text, image = h[:, :num_text_tokens], h[:, num_text_tokens:]
        pushed = merge(
            image,
            group_size=group_size,
            group_ids=group_ids,
            reference=config.reference,
            alpha=config.alpha,
            threshold=config.threshold,
            ref_mask=ref_mask,
            dropout=config.dropout,
            key=key,
            match=config.match,
        )
        return jnp.concatenate([text, pushed], axis=1) if num_text_tokens else pushed

    def hook(h: Array, block: str | None = None) -> Array:
        if block is None and config.blocks:
            raise ValueError(
                f"block: expected the block's name, since config.blocks = {config.blocks!r} chooses among"
                " them, got None (a network that runs its blocks in a loop does not name them)"
            )
        if not config.applies_to(block or "", h.shape[1] - num_text_tokens):
            return h
        return jax.lax.cond(in_window(t, config.t_start, config.t_end), push, lambda h: h, h)

    return hook


class _Strength(NamedTuple):
    """Which matches count, and how much: numbers or ``[B, 1]``, and ``[B, N]``."""

    alpha: Array
    threshold: Array
    kept: Array | None


def _strength(
    h: Array, alpha: Any, threshold: Any, active: Any, dropout: Any, key: PRNGKeyArray | None
) -> _Strength:
    dtype, batch = jnp.promote_types(h.dtype, jnp.float32), h.shape[0]

    kept: Array | None = None

    def number(name: str, value: Any) -> Array:
        value = jnp.asarray(value, dtype)
        if value.shape not in ((), (batch,)):
            raise ValueError(
                f"{name}: expected a number, or one for each of {batch} images, got shape {value.shape}"
            )
        return value[:, None] if value.ndim else value

    if active is not None:
        kept = jnp.asarray(active)
        _require_boolean("active", kept)
        if kept.shape != (batch,):
            raise ValueError(
                f"active: expected one boolean for each of {batch} images, got shape {kept.shape}"
            )
        kept = kept[:, None]
    check_range("dropout", dropout, 0, 1)
    if not isinstance(dropout, Real) or float(dropout) > 0:
        if key is None:
            raise ValueError(f"key: expected a random key for dropout = {dropout}, got None")
        drawn = jnp.greater(jax.random.uniform(key, h.shape[:2]), jnp.asarray(dropout))
        kept = drawn if kept is None else jnp.logical_and(kept, drawn)
    return _Strength(number("alpha", alpha), number("threshold", threshold), kept)


def _matched(src: Array, ref: Array, keep: Array | None, match: Match) -> tuple[Array, Array]:
    """Indices into ``ref`` and cosines, for the tokens of ``src``."""
    if match == "paper":
        return _best(src, ref, keep)
    index, similarity = _best(ref, src, None)
    if keep is None:
        return index, similarity
    return jnp.where(keep, index, 0), jnp.where(keep, similarity, _MASKED)


def _best(src: Array, ref: Array, keep: Array | None) -> tuple[Array, Array]:
    """The first most similar one of ``ref [1|B, M, D]`` for each of ``src [1|B, N, D]``, block after block.

    ``keep`` is ``[M]`` or ``[B, M]``. One of the two may be shared by the whole batch.
    """
    tokens, inverse = src.shape[1], _inverse_norms(ref)
    blocks = -(-tokens // _ROWS)
    rows = -(-tokens // blocks)
    src = jnp.pad(src, ((0, 0), (0, blocks * rows - tokens), (0, 0)))

    def block(start: Array) -> tuple[Array, Array]:
        h = jax.lax.dynamic_slice_in_dim(src, start, rows, axis=1)
        # References in front: their maximum is then one over rows, which a CPU takes many columns at a time.
        scores = _products(ref, h) * inverse[..., None]
        return _first_best(scores, None if keep is None else keep[..., None], -2, _inverse_norms(h))

    index, similarity = jax.lax.map(block, rows * jnp.arange(blocks))
    index, similarity = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in (index, similarity))
    return index[:, :tokens], similarity[:, :tokens]


def _best_of_first(h: Array, keep: Array | None, groups: int, match: Match) -> tuple[Array, Array]:
    """Of each group's first image the best match, for all images but that one; indices within the group."""
    batch, tokens, width = h.shape
    h = h.reshape(groups, -1, tokens, width)
    others, first = h[:, 1:], h[:, 0]
    keep = None if keep is None else keep.reshape(groups, -1, tokens)[:, 0]
    if match == "paper":
        index, similarity = _best(others.reshape(groups, -1, width), first, keep)
    else:
        # The axis of the maximum lies within an image: each has its own.
        first = jnp.repeat(first, others.shape[1], axis=0)
        keep = None if keep is None else jnp.repeat(keep, others.shape[1], axis=0)
        index, similarity = _matched(others.reshape(-1, tokens, width), first, keep, match)

    def with_first(x: Array, fill: float) -> Array:
        rows = x.reshape(groups, -1, tokens)
        return jnp.pad(rows, ((0, 0), (1, 0), (0, 0)), constant_values=fill).reshape(batch, tokens)

    return with_first(index, 0), with_first(similarity, _MASKED)


def _best_of_others(h: Array, keep: Array | None, groups: int, ids: Array | None) -> tuple[Array, Array]:
    """The best match among all other images of the group; indices within the group.

    Tile meets tile once: the maxima over its rows are for one image, those over its columns for the other.
    """
    batch, tokens, width = h.shape
    size, per_image = batch // groups, -(-tokens // _TILE)
    side = -(-tokens // per_image)
    extra = per_image * side - tokens
    if extra:
        keep = jnp.ones((batch, tokens), bool) if keep is None else keep
        keep = jnp.pad(keep, ((0, 0), (0, extra)))
        h = jnp.pad(h, ((0, 0), (0, extra), (0, 0)))
    tiles = h.reshape(groups, -1, side, width)
    inverse = _inverse_norms(tiles)
    keep = None if keep is None else keep.reshape(groups, -1, side)
    image, offset = np.divmod(np.arange(size * per_image), per_image)
    # Each tile meets the others in their order, so that the first one of equals stays.
    meetings = [(i, j) for i, j in itertools.combinations(range(len(image)), 2) if image[i] != image[j]]
    starts = jnp.asarray(tokens * image + side * offset, jnp.int32)

    def better(best: tuple[Array, Array], own: Array, other: Array, found: tuple[Array, Array]) -> Any:
        index, similarity = (x[:, own] for x in best)
        wins = found[1] > similarity
        index = jnp.where(wins, starts[other] + found[0], index)
        similarity = jnp.where(wins, found[1], similarity)
        return best[0].at[:, own].set(index), best[1].at[:, own].set(similarity)

    def meet(best: tuple[Array, Array], pair: Array) -> tuple[tuple[Array, Array], None]:
        i, j = pair
        cosines = _products(tiles[:, i], tiles[:, j]) * (inverse[:, i, :, None] * inverse[:, j, None])
        if ids is not None:
            image_of = jnp.asarray(image)
            cosines = jnp.where(ids[image_of[i]] == ids[image_of[j]], cosines, _MASKED)
        rows, columns = (None, None) if keep is None else (keep[:, j, None, :], keep[:, i, :, None])
        best = better(best, i, j, _first_best(cosines, rows, -1))
        return better(best, j, i, _first_best(cosines, columns, -2)), None

    none = (jnp.zeros(tiles.shape[:3], jnp.int32), jnp.full(tiles.shape[:3], _MASKED, inverse.dtype))
    best, _ = jax.lax.scan(meet, none, jnp.asarray(meetings))
    index, similarity = (x.reshape(batch, -1)[:, :tokens] for x in best)
    return index, similarity


def _products(src: Array, ref: Array) -> Array:
    """``[B, n, m]``: the inner products of tokens, in float32 or wider, where either may be shared."""
    options: dict[str, Any] = {
        "precision": jax.lax.Precision.HIGHEST,
        "preferred_element_type": jnp.promote_types(jnp.result_type(src, ref), jnp.float32),
    }
    if ref.shape[0] == 1:
        return jnp.einsum("bnd,md->bnm", src, ref[0], **options)
    if src.shape[0] == 1:
        return jnp.einsum("nd,bmd->bnm", src[0], ref, **options)
    return jnp.einsum("bnd,bmd->bnm", src, ref, **options)


def _first_best(
    scores: Array, keep: Array | None, axis: int, scale: Array | None = None
) -> tuple[Array, Array]:
    """Index and value of the first maximum along an axis, the value times ``scale``.

    Two plain reductions, since a CPU's vector units do not help with that of a pair.
    """
    if keep is not None:
        scores = jnp.where(keep, scores, _MASKED)
    best = scores.max(axis, keepdims=True)
    count = scores.shape[axis]
    place = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim + axis)
    index = jnp.where(scores == best, place, count - 1).min(axis)
    best = best.squeeze(axis)
    nothing = best <= _MASKED
    value = best if scale is None else best * scale
    return jnp.where(nothing, 0, index), jnp.where(nothing, _MASKED, value)


def _inverse_norms(tokens: Array) -> Array:
    tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
    return 1 / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(tokens), axis=-1)), 1e-12)


def _extrapolated(h: Array, ref: Array, index: Array, similarity: Array, strength: _Strength) -> Array:
    matched = ref[0][index] if ref.shape[0] == 1 else jax.vmap(lambda rows, index: rows[index])(ref, index)
    return _pushed(h, matched, similarity, strength)


def _pushed(h: Array, matched: Array, similarity: Array, strength: _Strength) -> Array:
    """``h + alpha (h - matched)`` where the match counts."""
    # No cosine is below -1: a threshold under that must not let in what may not be matched.
    gate = similarity > jnp.maximum(strength.threshold, -2)
    gate = gate if strength.kept is None else gate & strength.kept
    wide = jnp.promote_types(h.dtype, jnp.float32)
    away = h.astype(wide) - matched.astype(wide)
    alpha = strength.alpha[..., None] if strength.alpha.ndim else strength.alpha
    return jnp.where(gate[..., None], (h + alpha * away).astype(h.dtype), h)


def _on_auto_axes(function: Callable[..., Any], like: Array, axes: int, *arguments: Any) -> Any:
    """Calls a function; under explicit axes the compiler shards what is inside, the result like ``like``."""
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(*arguments)
    out_sharding = P(*tuple(sharding.spec)[:axes])
    return jax.sharding.auto_axes(function, out_sharding=out_sharding)(*arguments)  # pyright: ignore


def _check_tokens(h: Array, ref: Array, match: str) -> None:
    one_of("match", match, get_args(Match))
    for name, tokens in (("h", h), ("ref", ref)):
        if not jnp.issubdtype(tokens.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {tokens.dtype}")
        if tokens.ndim != 3 or not tokens.size:
            raise ValueError(f"{name}: expected tokens [batch, tokens, width], got shape {tokens.shape}")
    if ref.shape[0] not in (1, h.shape[0]) or ref.shape[2] != h.shape[2]:
        raise ValueError(
            f"ref: expected one reference or {h.shape[0]}, of width {h.shape[2]}, got shape {ref.shape}"
        )
    if match == "official" and ref.shape[1] != h.shape[1]:
        raise ValueError(
            f"ref: match='official' needs as many tokens as there are source tokens, {h.shape[1]},"
            f" got {ref.shape[1]}"
        )


def _checked_mask(mask: Any, *shapes: tuple[int, ...]) -> Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    _require_boolean("ref_mask", mask)
    if mask.shape not in shapes:
        raise ValueError(f"ref_mask: expected shape {' or '.join(map(str, shapes))}, got {mask.shape}")
    return mask


def _checked_ids(ids: Any, batch: int) -> Array:
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"group_ids: expected integers, got dtype {ids.dtype}")
    if ids.shape != (batch,):
        raise ValueError(f"group_ids: expected one for each of {batch} images, got shape {ids.shape}")
    return ids


def _require_boolean(name: str, mask: Array) -> None:
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected booleans, got dtype {mask.dtype}")
