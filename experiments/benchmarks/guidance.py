"""Guidance away from negatives beside the arithmetic of the official PyTorch functions, on the same CPU.

The peers are written again from what the official functions compute, operation for operation: the weighted
perpendicular directions of stable-dreamfusion (Perp-Neg), ``negtome`` of the authors' SDXL and Flux pipelines
(with the maximum over its own axis, "official", and over the paper's), and two calls of
``scaled_dot_product_attention`` with a subtraction (NASA, which has no official code). Leave-one-out is not
in the released code of NegToMe: there the peer is the same arithmetic with the other images as reference.
Before anything is timed both sides compute the same numbers, or the benchmark stops.

Memory is the peak of the resident set over one call, less the resident set before it, each in a process of
its own (`experiments.isolated.peak_growth`).

NegToMe's share of a sampling step is measured on DiTs of SDXL's and Flux's width and number of image tokens
but few blocks, with NegToMe in every block, beside its share of the blocks' floating-point operations; and on
the whole sampler of the tiny DiT of the experiment neg_tome. NASA's share is that of a negative text in every
cross-attention of such a DiT of PixArt-alpha's width.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.neg_tome.network import digit_network
from experiments.neg_tome.sampling import Kind, Setting, sample
from experiments.peers import require_same, torch_for
from jaxneg.diffusion import (
    NegToMeConfig,
    nasa_cross_attention,
    negtome_batch,
    negtome_hook,
    perp_neg_guidance,
)
from jaxneg.nn.dit import DiTConfig, dit

SCALE, ALPHA, THRESHOLD, NASA_ALPHA = 7.5, 0.9, 0.65, 0.5
PAIR_SECONDS = 10.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""


class Stack(NamedTuple):
    """A DiT as wide as a text-to-image model, with fewer blocks, and how many images it makes at a time."""

    config: DiTConfig
    images: int

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return (self.config.size // self.config.patch) ** 2


STACKS = {
    "SDXL-like: 1280 wide, 1024 tokens": Stack(DiTConfig(32, 4, 1, 1280, layers=2, heads=20), 4),
    "Flux-like: 3072 wide, 2304 tokens": Stack(DiTConfig(48, 64, 1, 3072, layers=1, heads=24), 2),
}
PIXART = Stack(DiTConfig(64, 4, 2, 1152, layers=2, heads=16, text=1152), 2)
PIXART_TEXT = 120
"""Tokens of a text."""
DIGITS = "whole sampler of the experiment neg_tome: 64 wide, 16 tokens"


class Comparison(NamedTuple):
    """Two programs on the same input.

    Attributes:
        inputs: makes the arrays, float32.
        ours: a function of jax arrays.
        peer: ``(torch, *tensors)``.
        flops: floating-point operations of the products that cannot be left out.
    """

    inputs: Callable[[], list[np.ndarray]]
    ours: Callable[..., Any]
    peer: Callable[..., Any]
    flops: float


def run(repeats: int = 21) -> dict[str, Any]:
    """Times every comparison on one core and on all.

    Args:
        repeats: pairs of samples for each comparison, fewer where a call takes long.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` by comparison: ``ratio_median`` is the peer's time over
        ours, ``apart`` how far the two results are from each other, ``roofline_seconds`` the least time at
        the measured peaks; ``memory`` by comparison, ``ours_bytes`` and ``peer_bytes``; ``sampling_step`` by
        network: ``share``, by how much NegToMe in every block makes a step longer, and ``flops_share``, the
        same of floating-point operations, for steps in its window; ``paper_share`` is that of the paper over
        all steps; ``nasa_step`` likewise of NASA in every cross-attention, where the paper counts operations.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: two sides compute different numbers.
    """
    torch = torch_for("guidance")
    cores = available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores and the two steps",
            "torch threads": "one for each core",
            "pairs of samples": f"{repeats}, as many as {PAIR_SECONDS:g} s hold, at least 3",
            "NegToMe": f"alpha {ALPHA}, threshold {THRESHOLD}, one group of 4 images",
            "text tokens": f"77 of each prompt, {PIXART_TEXT} for nasa_step",
        },
        "one_core": in_a_process(cores[:1], _times, tuple(COMPARISONS), repeats),
        "all_cores": in_a_process(cores, _times, tuple(COMPARISONS), repeats) if len(cores) > 1 else {},
        "memory": {
            name: {
                "ours_bytes": in_a_process(cores[:1], _our_memory, name, keep_memory=False),
                "peer_bytes": in_a_process(cores[:1], _peer_memory, name, keep_memory=False),
            }
            for name in COMPARISONS
        },
        "sampling_step": in_a_process(cores, _sampling_steps, repeats),
        "nasa_step": in_a_process(cores, nasa_step, PIXART, PIXART_TEXT, repeats),
    }


def perp_neg_inputs(shape: tuple[int, ...], negatives: int) -> list[np.ndarray]:
    """Predictions without a prompt, with the prompt, with K negative ones, and weights ``[K, batch]``.

    Args:
        shape: of a prediction, the batch in front.
        negatives: K.

    Returns:
        Four arrays.

    Example:
        >>> [x.shape for x in perp_neg_inputs((8, 4, 2, 2), 3)]
        [(8, 4, 2, 2), (8, 4, 2, 2), (3, 8, 4, 2, 2), (3, 8)]
    """
    rng = np.random.default_rng(0)
    shapes = (shape, shape, (negatives, *shape))
    predictions = [rng.standard_normal(each, dtype=np.float32) for each in shapes]
    return [*predictions, -rng.uniform(0.5, 2, (negatives, shape[0])).astype(np.float32)]


def peer_perp_neg(torch: ModuleType, uncond: Any, pos: Any, neg: Any, weights: Any) -> Any:
    """Stable-dreamfusion's aggregation of perpendicular directions, and the guidance around it."""
    shape = (-1, *[1] * (pos.ndim - 1))
    direction, total = pos - uncond, torch.zeros_like(pos)
    for prediction, weight in zip(neg, weights, strict=True):
        used = weight.abs() > 1e-4
        if not used.any():
            continue
        x, y, floor = (prediction - uncond)[used], direction[used], torch.full_like(weight[used], 1e-6)
        axes = tuple(range(1, x.ndim))
        along = (x * y).sum(axes) / torch.maximum((y * y).sum(axes), floor)
        total[used] += weight[used].reshape(shape) * (x - along.reshape(shape) * y)
    return uncond + SCALE * (total + direction)


def similar_images(images: int, tokens: int, width: int) -> list[np.ndarray]:
    """Tokens of images that share some of what they show: some matches exceed the threshold, some do not.

    Args:
        images: B.
        tokens: N.
        width: D.

    Returns:
        One array ``[B, N, D]``.

    Example:
        >>> similar_images(4, 16, 8)[0].shape
        (4, 16, 8)
    """
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((1, tokens, width), dtype=np.float32)
    own = rng.standard_normal((images, tokens, width), dtype=np.float32)
    return [shared + rng.uniform(0.3, 1.2, (1, tokens, 1)).astype(np.float32) * own]


def peer_negtome(torch: ModuleType, h: Any, axis: int = -1) -> Any:
    """The official merge with the first image of the batch, the maximum over a choice of axes."""
    images, tokens, _ = h.shape
    unit = torch.nn.functional.normalize(h, dim=-1)
    cosines = torch.matmul(unit, unit[0:1].transpose(1, 2))
    similarity, index = torch.max(cosines, dim=axis)
    gate = similarity > THRESHOLD
    repeated = h[0:1].repeat(images, 1, 1)
    rows = torch.arange(images).unsqueeze(-1).expand(images, tokens)
    matched = repeated[rows, index, :]
    gate = gate.unsqueeze(-1).expand_as(matched)
    return torch.where(gate, (1 + ALPHA) * h - ALPHA * matched, h)


def peer_leave_one_out(torch: ModuleType, h: Any) -> Any:
    """The same arithmetic with all other images as each image's reference."""
    unit = torch.nn.functional.normalize(h, dim=-1)
    pushed = []
    for image in range(len(h)):
        others = [other for other in range(len(h)) if other != image]
        cosines = torch.matmul(unit[image], unit[others].flatten(0, 1).T)
        similarity, index = torch.max(cosines, dim=-1)
        matched = h[others].flatten(0, 1)[index]
        gate = (similarity > THRESHOLD).unsqueeze(-1).expand_as(matched)
        pushed.append(torch.where(gate, (1 + ALPHA) * h[image] - ALPHA * matched, h[image]))
    return torch.stack(pushed)


def attention_inputs(images: int, tokens: int, heads: int, size: int, text: int = 77) -> list[np.ndarray]:
    """Queries, and keys and values of both prompts, ``[B, tokens, heads, size]``.

    Args:
        images: B.
        tokens: of the image.
        heads: attention heads.
        size: of a head.
        text: tokens of each prompt.

    Returns:
        Five arrays.

    Example:
        >>> [x.shape[1] for x in attention_inputs(2, 16, 2, 4, text=7)]
        [16, 7, 7, 7, 7]
    """
    rng = np.random.default_rng(2)
    lengths = (tokens, text, text, text, text)
    return [rng.standard_normal((images, length, heads, size), dtype=np.float32) for length in lengths]


def peer_nasa(torch: ModuleType, *inputs: Any) -> Any:
    """Torch's own attention to each prompt, and the subtraction."""
    attention = torch.nn.functional.scaled_dot_product_attention
    q, k_pos, v_pos, k_neg, v_neg = (x.transpose(1, 2) for x in inputs)
    return (attention(q, k_pos, v_pos) - NASA_ALPHA * attention(q, k_neg, v_neg)).transpose(1, 2)


def perp_neg_comparison(shape: tuple[int, ...], negatives: int) -> Comparison:
    """Perp-Neg of K negatives."""

    def ours(uncond: jax.Array, pos: jax.Array, neg: jax.Array, weights: jax.Array) -> jax.Array:
        return perp_neg_guidance(uncond, pos, neg, weights, SCALE)

    return Comparison(lambda: perp_neg_inputs(shape, negatives), ours, peer_perp_neg, 0.0)


def negtome_comparison(images: int, tokens: int, width: int, kind: str) -> Comparison:
    """NegToMe: "first" with the paper's axis, "official" with the released code's, or "leave_one_out"."""
    options: dict[str, Any] = {"alpha": ALPHA, "threshold": THRESHOLD}
    product = 2.0 * tokens**2 * width
    if kind == "leave_one_out":
        flops = images * (images - 1) / 2 * product
        return Comparison(
            lambda: similar_images(images, tokens, width),
            lambda h: negtome_batch(h, reference="leave_one_out", **options),
            peer_leave_one_out,
            flops,
        )
    official = kind == "official"
    return Comparison(
        lambda: similar_images(images, tokens, width),
        lambda h: negtome_batch(h, match="official" if official else "paper", **options),
        lambda torch, h: peer_negtome(torch, h, -2 if official else -1),
        (images - 1) * product,
    )


def nasa_comparison(images: int, tokens: int, heads: int, size: int) -> Comparison:
    """NASA's cross-attention."""

    def ours(q: jax.Array, *prompts: jax.Array) -> jax.Array:
        k_pos, v_pos, k_neg, v_neg = prompts
        return nasa_cross_attention(q, k_pos, v_pos, k_neg, v_neg, NASA_ALPHA)

    flops = 4.0 * images * tokens * heads * size * 2 * 77
    return Comparison(lambda: attention_inputs(images, tokens, heads, size), ours, peer_nasa, flops)


COMPARISONS = {
    "perp_neg [8, 4, 64, 64], 2 negatives": perp_neg_comparison((8, 4, 64, 64), 2),
    "perp_neg [8, 4, 64, 64], 3 negatives": perp_neg_comparison((8, 4, 64, 64), 3),
    **{
        f"negtome {kind} [4, {tokens}, 1280]": negtome_comparison(4, tokens, 1280, kind)
        for tokens in (1024, 4096)
        for kind in ("first", "official", "leave_one_out")
    },
    "nasa SDXL [2, 4096, 10 x 64]": nasa_comparison(2, 4096, 10, 64),
    "nasa SDXL [2, 1024, 20 x 64]": nasa_comparison(2, 1024, 20, 64),
    "nasa [4, 1024, 8 x 64]": nasa_comparison(4, 1024, 8, 64),
}
"""What is compared, by name."""


def _times(names: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
    torch, peaks, measured = torch_for("guidance"), machine_peaks(), {}
    for name in names:
        comparison = COMPARISONS[name]
        arrays = comparison.inputs()
        given = [jnp.asarray(array) for array in arrays]
        tensors = [torch.from_numpy(array) for array in arrays]
        compiled = jax.jit(comparison.ours).lower(*given).compile()

        def ours(compiled: Any = compiled, given: list[jax.Array] = given) -> Any:
            return compiled(*given)

        def peer(comparison: Comparison = comparison, tensors: list[Any] = tensors) -> Any:
            with torch.inference_mode():
                return comparison.peer(torch, *tensors)

        apart = require_same(name, np.asarray(ours()), peer().numpy())
        timing = paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS)
        moved = sum(array.nbytes for array in arrays) + np.asarray(ours()).nbytes
        measured[name] = {
            **timing,
            "apart": apart,
            "roofline_seconds": roofline_seconds(comparison.flops, moved, peaks),
        }
    return measured


def _our_memory(name: str) -> int | None:
    comparison = COMPARISONS[name]
    given = [jnp.asarray(array) for array in comparison.inputs()]
    compiled = jax.jit(comparison.ours).lower(*given).compile()
    return _growth(lambda: jax.block_until_ready(compiled(*given)))


def _peer_memory(name: str) -> int | None:
    torch, comparison = torch_for("guidance"), COMPARISONS[name]
    tensors = [torch.from_numpy(array) for array in comparison.inputs()]

    def program() -> Any:
        with torch.inference_mode():
            return comparison.peer(torch, *tensors)

    return _growth(program)


def _growth(program: Callable[[], Any]) -> int | None:
    """Of a program that has run before, so that what is made once is there."""
    program()
    return peak_growth(program)


def stack_params(stack: Stack) -> Any:
    """Random parameters of a DiT, without the zeros that shut its blocks at the start of a training.

    Args:
        stack: the sizes.

    Returns:
        A tree.

    Example:
        >>> sorted(stack_params(Stack(DiTConfig(4, 2, 2, 8, layers=1, heads=2), 1))["blocks"]["0"])
        ['attention', 'feed_forward', 'modulation']
    """
    leaves, structure = jax.tree.flatten(jax.eval_shape(dit(stack.config).init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [
        jax.random.normal(key, leaf.shape) / leaf.shape[0] ** 0.5
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def run_stack(
    stack: Stack, params: Any, x: jax.Array, t: jax.Array, config: NegToMeConfig | None
) -> jax.Array:
    """What the network makes of latents in a step, with NegToMe before each attention's out-projection.

    Args:
        stack: the sizes.
        params: of `stack_params`.
        x: latents ``[images, size, size, channels]``.
        t: the timestep.
        config: of NegToMe; None: without.

    Returns:
        An array like the latents.

    Example:
        >>> stack = Stack(DiTConfig(4, 2, 2, 8, layers=1, heads=2), 1)
        >>> run_stack(stack, stack_params(stack), jnp.ones((1, 4, 4, 2)), jnp.array(950.0), None).shape
        (1, 4, 4, 2)
    """
    hook = None if config is None else negtome_hook(config, t)
    return dit(stack.config).apply(params, x, jnp.broadcast_to(t, x.shape[:1]), attention_hook=hook)


def stack_latents(stack: Stack) -> jax.Array:
    """Latents of images that share some of what they show.

    Args:
        stack: the sizes.

    Returns:
        ``[images, size, size, channels]``.

    Example:
        >>> stack_latents(Stack(DiTConfig(4, 2, 2, 8, layers=1, heads=2), 3)).shape
        (3, 4, 4, 2)
    """
    size, channels = stack.config.size, stack.config.channels
    pixels = similar_images(stack.images, size**2, channels)[0]
    return jnp.asarray(pixels.reshape(stack.images, size, size, channels))


def _sampling_steps(repeats: int) -> dict[str, dict[str, float]]:
    steps = {name: sampling_step(stack, repeats) for name, stack in STACKS.items()}
    return {**steps, DIGITS: digit_sampler(repeats)}


def sampling_step(stack: Stack, repeats: int) -> dict[str, float]:
    """How much longer a step takes with NegToMe in every block, and outside of its window of timesteps.

    Args:
        stack: the sizes.
        repeats: pairs of samples, fewer where a call takes long.

    Returns:
        ``without_seconds``, ``with_seconds``, ``share`` (with / without - 1) and its interval,
        ``outside_share``, ``flops_share``, and ``paper_share``, over all steps.
    """
    params, x = stack_params(stack), stack_latents(stack)
    inside, outside = jnp.array(950.0), jnp.array(500.0)

    def compiled(config: NegToMeConfig | None) -> Callable[[jax.Array], Any]:
        step = jax.jit(lambda params, x, t: run_stack(stack, params, x, t, config))
        return lambda t: step(params, x, t)

    plain, pushed = compiled(None), compiled(NegToMeConfig.flux())
    jax.block_until_ready([plain(inside), pushed(inside)])
    idle = _share(lambda: plain(outside), lambda: pushed(outside), repeats)
    N, D = stack.tokens, stack.config.width
    of_block = stack.images * (24 * N * D**2 + 4 * N**2 * D)
    return {
        **_share(lambda: plain(inside), lambda: pushed(inside), repeats),
        "outside_share": idle["share"],
        "flops_share": (stack.images - 1) * 2 * N**2 * D / of_block,
        "paper_share": 0.5 / 13.2,
    }


def steer(stack: Stack, params: Any, x: jax.Array, text: jax.Array, negative: jax.Array | None) -> jax.Array:
    """What a network with texts makes of latents in a step, with NASA in each cross-attention.

    Args:
        stack: the sizes.
        params: of `stack_params`.
        x: latents.
        text: ``[images, tokens, width]``.
        negative: negative texts; None: without.

    Returns:
        An array like the latents.

    Example:
        >>> stack = Stack(DiTConfig(4, 2, 2, 8, layers=1, heads=2, text=8), 1)
        >>> text = jnp.ones((1, 3, 8))
        >>> steer(stack, stack_params(stack), jnp.ones((1, 4, 4, 2)), text, None).shape
        (1, 4, 4, 2)
    """
    t, tokens = jnp.full(x.shape[:1], 500.0), text.shape[1]
    if negative is None:
        return dit(stack.config).apply(params, x, t, None, text)

    def nasa(q: jax.Array, k: jax.Array, v: jax.Array, _: None) -> jax.Array:
        return nasa_cross_attention(q, k[:, :tokens], v[:, :tokens], k[:, tokens:], v[:, tokens:], NASA_ALPHA)

    both = jnp.concatenate([text, negative], axis=1)
    return dit(stack.config).apply(params, x, t, None, both, cross_attention=nasa)


def nasa_step(stack: Stack, tokens: int, repeats: int) -> dict[str, float]:
    """How much longer a step takes with a negative text in every cross-attention.

    Args:
        stack: the sizes of a network with texts.
        tokens: of a text.
        repeats: pairs of samples, fewer where a call takes long.

    Returns:
        ``without_seconds``, ``with_seconds``, ``share`` and its interval, ``flops_share``, and
        ``paper_share``, that of floating-point operations.
    """
    params, x = stack_params(stack), stack_latents(stack)
    width = stack.config.text or 0
    texts = jax.random.normal(jax.random.key(1), (2, stack.images, tokens, width))
    plain = jax.jit(lambda params, x, texts: steer(stack, params, x, texts[0], None))
    pushed = jax.jit(lambda params, x, texts: steer(stack, params, x, texts[0], texts[1]))
    N, D = stack.tokens, stack.config.width
    of_text = 4 * tokens * width * D + 4 * N * tokens * D
    return {
        **_share(lambda: plain(params, x, texts), lambda: pushed(params, x, texts), repeats),
        "flops_share": of_text / (28 * N * D**2 + 4 * N**2 * D + of_text),
        "paper_share": 0.0189,
    }


def digit_sampler(repeats: int, steps: int = 25) -> dict[str, float]:
    """How much longer the tiny DiT's sampler takes with NegToMe, for eleven of 25 steps, and 4 images.

    Args:
        repeats: pairs of samples.
        steps: of sampling.

    Returns:
        ``without_seconds``, ``with_seconds``, ``share`` and its interval. The blocks are so small that this
        says nothing about large models.
    """
    model, label = digit_network(64, 4, 4), jnp.zeros(4, jnp.int32)
    stack = Stack(DiTConfig(8, 1, 2, 64, 4, 4, classes=10), 4)
    params, start = stack_params(stack), stack_latents(stack)

    def sampler(kind: Kind) -> Callable[[], Any]:
        given = jax.jit(
            lambda params, start: sample(
                model, params, [Setting(kind)], start, label, jax.random.key(0), group=4, steps=steps
            )
        )
        return lambda: given(params, start)

    return _share(sampler("none"), sampler("first"), repeats)


def _share(plain: Callable[[], Any], pushed: Callable[[], Any], repeats: int) -> dict[str, float]:
    """By how much the second program takes longer, with its interval."""
    timing = paired_ratio(plain, pushed, repeats, budget_seconds=PAIR_SECONDS)
    return {
        "without_seconds": timing["ours_seconds"],
        "with_seconds": timing["peer_seconds"],
        "share": timing["ratio_median"] - 1,
        "share_low": timing["ratio_low"] - 1,
        "share_high": timing["ratio_high"] - 1,
        "pairs": timing["pairs"],
    }
