"""The negative attention score from queries and keys, beside PyTorch's whole attention maps, on the same CPU.

The peer does what a hook on a model's attention does: it forms the scores of all pairs of a layer, masks the
future, takes the softmax, and reads the two columns; layer by layer, so that only one layer's maps are in
memory. We compute the two columns and the rows' normalisers in blocks. Before anything is timed both sides
compute the same scores, or the benchmark stops.

Memory is the peak of the resident set over one call, less the resident set before it, each in a process of
its own (`experiments.isolated.peak_growth`).
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.peers import require_same, torch_for
from jaxneg.language import attention_score_pairs, negative_attention_score


class Size(NamedTuple):
    """Prompts and a model's attention."""

    prompts: int
    tokens: int
    layers: int
    heads: int
    head_width: int

    @property
    def flops(self) -> float:
        """Of the scores of all pairs that causal attention has, each a multiplication and an addition."""
        pairs = self.tokens * (self.tokens + 1) / 2
        return 2 * pairs * self.head_width * self.prompts * self.layers * self.heads


SIZES = {
    "8 prompts of 512 tokens, 12 layers of 12 heads of 64": Size(8, 512, 12, 12, 64),
    "8 prompts of 128 tokens, 12 layers of 12 heads of 64": Size(8, 128, 12, 12, 64),
}


def run(repeats: int = 7) -> dict[str, Any]:
    """Times every size on one core and on all.

    Args:
        repeats: pairs of samples.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` by size: ``ratio_median`` is the peer's time over ours,
        ``apart`` how far the two results are from each other, ``roofline_seconds`` the least time at the
        measured peaks; ``memory`` by size, ``ours_bytes`` and ``peer_bytes``.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: two sides compute different numbers.
    """
    torch, cores = torch_for("negative_attention"), available_cores()
    names = tuple(SIZES)
    return {
        "settings": {
            "torch": torch.__version__,
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], _times, names, repeats),
        "all_cores": in_a_process(cores, _times, names, repeats) if len(cores) > 1 else {},
        "memory": {
            name: {
                "ours_bytes": in_a_process(cores[:1], _our_memory, name, keep_memory=False),
                "peer_bytes": in_a_process(cores[:1], _peer_memory, name, keep_memory=False),
            }
            for name in names
        },
    }


def inputs(size: Size) -> list[np.ndarray]:
    """Queries and keys ``[layers, prompts, heads, tokens, head_width]``, and positions ``[prompts, 4]``.

    Args:
        size: the shapes.

    Returns:
        Three arrays; the positions are those of "Yes", of "No", of the first row and of the end.

    Example:
        >>> [x.shape for x in inputs(Size(2, 32, 1, 3, 4))]
        [(1, 2, 3, 32, 4), (1, 2, 3, 32, 4), (2, 4)]
    """
    rng = np.random.default_rng(0)
    shape = (size.layers, size.prompts, size.heads, size.tokens, size.head_width)
    query, key = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    first = rng.integers(3, 9, size.prompts)
    return [query, key, np.stack([first, first + 2, first + 5, np.full_like(first, size.tokens)], axis=1)]


@jax.jit
def our_scores(query: jax.Array, key: jax.Array, places: jax.Array) -> jax.Array:
    """Scores ``[prompts, layers, heads]``, one prompt after the other: its blocks fit into a core's cache."""

    def of_prompt(arrays: tuple[jax.Array, ...]) -> jax.Array:
        query, key, places = arrays
        pairs = attention_score_pairs(query, key, places[0], places[1])
        return negative_attention_score(pairs, *places)

    def of_layer(arrays: tuple[jax.Array, ...]) -> jax.Array:
        return jax.lax.map(of_prompt, (*arrays, places))

    return jnp.swapaxes(jax.lax.map(of_layer, (query, key)), 0, 1)


def peer_scores(torch: ModuleType, query: Any, key: Any, places: Any) -> Any:
    """The same from whole attention maps, layer by layer."""
    tokens = query.shape[-2]
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    row, prompt = torch.arange(tokens), torch.arange(query.shape[1])
    chosen = (row >= places[:, 2:3]) & (row < places[:, 3:4])
    found = []
    for of_layer in zip(query, key, strict=True):
        scores = of_layer[0] @ of_layer[1].transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        yes, no = (weights[prompt, :, :, places[:, which]] for which in (0, 1))
        terms = (yes + no) * (no / yes).log()
        found.append(torch.where(chosen[:, None], terms, 0).sum(-1))
    return torch.stack(found, dim=1)


def _times(names: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
    torch, peaks, measured = torch_for("negative_attention"), machine_peaks(), {}
    for name in names:
        ours, peer = _ours(name), _peer(torch, name)
        apart = require_same(name, np.asarray(ours()), peer().numpy())
        moved = sum(array.nbytes for array in inputs(SIZES[name]))
        measured[name] = {
            **paired_ratio(ours, peer, repeats),
            "apart": apart,
            "roofline_seconds": roofline_seconds(SIZES[name].flops, moved, peaks),
        }
    return measured


def _ours(name: str) -> Any:
    given = [jnp.asarray(array) for array in inputs(SIZES[name])]
    return lambda: our_scores(*given)


def _peer(torch: ModuleType, name: str) -> Any:
    tensors = [torch.from_numpy(array) for array in inputs(SIZES[name])]

    def program() -> Any:
        with torch.inference_mode():
            return peer_scores(torch, *tensors)

    return program


def _our_memory(name: str) -> int | None:
    program = _ours(name)
    jax.block_until_ready(program())  # what is made once is there
    return peak_growth(lambda: jax.block_until_ready(program()))


def _peer_memory(name: str) -> int | None:
    program = _peer(torch_for("negative_attention"), name)
    program()
    return peak_growth(program)
