"""Decoding of language models: greedy, or sampled with temperature, top-k and top-p.

Top-k sampling is that of Fan et al. 2018 (arXiv:1805.04833, Section 4.3), top-p, or nucleus, sampling that of
Holtzman et al. 2019 (arXiv:1904.09751, Section 3.1). The model comes in as a function, `generate` runs it in
one loop on the device, with a cache of keys and values or without.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Step = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""``step(tokens [B, n], positions [B, n], mask [B, n], cache) -> (logits [B, n, V], cache)``."""


class Generated(NamedTuple):
    """What was generated.

    Attributes:
        tokens: ``[batch, max_new_tokens]``, padding after the end token.
        lengths: how many tokens come before the end token, ``[batch]``; ``max_new_tokens`` where there is
            none, so that the text was cut.
    """

    tokens: Int[Array, "batch new"]
    lengths: Int[Array, " batch"]


def next_token_distribution(
    logits: Float[Array, "*batch vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Array, "*batch vocab"]:
    """The probabilities that the next token is sampled with.

    ``p = softmax(logits / temperature)`` over the tokens that are kept: of the ``top_k`` most probable ones
    those of the smallest set of the most probable that holds at least ``top_p`` of their probability.

    Args:
        logits: of the next token.
        temperature: 0 for the most probable token alone (the first of equal ones).
        top_k: how many tokens are kept, and those as probable as the last of them; None for all.
        top_p: the probability that the kept tokens have at least; None for 1.

    Returns:
        Probabilities, at least float32; exactly 0 for tokens that are not kept.

    Raises:
        TypeError: logits that are not floating.
        ValueError: a temperature below 0 or not finite, top_k below 1, top_p not in (0, 1].

    Source:
        Holtzman et al. 2019, arXiv:1904.09751, Equations 1 to 4.

    Example:
        >>> next_token_distribution(jnp.array([0.0, 1.0, 3.0, 3.0]), top_k=3, top_p=0.9).tolist()
        [0.0, 0.0, 0.5, 0.5]
    """
    if temperature == 0:
        best = jnp.argmax(_checked(logits, temperature, top_k, top_p), axis=-1)
        return jax.nn.one_hot(best, logits.shape[-1], dtype=jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.softmax(_kept_logits(logits, temperature, top_k, top_p), axis=-1)


def sample_token(
    key: jax.Array,
    logits: Float[Array, "*batch vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, "*batch"]:
    """A token drawn from `next_token_distribution`.

    ``token ~ p``, or ``argmax_v logits[v]`` at temperature 0.

    Args:
        key: a random key; not used at temperature 0.
        logits: of the next token.
        temperature: as in `next_token_distribution`.
        top_k: likewise.
        top_p: likewise.

    Returns:
        A token for each row, int32.

    Raises:
        TypeError: logits that are not floating.
        ValueError: a temperature below 0 or not finite, top_k below 1, top_p not in (0, 1].

    Source:
        Holtzman et al. 2019, arXiv:1904.09751, Section 3.

    Example:
        >>> sample_token(jax.random.key(0), jnp.array([[0.0, 3.0, 1.0]]), top_k=1).tolist()
        [1]
    """
    if temperature == 0:
        return jnp.argmax(_checked(logits, temperature, top_k, top_p), axis=-1).astype(jnp.int32)
    kept = _kept_logits(logits, temperature, top_k, top_p)
    return jax.random.categorical(key, kept).astype(jnp.int32)


def generate(
    key: jax.Array,
    step: Step,
    prompt: Int[Array, "batch tokens"],
    mask: Bool[Array, "batch tokens"] | None = None,
    cache: Any = None,
    *,
    max_new_tokens: int,
    eos: int | Sequence[int] | None,
    pad: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Generated:
    """Continues prompts until all have ended, in one loop on the device.

    ``token_t ~ p(. | prompt, token_1, ..., token_{t-1})``, see `next_token_distribution`.

    Args:
        key: a random key; not used at temperature 0.
        step: ``step(tokens [B, n], positions [B, n], mask [B, n], cache) -> (logits [B, n, V], cache)``, the
            model with its parameters. With a cache it gets the prompt first and one token at a time then;
            without, prompt and continuation at once, those to come masked.
        prompt: tokens, padded on the left (`left_padded`).
        mask: True where the prompt has a token; None for everywhere. Its last column must be True.
        cache: an empty cache for ``tokens + max_new_tokens - 1`` tokens, or None to run the model over all
            tokens each time. A cache with an attribute ``slots`` that says less is refused.
        max_new_tokens: how many tokens at most.
        eos: the token that ends a text, or several; None for no end.
        pad: what follows it.
        temperature: 0 for greedy decoding.
        top_k: as in `next_token_distribution`.
        top_p: likewise.

    Returns:
        Tokens and lengths.

    Raises:
        ValueError: a prompt that is not ``[batch, tokens]`` with at least one token, another shape of the
            mask, a numpy mask with padding on the right, max_new_tokens below 1, a cache without room, or
            options that `next_token_distribution` refuses.

    Source:
        Holtzman et al. 2019, arXiv:1904.09751, Section 3.

    Example:
        >>> def step(tokens, positions, mask, cache):  # the next token is the one after this one
        ...     return jax.nn.one_hot(tokens + 1, 8), cache
        >>> tokens, lengths = generate(
        ...     jax.random.key(0), step, jnp.array([[2], [5]]), max_new_tokens=4, eos=7, pad=0
        ... )
        >>> tokens.tolist(), lengths.tolist()
        ([[3, 4, 5, 6], [6, 7, 0, 0]], [4, 1])
    """
    if prompt.ndim != 2 or prompt.shape[1] < 1:
        raise ValueError(f"prompt: expected [batch, tokens] with at least one token, got {prompt.shape}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    if isinstance(mask, np.ndarray) and not mask[:, -1].all():
        raise ValueError(f"mask: row {int(np.argmin(mask[:, -1]))} ends with padding; pad on the left")
    mask = jnp.ones_like(prompt, bool) if mask is None else jnp.asarray(mask, bool)
    if mask.shape != prompt.shape:
        raise ValueError(f"mask: expected the shape of the prompt, {prompt.shape}, got {mask.shape}")
    read = prompt.shape[1]
    slots, needed = getattr(cache, "slots", None), read + max_new_tokens - 1
    if slots is not None and slots < needed:
        raise ValueError(
            f"cache: expected room for {needed} tokens ({read} of the prompt and max_new_tokens - 1),"
            f" got {slots} slots"
        )
    ends = np.atleast_1d(np.asarray([] if eos is None else eos, np.int32))
    tokens = jnp.concatenate([jnp.full_like(prompt[:, :1], pad, jnp.int32)] * max_new_tokens, axis=1)
    before = jnp.sum(mask, axis=1, dtype=jnp.int32)  # tokens of each prompt
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)

    def everything(tokens: Array, t: Array | int) -> tuple[Array, Array, Array]:
        """Prompt and continuation, of which ``t`` tokens are there."""
        new = jnp.arange(max_new_tokens)
        filled = (new < t) & jnp.ones_like(tokens, bool)
        return (
            jnp.concatenate([prompt, tokens.astype(prompt.dtype)], axis=1),
            jnp.concatenate([positions, before[:, None] + new], axis=1),
            jnp.concatenate([mask, filled], axis=1),
        )

    def sampled(t: Array | int, logits: Array) -> Array:
        return sample_token(jax.random.fold_in(key, t), logits, temperature, top_k, top_p)

    def written(state: tuple, t: Array | int, token: Array) -> tuple[Array, Array, Array]:
        """The tokens with one more, their lengths, and which rows have ended."""
        tokens, lengths, done = state
        column = jnp.arange(max_new_tokens) == t
        tokens = jnp.where(column & ~done[:, None], token[:, None], tokens)
        done |= jnp.any(token[:, None] == ends, axis=1)
        return tokens, lengths + ~done, done

    def unfinished(carry: tuple) -> Array:
        t, (_, _, done), _ = carry
        return (t < max_new_tokens) & ~jnp.all(done)

    def advanced(carry: tuple) -> tuple:
        t, state, cache = carry
        tokens, _, _ = state
        if cache is None:
            logits, _ = step(*everything(tokens, t), None)
            logits = jax.lax.dynamic_index_in_dim(logits, read + t - 1, axis=1, keepdims=False)
        else:
            last = jax.lax.dynamic_slice_in_dim(tokens, t - 1, 1, axis=1).astype(prompt.dtype)
            place = (before + t - 1)[:, None]
            logits, cache = step(last, place, jnp.ones_like(last, bool), cache)
            logits = logits[:, -1]
        return t + 1, written(state, t, sampled(t, logits)), cache

    if cache is None:
        logits = step(*everything(tokens, 0), None)[0][:, read - 1]
    else:
        logits, cache = step(prompt, positions, mask, cache)
        logits = logits[:, -1]
    state = (tokens, jnp.zeros_like(before), jnp.zeros_like(mask[:, 0]))
    state = written(state, 0, sampled(0, logits))
    _, (tokens, lengths, _), _ = jax.lax.while_loop(
        unfinished, advanced, (jnp.ones((), jnp.int32), state, cache)
    )
    return Generated(tokens, lengths)


def left_padded(
    rows: Sequence[Sequence[int]], pad: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as one array, padded on the left, so that all end in the last column.

    Args:
        rows: the tokens of each prompt.
        pad: the token in front.
        length: columns; None for the longest prompt's.

    Returns:
        Tokens ``[rows, length]`` int32, and the mask, True where there is a token.

    Raises:
        ValueError: no prompts, an empty one, or one longer than ``length``. The message names the row.

    Example:
        >>> tokens, mask = left_padded([[5, 6], [7]], pad=0)
        >>> tokens.tolist(), mask.tolist()
        ([[5, 6], [0, 7]], [[True, True], [False, True]])
    """
    lengths = [len(row) for row in rows]
    if not lengths:
        raise ValueError("rows: expected at least one prompt, got none")
    if min(lengths) < 1:
        raise ValueError(f"rows[{lengths.index(0)}]: expected at least one token, got an empty prompt")
    length = max(lengths) if length is None else length
    if max(lengths) > length:
        raise ValueError(
            f"rows[{lengths.index(max(lengths))}]: expected at most {length} tokens, got {max(lengths)};"
            " shorten the prompt or use a model with a longer context"
        )
    tokens = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = True
    return tokens, mask


def _checked(logits: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """The logits, at least in float32, once they and the options are valid."""
    if not jnp.issubdtype(jnp.result_type(logits), jnp.floating):
        raise TypeError(f"logits: expected a floating type, got {jnp.result_type(logits)}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: expected a finite number of at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number in (0, 1], or None, got {top_p}")
    return jnp.asarray(logits, jnp.promote_types(logits.dtype, jnp.float32))


def _kept_logits(logits: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """The logits over the temperature, minus infinity for tokens that are not kept."""
    scaled = _checked(logits, temperature, top_k, top_p)
    scaled = (scaled - jnp.max(scaled, axis=-1, keepdims=True)) / temperature
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled = _most_probable(scaled, lambda kept: jnp.sum(kept, axis=-1, keepdims=True) >= top_k)
    if top_p is not None and top_p < 1:
        p = jax.nn.softmax(scaled, axis=-1)
        scaled = _most_probable(
            scaled, lambda kept: jnp.sum(jnp.where(kept, p, 0), axis=-1, keepdims=True) >= top_p
        )
    return scaled


def _most_probable(scaled: Array, enough: Callable[[Array], Array]) -> Array:
    """The fewest largest logits that are enough, all equal ones with them; minus infinity for the others.

    Logits are at most zero here, and the bits of such numbers, read as integers, have the opposite order. So
    the threshold is found by halving, which takes a fraction of the time of sorting a vocabulary.
    """
    kind = np.dtype(f"int{8 * scaled.dtype.itemsize}")
    zero = np.array(-0.0, scaled.dtype)  # +0 would be a large integer
    depth = jax.lax.bitcast_convert_type(jnp.where(scaled == 0, zero, scaled), kind)

    def halved(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        least, most = bounds
        middle = least + (most - least) // 2
        reached = enough(depth <= middle)
        return jnp.where(reached, least, middle + 1), jnp.where(reached, middle, most)

    least = jnp.full_like(depth[..., :1], zero.view(kind))
    most = jnp.full_like(least, np.array(-np.inf, scaled.dtype).view(kind))
    _, threshold = jax.lax.fori_loop(0, 8 * kind.itemsize, halved, (least, most))
    return jnp.where(depth <= threshold, scaled, -jnp.inf)
