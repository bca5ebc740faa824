"""Low-rank adapters of chosen kernels, as a small tree of their own beside frozen parameters.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, Section 4.1.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.diffusion.arguments import check_positive

Adapters = dict[str, dict[str, Array]]
"""``a [*stack, in, rank]`` and ``b [*stack, rank, *out]`` of each adapted kernel, by its path."""


def lora_init(
    key: PRNGKeyArray,
    params: Any,
    *,
    rank: int,
    match: str = r"(to_q|to_v)/kernel$",
    stacked: int = 0,
) -> Adapters:
    """Adapters that change nothing yet.

    ``a ~ U(-1 / sqrt(in), 1 / sqrt(in)),  b = 0``

    Args:
        key: random key.
        params: the parameters to adapt, a tree of arrays.
        rank: r, the inner size.
        match: regular expression for the paths ("blocks/0/to_q/kernel") of the kernels that are adapted.
        stacked: leading axes of these kernels that number layers (1 for models that scan over their blocks).
            The axis after them is the input, all others are outputs.

    Returns:
        Adapters by path, in the kernels' dtypes, at least in float32.

    Raises:
        TypeError: a chosen parameter that is not floating.
        ValueError: a rank below 1, no path that matches, or a chosen parameter without input and output.

    Source:
        arXiv:2106.09685, Section 4.1; a is drawn as peft does (Kaiming-uniform with slope sqrt(5)).

    Example:
        >>> params = {"to_q": {"kernel": jnp.ones((4, 6))}, "to_k": {"kernel": jnp.ones((4, 6))}}
        >>> adapters = lora_init(jax.random.key(0), params, rank=2)
        >>> {path: (x["a"].shape, x["b"].shape) for path, x in adapters.items()}
        {'to_q/kernel': ((4, 2), (2, 6))}
    """
    if rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    leaves = _by_path(params)
    chosen = [path for path in leaves if re.search(match, path)]
    if not chosen:
        known = next(iter(leaves), None)
        raise ValueError(f"match: expected a pattern of kernels' paths, such as {known!r}, got {match!r}")
    adapters = {}
    for key, path in zip(jax.random.split(key, len(chosen)), chosen, strict=True):  # noqa: B020
        kernel = leaves[path]
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(f"{path}: expected a floating dtype, got {kernel.dtype}")
        if kernel.ndim < stacked + 2:
            raise ValueError(
                f"{path}: expected {stacked} stacked axes, an input and an output, got shape {kernel.shape}"
            )
        stack, inputs, outputs = kernel.shape[:stacked], kernel.shape[stacked], kernel.shape[stacked + 1 :]
        dtype, bound = jnp.promote_types(kernel.dtype, jnp.float32), 1 / math.sqrt(inputs)
        adapters[path] = {
            "a": jax.random.uniform(key, (*stack, inputs, rank), dtype, -bound, bound),
            "b": jnp.zeros((*stack, rank, *outputs), dtype),
        }
    return adapters


def lora_apply(params: Any, adapters: Mapping[str, Mapping[str, Array]], *, gamma: float | Array) -> Any:
    """Parameters with their adapters.

    ``W + (gamma / r) a b``

    A kernel and its adapters are added before the model sees them, so that any ``apply(params, ...)`` will
    do; the sum is in the wider of their dtypes, since bfloat16 would round small adapters away.

    Args:
        params: the frozen parameters.
        adapters: of `lora_init`; parameters without adapters come back as they are.
        gamma: scale, positive; divided by the rank.

    Returns:
        A tree like ``params``. With ``b = 0`` its values are exactly theirs.

    Raises:
        ValueError: adapters of a parameter that there is not, or of other sizes; a gamma not above 0.

    Source:
        arXiv:2106.09685, equation 3.

    Example:
        >>> adapters = {"w": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 3))}}
        >>> lora_apply({"w": jnp.zeros((2, 3))}, adapters, gamma=0.5)["w"].tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    check_positive(gamma=gamma)
    if unknown := adapters.keys() - _by_path(params).keys():
        raise ValueError(f"adapters: {sorted(unknown)[0]!r} is the path of no parameter")

    def adapted(path: tuple[Any, ...], kernel: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in adapters:
            return kernel
        a, b = adapters[name]["a"], adapters[name]["b"]
        stacked = a.ndim - 2
        if (*a.shape[:-1], *b.shape[stacked + 1 :]) != kernel.shape or a.shape[-1] != b.shape[stacked]:
            raise ValueError(
                f"adapters: {name!r} has shape {kernel.shape}; {a.shape} and {b.shape} do not fit it"
            )
        product = _product
        for _ in range(stacked):
            product = jax.vmap(product)
        return kernel + gamma / a.shape[-1] * product(a, b)

    return jax.tree_util.tree_map_with_path(adapted, params)


def lora_linear(
    x: Float[Array, "... inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None,
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
    *,
    gamma: float | Array,
) -> Float[Array, "... outputs"]:
    """A linear layer with an adapter, for models that know of adapters.

    ``x W + bias + (gamma / r) (x a) b``

    Args:
        x: inputs.
        kernel: W, frozen.
        bias: of the layer, or None.
        a: the adapter's first factor.
        b: its second one.
        gamma: scale, positive; divided by the rank.

    Returns:
        Outputs.

    Raises:
        ValueError: shapes that do not fit, or a gamma that is not positive.

    Source:
        arXiv:2106.09685, equation 3.

    Example:
        >>> a, b = jnp.ones((2, 1)), jnp.ones((1, 2))
        >>> lora_linear(jnp.ones((1, 2)), jnp.eye(2), None, a, b, gamma=0.5).tolist()
        [[2.0, 2.0]]
    """
    check_positive(gamma=gamma)
    inputs, outputs = kernel.shape
    for name, factor, shape in (("a", a, (inputs, b.shape[0])), ("b", b, (a.shape[-1], outputs))):
        if factor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {factor.shape}")
    y = x @ kernel + gamma / a.shape[-1] * ((x @ a) @ b)
    return y if bias is None else y + bias


def _product(a: Array, b: Array) -> Array:
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)


def _by_path(params: Any) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
