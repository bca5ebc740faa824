"""Weights by adding offsets: the negative model that follows a base model's own improvement.

Wang, Shui, Piao, Sun and Li 2025, "Diffusion-NPO", arXiv:2505.11245, Section 3; the same in Self-NPO,
arXiv:2505.11777. With the base weights theta, the offset eta of a preference-optimised model and the offset
delta of the negative fine-tuning, guidance takes theta + eta as its positive branch and
theta + alpha eta + beta delta as its negative one, which must stay close to it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxneg.diffusion.arguments import check_range, wide


def offset(tuned: Any, base: Any) -> Any:
    """What fine-tuning added to the weights.

    ``tuned - base``

    Args:
        tuned: weights after fine-tuning, a tree of floating-point arrays.
        base: weights before, a tree of the same paths and shapes.

    Returns:
        The differences, at least in float32.

    Raises:
        TypeError: a leaf that is not floating-point.
        ValueError: trees of other paths or shapes. The message names the path.

    Source:
        arXiv:2505.11245, Section 3.

    Example:
        >>> offset({"w": jnp.array([1.5])}, {"w": jnp.array([1.0])})["w"].tolist()
        [0.5]
    """
    after, before = _leaves("tuned", tuned), _leaves("base", base)
    _require_fits("tuned", after, before)
    if missing := [path for path in before if path not in after]:
        raise ValueError(f"tuned: {_name(missing[0])!r} is missing")
    differences = [wide(after[path]) - wide(leaf) for path, leaf in before.items()]
    return jax.tree.unflatten(jax.tree.structure(base), differences)


def merge_weights(
    base: Any, positive_offset: Any, negative_offset: Any, alpha: float = 1.0, beta: float = 1.0
) -> Any:
    """The weights of the negative branch of guidance.

    ``theta + alpha eta + beta delta``

    Args:
        base: theta, the weights before any preference optimisation, a tree of floating-point arrays.
        positive_offset: eta, what preference optimisation added (`offset`); None, and leaves that are
            missing, count as 0.
        negative_offset: delta, what the negative fine-tuning added; likewise.
        alpha: share of eta, in [0, 1]; with 1 the negative branch is as near to the positive one as can be.
        beta: share of delta, in [0, 1].

    Returns:
        A tree like ``base``, of its dtypes.

    Raises:
        TypeError: a leaf that is not floating-point.
        ValueError: an offset with a path that ``base`` lacks, or of another shape; a share outside [0, 1].

    Source:
        arXiv:2505.11245, Section 3. The official code's ``merge_weight`` is ``1 - alpha``.

    Example:
        >>> base, delta = {"w": jnp.array([1.0]), "b": jnp.array([0.0])}, {"w": jnp.array([2.0])}
        >>> merge_weights(base, None, delta, beta=0.5)["w"].tolist()
        [2.0]
    """
    for name, share in (("alpha", alpha), ("beta", beta)):
        check_range(name, share, 0, 1)
    theta = _leaves("base", base)
    eta, delta = _leaves("positive_offset", positive_offset), _leaves("negative_offset", negative_offset)
    _require_fits("positive_offset", eta, theta)
    _require_fits("negative_offset", delta, theta)

    def merged(path: tuple[Any, ...], leaf: Array) -> Array:
        total = wide(leaf)
        for share, added in ((alpha, eta), (beta, delta)):
            if path in added:
                total = total + share * wide(added[path])
        return total.astype(leaf.dtype)

    return jax.tree.unflatten(jax.tree.structure(base), [merged(*named) for named in theta.items()])


def _leaves(argument: str, tree: Any) -> dict[tuple[Any, ...], Array]:
    leaves = {path: jnp.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{argument}: {_name(path)!r}: expected a floating dtype, got {leaf.dtype}")
    return leaves


def _require_fits(argument: str, leaves: dict[tuple[Any, ...], Array], base: dict) -> None:
    for path, leaf in leaves.items():
        if path not in base:
            raise ValueError(f"{argument}: {_name(path)!r} is no path of the base weights")
        if leaf.shape != base[path].shape:
            raise ValueError(
                f"{argument}: {_name(path)!r}: expected shape {base[path].shape}, got {leaf.shape}"
            )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
