"""Repair of the heads that cause negative bias: adapters of these heads alone, or their hard ablation.

After Yu et al., "Correcting Negative Bias in Large Language Models through Negative Attention Score
Alignment", arXiv:2408.00137: only the negative heads are fine-tuned, with few parameters, until they look at
"Yes" as much as at "No". Rank, kernels and the ablation are this project's own; `nas_alignment_loss` is what
is minimised. The adapters are those of LoRA, Hu et al., arXiv:2106.09685, on a head's slice of a kernel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.language.attention_score import check_heads

HeadAdapters = dict[str, dict[str, dict[str, Array]]]
"""``a [in, rank]`` and ``b [rank, size]`` by the kernel's path and by the head: "head", or "layer/head" in a
kernel of all layers."""


class HeadKernel(NamedTuple):
    """Where a model keeps a kernel whose output axes are its heads', one after the other.

    Attributes:
        path: of the kernel in the tree of parameters, "blocks/{layer}/attention/query/kernel"; without
            ``{layer}`` for kernels of all layers, stacked on a leading axis.
        heads: heads in its output: query heads, or key heads.
    """

    path: str
    heads: int


def transformer_kernels(
    heads: int, kv_heads: int | None = None, *, stacked: bool = False
) -> tuple[HeadKernel, ...]:
    """The kernels of queries and keys in `jaxneg.nn.transformer`'s parameters.

    Args:
        heads: query heads.
        kv_heads: key heads; None for as many. Fewer key heads serve several query heads each, so that their
            kernel is not the head's own and is left out.
        stacked: whether the blocks are stacked (``scan=True``).

    Returns:
        What `head_mask_lora` takes.

    Example:
        >>> [kernel.path for kernel in transformer_kernels(4, stacked=True)]
        ['blocks/attention/query/kernel', 'blocks/attention/key/kernel']
    """
    layer = "" if stacked else "{layer}/"
    names = ("query", "key") if kv_heads in (None, heads) else ("query",)
    return tuple(HeadKernel(f"blocks/{layer}attention/{name}/kernel", heads) for name in names)


def head_mask_lora(
    key: PRNGKeyArray,
    params: Any,
    heads: Sequence[tuple[int, int]],
    kernels: Sequence[HeadKernel],
    *,
    rank: int = 16,
) -> HeadAdapters:
    """Low-rank adapters of chosen heads' slices, which change nothing yet.

    ``a ~ U(-1 / sqrt(in), 1 / sqrt(in)),  b = 0``

    Args:
        key: random key.
        params: the model's parameters, a tree of arrays.
        heads: ``(layer, head)`` of each head to adapt, the first of `rank_heads`.
        kernels: where its queries and keys are made.
        rank: inner size.

    Returns:
        Two small factors for each head and kernel, at least in float32: the only trainable parameters.

    Raises:
        TypeError: a kernel that is not floating.
        ValueError: no heads or no kernels, a head or a path that does not exist, a kernel that does not
            divide into its heads, or a rank below 1.

    Source:
        arXiv:2408.00137 for the idea; arXiv:2106.09685, Section 4.1 for the adapters.

    Example:
        >>> params = {"q": jnp.ones((2, 6, 4, 3)), "k": jnp.ones((2, 6, 4, 3))}
        >>> kernels = [HeadKernel("q", 4), HeadKernel("k", 4)]
        >>> adapters = head_mask_lora(jax.random.key(0), params, [(1, 3)], kernels, rank=2)
        >>> {path: list(of) for path, of in adapters.items()}, adapters["q"]["1/3"]["a"].shape
        ({'q': ['1/3'], 'k': ['1/3']}, (6, 2))
    """
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    if not kernels:
        raise ValueError("kernels: expected at least one, got none")
    leaves = _by_path(params)
    adapters: HeadAdapters = {}
    for kernel in kernels:
        check_heads(heads, None, kernel.heads)
        for layer, head in heads:
            path = kernel.path.format(layer=layer)
            inputs, size = _slice_shape(path, leaves, kernel, layer)
            dtype, bound = jnp.promote_types(leaves[path].dtype, jnp.float32), 1 / math.sqrt(inputs)
            key, of_head = jax.random.split(key)
            name = str(head) if "{layer}" in kernel.path else f"{layer}/{head}"
            adapters.setdefault(path, {})[name] = {
                "a": jax.random.uniform(of_head, (inputs, rank), dtype, -bound, bound),
                "b": jnp.zeros((rank, size), dtype),
            }
    return adapters


def apply_head_lora(
    params: Any, adapters: Mapping[str, Mapping[str, Mapping[str, Array]]], *, gamma: float | Array = 1.0
) -> Any:
    """Parameters with the adapters of their heads.

    ``W[:, head] + (gamma / rank) a b``

    Args:
        params: the frozen parameters.
        adapters: of `head_mask_lora`.
        gamma: scale of the adapters, divided by the rank.

    Returns:
        A tree like ``params``; what belongs to other heads is exactly theirs.

    Raises:
        ValueError: adapters of a parameter that there is not.

    Source:
        arXiv:2106.09685, equation 3, on a head's slice.

    Example:
        >>> adapters = {"q": {"1": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 3))}}}
        >>> apply_head_lora({"q": jnp.zeros((2, 2, 3))}, adapters)["q"][0].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if unknown := adapters.keys() - _by_path(params).keys():
        raise ValueError(f"adapters: {sorted(unknown)[0]!r} is the path of no parameter")

    def adapted(path: tuple[Any, ...], kernel: Array) -> Array:
        of_heads = adapters.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if of_heads is None:
            return kernel
        return kernel + gamma * _delta(kernel, of_heads)

    return jax.tree_util.tree_map_with_path(adapted, params)


def ablate_heads(
    attention: Float[Array, "*batch heads rows tokens"],
    chosen: Bool[Array, " heads"],
    t_yes: Int[Array, "*batch"] | int,
    t_no: Int[Array, "*batch"] | int,
) -> Float[Array, "*batch heads rows tokens"]:
    """One layer's attention with "Yes" and "No" made equal in chosen heads: their mean replaces both.

    ``A[i, yes] = A[i, no] = (A[i, yes] + A[i, no]) / 2``; rows keep their sum, and rows before either of the
    two words stay as they are.

    Args:
        attention: attention after the softmax.
        chosen: which heads.
        t_yes: position of "Yes", one for all or one for each prompt.
        t_no: position of "No".

    Returns:
        Attention of the same shape and type.

    Raises:
        ValueError: attention without heads, or not one boolean for each head.

    Source:
        The project's own alternative to fine-tuning, for inference.

    Example:
        >>> attention = jnp.array([[[0.25, 0.75, 0.0], [0.125, 0.375, 0.5]]])
        >>> ablate_heads(attention, jnp.array([True]), 0, 1).tolist()
        [[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]]
    """
    chosen = jnp.asarray(chosen)
    if attention.ndim < 3 or chosen.shape != attention.shape[-3:-2]:
        raise ValueError(
            f"chosen: expected one boolean for each head of attention {attention.shape}, got {chosen.shape}"
        )
    column = jnp.arange(attention.shape[-1])
    places = [jnp.asarray(t)[..., None, None, None] for t in (t_yes, t_no)]
    here = [column == place for place in places]
    values = [jnp.sum(jnp.where(each, attention, 0), -1, keepdims=True) for each in here]
    # Under causal attention a row before "No" cannot look at it, and must not learn to.
    seen = (values[0] > 0) & (values[1] > 0)
    equal = chosen[:, None, None] & seen & (here[0] | here[1])
    return jnp.where(equal, (0.5 * (values[0] + values[1])).astype(attention.dtype), attention)


def _slice_shape(path: str, leaves: Mapping[str, Array], kernel: HeadKernel, layer: int) -> tuple[int, int]:
    """Inputs of a kernel, and outputs of each of its heads."""
    if path not in leaves:
        known = next(iter(leaves), "")
        raise ValueError(f"kernels: {path!r} is the path of no parameter; there is {known!r}")
    leaf = leaves[path]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(f"{path}: expected a floating dtype, got {leaf.dtype}")
    stacked = "{layer}" not in kernel.path
    if stacked and layer >= leaf.shape[0]:
        raise ValueError(f"heads: {path} holds {leaf.shape[0]} layers, got layer {layer}")
    inputs, *outputs = leaf.shape[stacked:]
    if not outputs or math.prod(outputs) % kernel.heads:
        raise ValueError(f"{path}: shape {leaf.shape} does not divide into {kernel.heads} heads")
    return inputs, math.prod(outputs) // kernel.heads


def _delta(kernel: Array, of_heads: Mapping[str, Mapping[str, Array]]) -> Array:
    """What the adapters add to a kernel: zero but in the slices of their heads."""
    names, factors = list(of_heads), list(of_heads.values())
    stacked = "/" in names[0]
    inputs, size = factors[0]["a"].shape[0], factors[0]["b"].shape[1]
    layers = kernel.shape[0] if stacked else 1
    a, b = (jnp.stack([factor[name] for factor in factors]) for name in ("a", "b"))
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) / a.shape[-1]
    layer, head = np.array([name.split("/") if stacked else (0, name) for name in names], int).T
    delta = jnp.zeros((layers, inputs, kernel.size // layers // inputs // size, size), product.dtype)
    delta = delta.at[layer, :, head].set(product)
    return delta.reshape(kernel.shape)


def _by_path(params: Any) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
