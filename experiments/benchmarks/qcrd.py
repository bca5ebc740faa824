"""A training step of QCRD's student beside a loop in PyTorch that runs the network once for each rationale.

There is no released code. The peer is what a user would write on a library whose models take one target for
each input: the encoder-decoder is called with the question and the label, and again with the question and
each of the rationales; the least cost of the positives and the largest of the negatives are chosen, and Adam
descends. Both sides have the same weights and questions, and before anything is timed both take the step: the
loss and the direction (Adam's first moment) must agree. The judge is left out on both sides.

Ours encodes a question once for all its rationales, and differentiates only those that are chosen. A second
peer encodes once too, which shows how much of the difference is that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same_step, torch_for
from jaxneg.language import QCRDConfig, QCRDState, init_qcrd, make_qcrd_step
from jaxneg.nn import EncoderDecoderConfig, encoder_decoder

LEARNING_RATE, BETA, DELTA = 1e-3, 0.2, 3.0
TX = optax.adam(LEARNING_RATE)


class Setting(NamedTuple):
    """Sizes of the network and of the batch."""

    questions: int = 32
    source: int = 40
    label: int = 10
    tokens: int = 20
    positives: int = 5
    negatives: int = 1
    vocab: int = 68
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 512


def run(repeats: int = 11) -> dict[str, Any]:
    """Times the step.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``, each with ``once_for_each_rationale`` and
        ``encoded_once``: ``ratio_median`` is the peer's time over ours, ``losses_apart`` and
        ``direction_apart`` relative distances in the step that was compared, ``roofline_seconds`` the least
        time that our products need at the measured peak.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: the two sides do not compute the same.
    """
    torch = torch_for("qcrd")
    setting, cores = Setting(), available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "network": f"{setting.layers} + {setting.layers} layers, {setting.width} wide",
            "questions": setting.questions,
            "tokens": f"{setting.source} of a question, {setting.label} of a label, {setting.tokens} of a"
            " rationale",
            "rationales": f"{setting.positives} positives, {setting.negatives} negative",
            "optimiser": f"Adam, {LEARNING_RATE}",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], _times, setting, repeats),
        "all_cores": in_a_process(cores, _times, setting, repeats) if len(cores) > 1 else {},
    }


def batch_of(setting: Setting) -> dict[str, np.ndarray]:
    """Random questions and rationales without padding.

    Example:
        >>> batch_of(Setting(questions=2))["pos"].shape
        (2, 5, 20)
    """
    rng = np.random.default_rng(0)
    rows, batch = setting.questions, {}
    for name, shape in {
        "predict": (rows, setting.source),
        "explain": (rows, setting.source),
        "label": (rows, setting.label),
        "pos": (rows, setting.positives, setting.tokens),
        "neg": (rows, setting.negatives, setting.tokens),
    }.items():
        batch[name] = rng.integers(1, setting.vocab, shape).astype(np.int32)
        batch[f"{name}_mask"] = np.ones(shape, bool)
    for name in ("pos", "neg"):
        batch[f"{name}_valid"] = np.ones(batch[name].shape[:2], bool)
    return batch


def our_step(setting: Setting) -> tuple[Callable[..., Any], QCRDState]:
    """Our step, to be jitted, and its first state."""
    model = encoder_decoder(
        EncoderDecoderConfig(
            vocab=setting.vocab,
            width=setting.width,
            encoder_layers=setting.layers,
            decoder_layers=setting.layers,
            heads=setting.heads,
            hidden=setting.hidden,
            activation="relu",
            positions="learned",
            max_length=max(setting.source, setting.tokens, setting.label),
        )
    )
    cfg = QCRDConfig(beta=BETA, delta=DELTA)
    step = make_qcrd_step(model.encode, model.decode, TX, cfg)
    return step, init_qcrd(jax.random.key(1), model.init(jax.random.key(0)), TX)


class PeerStep:
    """The loop in PyTorch, on the same weights.

    Args:
        setting: the sizes.
        params: of our student.
        encode_once: whether all rationales share one encoding of their question.
    """

    def __init__(self, setting: Setting, params: Any, *, encode_once: bool) -> None:
        self.torch = torch = torch_for("qcrd")
        torch.set_num_threads(len(available_cores()))
        self.setting, self.encode_once = setting, encode_once
        self.weights = {
            name: torch.from_numpy(np.array(array)).requires_grad_() for name, array in named(params).items()
        }
        self.optimizer = torch.optim.Adam(self.weights.values(), LEARNING_RATE)
        self.batch = {
            name: torch.from_numpy(array).long()
            for name, array in batch_of(setting).items()
            if not name.endswith(("mask", "valid"))
        }

    def __call__(self) -> Any:
        """One step; returns the loss before it."""
        torch, batch, setting = self.torch, self.batch, self.setting
        pred = self.cost(self.encode(batch["predict"]), batch["label"]).mean()
        shared = self.encode(batch["explain"]) if self.encode_once else None

        def costs(which: str, count: int) -> Any:
            found = []
            for place in range(count):
                states = shared if shared is not None else self.encode(batch["explain"])
                found.append(self.cost(states, batch[which][:, place]))
            return torch.stack(found, 1)

        pos = costs("pos", setting.positives).min(1).values
        neg = (costs("neg", setting.negatives) - DELTA).clamp(max=0).max(1).values
        loss = 0.5 * pred + 0.5 * (pos - BETA * neg).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def direction(self) -> dict[str, np.ndarray]:
        """Adam's first moment, by the parameter's name."""
        return {
            name: self.optimizer.state[weight]["exp_avg"].numpy() for name, weight in self.weights.items()
        }

    def encode(self, tokens: Any) -> Any:
        """The states of questions."""
        x = self.embedded(tokens, "encoder")
        for layer in range(self.setting.layers):
            block = f"encoder/blocks/{layer}"
            h = self.norm(x, f"{block}/attention_norm")
            x = x + self.attention(h, h, f"{block}/attention", causal=False)
            x = x + self.feed_forward(x, block)
        return self.norm(x, "encoder/norm")

    def cost(self, states: Any, targets: Any) -> Any:
        """Mean cross-entropy of each sequence."""
        functional = self.torch.nn.functional
        read = functional.pad(targets[:, :-1], (1, 0))
        x = self.embedded(read, "decoder")
        for layer in range(self.setting.layers):
            block = f"decoder/blocks/{layer}"
            h = self.norm(x, f"{block}/attention_norm")
            x = x + self.attention(h, h, f"{block}/attention", causal=True)
            h = self.norm(x, f"{block}/states_attention_norm")
            x = x + self.attention(h, states, f"{block}/states_attention", causal=False)
            x = x + self.feed_forward(x, block)
        x = self.norm(x, "decoder/norm") * self.setting.width**-0.5
        logits = x @ self.weights["embed/embedding"].T
        return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)

    def embedded(self, tokens: Any, stack: str) -> Any:
        """Embeddings with their learned positions."""
        table = self.weights["embed/embedding"]
        places = self.weights[f"{stack}/positions"][: tokens.shape[1]]
        return self.torch.nn.functional.embedding(tokens, table) + places

    def norm(self, x: Any, name: str) -> Any:
        """Root-mean-square normalisation."""
        return self.torch.nn.functional.rms_norm(x, x.shape[-1:], self.weights[f"{name}/scale"], 1e-6)

    def attention(self, x: Any, others: Any, name: str, *, causal: bool) -> Any:
        """Torch's own attention, with scores that are not scaled."""

        def heads(values: Any, which: str) -> Any:
            projected = values @ self.weights[f"{name}/{which}/kernel"]
            return projected.unflatten(-1, (self.setting.heads, -1)).transpose(1, 2)

        mixed = self.torch.nn.functional.scaled_dot_product_attention(
            heads(x, "query"), heads(others, "key"), heads(others, "value"), is_causal=causal, scale=1.0
        )
        return mixed.transpose(1, 2).flatten(2) @ self.weights[f"{name}/out/kernel"]

    def feed_forward(self, x: Any, block: str) -> Any:
        """Two layers with a ReLU, after a normalisation."""
        h = self.norm(x, f"{block}/feed_forward_norm")
        up, down = (self.weights[f"{block}/feed_forward/{which}/kernel"] for which in ("up", "down"))
        return (h @ up).relu() @ down


def named(params: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths.

    Example:
        >>> list(named({"a": {"b": np.ones(1)}}))
        ['a/b']
    """
    return {
        "/".join(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _flops(setting: Setting) -> float:
    """Of our products: both encodings, the label, all rationales forwards, the chosen ones backwards too."""
    square, wide = setting.width**2, setting.width * setting.hidden
    encoder = setting.layers * (4 * square + 2 * wide)
    decoder = setting.layers * (6 * square + 2 * wide) + setting.vocab * setting.width
    memory = setting.layers * 2 * square * setting.source
    chosen, compared = 1 + (setting.negatives > 0), setting.positives + setting.negatives
    trained = 2 * (encoder * setting.source + memory) + decoder * (setting.label + chosen * setting.tokens)
    return 2.0 * setting.questions * (3 * trained + decoder * compared * setting.tokens)


def _times(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    peaks = machine_peaks()
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    step, first = our_step(setting)
    compiled = jax.jit(step, donate_argnums=0)
    kept = [first]

    def ours() -> Any:
        kept[0], metrics = compiled(kept[0], batch)
        return kept[0], metrics

    roofline = roofline_seconds(
        _flops(setting), 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(first.params)), peaks
    )
    measured = {}
    for name, encode_once in (("once_for_each_rationale", False), ("encoded_once", True)):
        peer = PeerStep(setting, first.params["student"], encode_once=encode_once)
        kept[0] = jax.tree.map(jnp.copy, first)
        state, metrics = ours()
        losses = np.asarray(metrics["loss"]), peer().numpy()
        moments, theirs = named(state.opt_state["student"][0].mu), peer.direction()
        directions = list(moments.values()), [theirs[path] for path in moments]
        apart = require_same_step(name, losses, directions, 1e-3)
        timing = paired_ratio(ours, peer, repeats)
        measured[name] = {
            **timing,
            **apart,
            "roofline_seconds": roofline,
            "ours_over_roofline": timing["ours_seconds"] / roofline,
        }
    return measured
