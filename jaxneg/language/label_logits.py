"""Reading an answer off the logits of the next token, over every way in which a label may be spelt.

A tokenizer has different tokens for "Yes", " Yes" and "yes"; an answer's logit is the log-sum-exp over all of
them. This is the primary reading of the pipeline of ``neg_bias``; the paper's own, arXiv:2511.10881, was not
to be had.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def surface_forms(label: str) -> tuple[str, ...]:
    """The ways in which a label may be spelt at the beginning of an answer.

    Args:
        label: as in the prompt.

    Returns:
        The label as it is, in lower case and in capitals, each with and without a space in front.

    Raises:
        ValueError: an empty label.

    Example:
        >>> surface_forms("Yes")
        ('Yes', ' Yes', 'yes', ' yes', 'YES', ' YES')
    """
    if not label.strip():
        raise ValueError(f"label: expected a word, got {label!r}")
    words = dict.fromkeys((label, label.lower(), label.upper()))
    return tuple(space + word for word in words for space in ("", " "))


def label_forms(encode: Callable[[str], Sequence[int]], labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The tokens with which each label's surface forms begin, and no other label's.

    A token with which two labels begin, as a space that stands alone, tells nothing and is left out.

    Args:
        encode: text to token ids, without special tokens.
        labels: what may be answered.

    Returns:
        Token ids of each label.

    Raises:
        ValueError: fewer than two labels, or one that no token tells from the others.

    Example:
        >>> label_forms(lambda text: [ord(text.strip()[0])], ["Yes", "No"])
        ((89, 121), (78, 110))
    """
    if len(labels) < 2:
        raise ValueError(f"labels: expected at least two, got {list(labels)}")
    first = [{encode(form)[0]: None for form in surface_forms(label)} for label in labels]
    found = []
    for number, label in enumerate(labels):
        others = set().union(*(tokens for other, tokens in enumerate(first) if other != number))
        own = tuple(int(token) for token in first[number] if token not in others)
        if not own:
            raise ValueError(
                f"labels: expected labels that differ in their first token; {label!r} begins as another of"
                f" {list(labels)}"
            )
        found.append(own)
    return tuple(found)


def label_logits(
    logits: Float[Array, "*batch vocabulary"], forms: Sequence[Sequence[int]]
) -> Float[Array, "*batch labels"]:
    """The logit of each label: the log of the summed exponentials of its tokens' logits.

    ``z_k = log sum_(v in forms_k) exp(logits_v)``

    Args:
        logits: of the next token, where the answer begins.
        forms: token ids of each label, from `label_forms`.

    Returns:
        A logit for each label, in float32 or wider.

    Raises:
        TypeError: logits that are not floating.
        ValueError: a label without tokens, or a token that the vocabulary does not have.

    Example:
        >>> found = label_logits(jnp.log(jnp.array([1.0, 2.0, 4.0])), [[0, 1], [2]])
        >>> [round(float(value), 3) for value in jnp.exp(found)]
        [3.0, 4.0]
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits: expected a floating dtype, got {logits.dtype}")
    vocabulary = logits.shape[-1] if logits.ndim else 0
    for number, tokens in enumerate(forms):
        if not len(tokens) or not all(0 <= token < vocabulary for token in tokens):
            raise ValueError(
                f"forms: expected at least one token below {vocabulary} for each label, got {list(tokens)}"
                f" for label {number}"
            )
    longest = max(map(len, forms))
    table = np.array([[*tokens, *[tokens[0]] * (longest - len(tokens))] for tokens in forms])
    real = np.arange(longest) < np.array([len(tokens) for tokens in forms])[:, None]
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.logsumexp(wide[..., table], axis=-1, where=real)
