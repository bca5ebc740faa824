"""An unlearning loss and a whole unlearning step beside the official arithmetic in PyTorch, on the same CPU.

The loss is NPO on the forget rows and cross-entropy on the retain rows, forward and backward from the logits.
The peer is written again from open-unlearning's ``compute_batch_nll`` and ``compute_dpo_loss`` (without a
wanted answer) and from the causal language model loss of Hugging Face's transformers, operation for
operation. It is measured with the reference's likelihoods given, and with its logits given, from which the
official trainer computes the likelihoods in every step.

The step is that of the small language model of the TOFU experiment: forward, NPO+RT, backward, AdamW. The
peer is the same network in PyTorch, with its own attention and optimiser. The official trainer runs the
reference in every step; a second peer reads its likelihoods from a table as we do, which shows how much of
the difference is that.

Before anything is timed both sides compute the same numbers, or the benchmark stops. Memory is the peak of
the resident set over one call, less the resident set before it, each in a process of its own
(`experiments.isolated.peak_growth`).
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.peers import require_same_step, torch_for
from jaxneg.nn import TransformerConfig, transformer
from jaxneg.train import init_state, make_step
from jaxneg.unlearning import (
    IGNORE,
    UnlearnConfig,
    make_unlearn_loss,
    precompute_reference,
    sequence_nll,
    unlearning_loss,
)

CONFIG = UnlearnConfig("npo+rt", beta=0.1)
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
PAIR_SECONDS = 40.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""

FIRST_ROWS = 2
"""Of how many rows the gradients of the logits are compared."""


class Logits(NamedTuple):
    """Shape of the logits of the forget rows, and of the retain rows."""

    batch: int = 16
    tokens: int = 128
    vocab: int = 32_000


class Step(NamedTuple):
    """Sizes of the language model, and of the forget and the retain rows each."""

    vocab: int = 1740
    width: int = 96
    layers: int = 2
    heads: int = 4
    batch: int = 20
    tokens: int = 80


def run(repeats: int = 21) -> dict[str, Any]:
    """Times the loss and the step on one core and on all.

    Args:
        repeats: pairs of samples for each comparison, fewer where a call takes long.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``, each with the losses ``reference_likelihoods`` and
        ``reference_logits`` and the steps ``reference_in_the_step`` and ``reference_in_a_table``:
        ``ratio_median`` is the peer's time over ours, ``losses_apart`` and ``direction_apart`` are relative
        distances (of gradients, or of Adam's first moments), ``roofline_seconds`` the least time at the
        measured peaks; ``memory`` of the losses: ``ours_bytes``, ``peer_bytes``, and their ratio.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: two sides compute different numbers.
    """
    torch = torch_for("unlearning")
    cores, logits, step = available_cores(), Logits(), Step()
    return {
        "settings": {
            "torch": torch.__version__,
            "loss": f"NPO + cross-entropy, logits [{logits.batch}, {logits.tokens}, {logits.vocab}] each",
            "step": f"{step.layers} layers, {step.width} wide, vocabulary {step.vocab},"
            f" {step.batch} + {step.batch} rows of {step.tokens} tokens, AdamW",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": f"{repeats}, as many as {PAIR_SECONDS:g} s hold, at least 3",
        },
        "one_core": in_a_process(cores[:1], _times, logits, step, repeats),
        "all_cores": in_a_process(cores, _times, logits, step, repeats) if len(cores) > 1 else {},
        "memory": {
            name: _memory(cores[:1], logits, with_logits)
            for name, with_logits in (("reference_likelihoods", False), ("reference_logits", True))
        },
    }


def labels_of(batch: int, tokens: int, vocab: int, seed: int) -> np.ndarray:
    """Answers behind prompts of different length: token ids, -100 on the prompt.

    Args:
        batch: rows.
        tokens: of a row.
        vocab: ids.
        seed: of the rows.

    Returns:
        ``[batch, tokens]``.

    Example:
        >>> labels = labels_of(4, 10, 50, 0)
        >>> labels.shape, bool((labels[:, -1] >= 0).all()), bool((labels[:, 0] == IGNORE).all())
        ((4, 10), True, True)
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab, (batch, tokens)).astype(np.int32)
    return np.where(np.arange(tokens) < rng.integers(1, tokens // 2, (batch, 1)), IGNORE, ids)


def loss_inputs(size: Logits) -> dict[str, np.ndarray]:
    """Logits of the policy and of the reference, and labels.

    Example:
        >>> sorted(loss_inputs(Logits(2, 6, 8)))
        ['forget', 'forget_labels', 'reference', 'retain', 'retain_labels']
    """
    rng = np.random.default_rng(0)
    logits = {
        part: 2 * rng.standard_normal(size, dtype=np.float32) for part in ("forget", "retain", "reference")
    }
    labels = {f"{part}_labels": labels_of(*size, seed) for seed, part in enumerate(("forget", "retain"))}
    return logits | labels


def our_loss(arrays: dict[str, np.ndarray], with_logits: bool) -> Callable[[], Any]:
    """Our loss and its gradient, compiled.

    Args:
        arrays: of `loss_inputs`.
        with_logits: whether the reference's logits are given in place of its likelihoods.

    Returns:
        A program that gives the loss and the gradients of both logits.
    """
    logits = {part: jnp.asarray(arrays[part]) for part in ("forget", "retain")}
    batch = {part: {"labels": jnp.asarray(arrays[f"{part}_labels"])} for part in logits}
    reference = jnp.asarray(arrays["reference"])
    if not with_logits:
        reference = jax.jit(sequence_nll)(reference, batch["forget"]["labels"])[0]

    def loss(logits: dict[str, jax.Array], reference: jax.Array, batch: Any) -> jax.Array:
        return unlearning_loss(CONFIG.method, batch, logits, {"forget": reference}, CONFIG)[0]

    compiled = jax.jit(jax.value_and_grad(loss)).lower(logits, reference, batch).compile()
    return lambda: compiled(logits, reference, batch)


def peer_loss(arrays: dict[str, np.ndarray], with_logits: bool) -> Callable[[], Any]:
    """The official arithmetic and autograd's backward pass.

    Args:
        arrays: of `loss_inputs`.
        with_logits: whether the reference's logits are given in place of its likelihoods.

    Returns:
        A program that gives the loss and the gradients of both logits.
    """
    torch = torch_for("unlearning")
    logits = {part: torch.from_numpy(arrays[part]).requires_grad_() for part in ("forget", "retain")}
    labels = {part: torch.from_numpy(arrays[f"{part}_labels"]).long() for part in logits}
    reference = torch.from_numpy(arrays["reference"])
    if not with_logits:
        reference = peer_sequence_nll(torch, reference, labels["forget"])

    def program() -> Any:
        likelihoods = reference
        if with_logits:
            with torch.no_grad():
                likelihoods = peer_sequence_nll(torch, reference, labels["forget"])
        forget = peer_npo(torch, logits["forget"], labels["forget"], likelihoods)
        loss = forget + peer_cross_entropy(torch, logits["retain"], labels["retain"])
        loss.backward()
        gradients = {part: each.grad for part, each in logits.items()}
        for each in logits.values():
            each.grad = None  # they are the caller's alone, as ours are
        return loss.detach(), gradients

    return program


def peer_sequence_nll(torch: ModuleType, logits: Any, labels: Any) -> Any:
    """open-unlearning's ``compute_batch_nll``, from the logits on."""
    shifted_labels, shifted_logits = labels[..., 1:].contiguous(), logits[..., :-1, :].contiguous()
    loss_function = torch.nn.CrossEntropyLoss(ignore_index=IGNORE, reduction="none")
    return loss_function(shifted_logits.transpose(-1, -2), shifted_labels).sum(dim=-1)


def peer_npo(torch: ModuleType, logits: Any, labels: Any, reference: Any) -> Any:
    """open-unlearning's ``compute_dpo_loss`` without a wanted answer."""
    log_ratio = -(peer_sequence_nll(torch, logits, labels) - reference)
    return -2 / CONFIG.beta * torch.nn.functional.logsigmoid(CONFIG.beta * (0.0 - log_ratio)).mean()


def peer_cross_entropy(torch: ModuleType, logits: Any, labels: Any) -> Any:
    """The causal language model loss of Hugging Face's transformers."""
    shifted = torch.nn.functional.pad(labels, (0, 1), value=IGNORE)[..., 1:].contiguous()
    flat = logits.float().view(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, shifted.view(-1), ignore_index=IGNORE, reduction="mean")


def step_batch(size: Step) -> dict[str, dict[str, np.ndarray]]:
    """Rows of both parts.

    Example:
        >>> step_batch(Step(batch=2, tokens=8))["retain"]["tokens"].shape
        (2, 8)
    """
    rng = np.random.default_rng(1)
    batch = {}
    for seed, part in enumerate(("forget", "retain")):
        labels = labels_of(size.batch, size.tokens, size.vocab, seed)
        prompt = rng.integers(0, size.vocab, labels.shape).astype(np.int32)
        batch[part] = {"tokens": np.where(labels == IGNORE, prompt, labels), "labels": labels}
    return batch


def our_step(size: Step) -> tuple[Callable[..., Any], Any, Any]:
    """Our step, its first state, and the batch with the reference's likelihoods.

    Args:
        size: of model and batch.

    Returns:
        ``step(state, batch) -> (state, metrics)``, to be jitted, the state and the batch.
    """
    model, tx = transformer(_model(size)), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    params = model.init(jax.random.key(0))
    batch = precompute_reference(model.apply, params, jax.tree.map(jnp.asarray, step_batch(size)), CONFIG)
    step = make_step(make_unlearn_loss(model.apply, CONFIG), tx)
    return step, init_state(params, tx, jax.random.key(0)), batch


class PeerStep:
    """The same step in PyTorch.

    Args:
        size: of model and batch.
        params: our parameters, to start from.
        in_the_step: whether the reference is run in every step; else its likelihoods are in a table.
    """

    def __init__(self, size: Step, params: Any, *, in_the_step: bool) -> None:
        self.torch = torch = torch_for("unlearning")
        self.model, self.reference = (peer_model(torch, size, params) for _ in range(2))
        self.reference.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-8
        )
        self.batch = {
            part: {name: torch.from_numpy(array).long() for name, array in content.items()}
            for part, content in step_batch(size).items()
        }
        self.table = None if in_the_step else self._reference()

    def __call__(self) -> Any:
        """One step; the loss before it."""
        likelihoods = self._reference() if self.table is None else self.table
        forget, retain = self.batch["forget"], self.batch["retain"]
        loss = peer_npo(self.torch, self.model(forget["tokens"]), forget["labels"], likelihoods)
        loss = loss + peer_cross_entropy(self.torch, self.model(retain["tokens"]), retain["labels"])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _reference(self) -> Any:
        with self.torch.no_grad():
            logits = self.reference(self.batch["forget"]["tokens"])
            return peer_sequence_nll(self.torch, logits, self.batch["forget"]["labels"])

    def direction(self) -> dict[str, np.ndarray]:
        """Adam's first moments, of the parameters by their names."""
        state = self.optimizer.state
        return {name: state[p]["exp_avg"].numpy() for name, p in sorted(self.model.named_parameters())}


def peer_model(torch: ModuleType, size: Step, params: Any) -> Any:
    """A torch module like our transformer, with its weights.

    Args:
        torch: the module.
        size: of the model.
        params: of our transformer.

    Returns:
        A module from tokens to logits.
    """
    nn, functional = torch.nn, torch.nn.functional
    width, heads, hidden = size.width, size.heads, _model(size).hidden
    half = width // heads // 2

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.feed_forward_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))
            self.query, self.key, self.value, self.out = (
                nn.Linear(width, width, bias=False) for _ in range(4)
            )
            self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
            self.down = nn.Linear(hidden, width, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            h = self.attention_norm(x)
            q, k, v = (
                each(h).view(*h.shape[:2], heads, -1).transpose(1, 2)
                for each in (self.query, self.key, self.value)
            )
            q, k = (_rotated(torch, each, cos, sin) for each in (q, k))
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
            h = self.feed_forward_norm(x)
            return x + self.down(functional.silu(self.gate(h)) * self.up(h))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(size.vocab, width)
            self.blocks = nn.ModuleList([Block() for _ in range(size.layers)])
            self.norm = nn.RMSNorm(width, eps=1e-5)
            angles = torch.arange(size.tokens)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return self.norm(x) @ self.embed.weight.T

    model = Model()
    arrays = {name: torch.from_numpy(np.array(array)) for name, array in _named(params).items()}
    model.load_state_dict(arrays | {"cos": model.cos, "sin": model.sin})
    return model


def _rotated(torch: ModuleType, x: Any, cos: Any, sin: Any) -> Any:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _named(params: Any) -> dict[str, np.ndarray]:
    """Our parameters by the torch module's names, in its layout."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        array = np.asarray(leaf)
        for part in ("attention.", "feed_forward."):
            name = name.replace(part, "")
        if name.endswith(".kernel"):
            rows = array.shape[0] * array.shape[1] if ".out." in name else array.shape[0]
            array = array.reshape(rows, -1).T
        arrays[name.rpartition(".")[0] + ".weight"] = array
    return dict(sorted(arrays.items()))


def _model(size: Step) -> TransformerConfig:
    return TransformerConfig(size.vocab, size.width, size.layers, size.heads, hidden=size.width * 8 // 3)


def _times(logits: Logits, step: Step, repeats: int) -> dict[str, dict[str, float]]:
    peaks = machine_peaks()
    return {**_losses_compared(logits, repeats, peaks), **_steps_compared(step, repeats, peaks)}


def _losses_compared(size: Logits, repeats: int, peaks: dict[str, float]) -> dict[str, dict[str, float]]:
    arrays, measured = loss_inputs(size), {}
    for name, with_logits in (("reference_likelihoods", False), ("reference_logits", True)):
        ours, peer = our_loss(arrays, with_logits), peer_loss(arrays, with_logits)
        (loss, gradients), (peer_value, peer_gradients) = ours(), peer()
        apart = require_same_step(
            name,
            (np.asarray(loss), peer_value.numpy()),
            (
                [np.asarray(gradients[part][:FIRST_ROWS]) for part in ("forget", "retain")],
                [peer_gradients[part][:FIRST_ROWS].numpy() for part in ("forget", "retain")],
            ),
            1e-4,
        )
        del loss, gradients, peer_gradients
        # Both logits are read once forward and once backward, and their gradients written.
        moved = (6 + with_logits) * arrays["forget"].nbytes
        measured[name] = {
            **paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS),
            **apart,
            "roofline_seconds": roofline_seconds(0, moved, peaks),
        }
    return measured


def _steps_compared(size: Step, repeats: int, peaks: dict[str, float]) -> dict[str, dict[str, float]]:
    step, first, batch = our_step(size)
    compiled, measured = jax.jit(step, donate_argnums=0), {}
    weights = sum(leaf.size for leaf in jax.tree.leaves(first.params))
    pairs_of_tokens = size.layers * size.tokens * size.width
    flops = 6.0 * 2 * size.batch * size.tokens * (weights + 2 * pairs_of_tokens)
    for name, in_the_step in (("reference_in_the_step", True), ("reference_in_a_table", False)):
        kept = [jax.tree.map(jnp.copy, first)]

        def ours(kept: list[Any] = kept) -> Any:
            kept[0], metrics = compiled(kept[0], batch)
            return kept[0], metrics

        peer = PeerStep(size, first.params, in_the_step=in_the_step)
        losses = np.asarray(ours()[1]["loss"]), peer().numpy()
        moments = _named(kept[0].opt_state[0].mu)
        apart = require_same_step(name, losses, (moments, peer.direction()), 1e-3)
        measured[name] = {
            **paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS),
            **apart,
            "roofline_seconds": roofline_seconds(flops, 0, peaks),
        }
    return measured


def _memory(cores: list[int], size: Logits, with_logits: bool) -> dict[str, float | None]:
    ours, peer = (
        in_a_process(cores, _growth, program, size, with_logits, keep_memory=False)
        for program in (our_loss, peer_loss)
    )
    ratio = None if ours is None or peer is None else ours / peer
    return {"ours_bytes": ours, "peer_bytes": peer, "ours_over_peer": ratio}


def _growth(make: Callable[..., Callable[[], Any]], size: Logits, with_logits: bool) -> int | None:
    """Of a program that has run before, so that what is made once is there; its results count."""
    program = make(loss_inputs(size), with_logits)
    jax.block_until_ready(program())
    return peak_growth(lambda: jax.block_until_ready(program()))
