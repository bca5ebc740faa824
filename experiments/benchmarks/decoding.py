"""Decoding beside Hugging Face's ``generate``: the same weights and prompts, on the same CPU.

The language models have the parts of Llama, the encoder-decoder those of T5 1.1, at sizes that are trained
from scratch here; the weights are drawn by the peer and read by us. Both sides keep keys and values. Greedy
tokens must be the same on both sides, or nothing is timed; sampled ones are not, and only their speed is
compared. Time counts the prompt and all new tokens; compilation is left out.
"""

import contextlib
import importlib
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process
from jaxneg.language import generate, left_padded
from jaxneg.nn import (
    EncoderDecoderConfig,
    TransformerConfig,
    encoder_decoder,
    encoder_decoder_from_torch,
    init_cache,
    transformer,
    transformer_from_torch,
)

PAIR_SECONDS = 8.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""

TOFU = TransformerConfig(vocab=1740, width=96, layers=2, heads=4, hidden=384, tied=False)
LARGER = TransformerConfig(vocab=8000, width=384, layers=6, heads=6, kv_heads=3, hidden=1024, tied=False)
STUDENT = EncoderDecoderConfig(vocab=67, width=128, heads=4, hidden=512, tied=False)
"""Untied, since a tied model with random weights repeats the token that it has read."""


class Setting(NamedTuple):
    """What is decoded.

    Attributes:
        config: of the model.
        batch: prompts at once.
        prompt: tokens of the longest prompt; the others are down to half as long.
        new: tokens that are generated for each prompt.
        sampled: whether tokens are drawn, at temperature 0.7 of the 50 most probable.
    """

    config: TransformerConfig | EncoderDecoderConfig
    batch: int
    prompt: int
    new: int
    sampled: bool = False


SETTINGS = {
    "2 layers x 96, batch 1": Setting(TOFU, 1, 40, 40),
    "2 layers x 96, batch 20": Setting(TOFU, 20, 40, 40),
    "2 layers x 96, batch 20, top-k 50": Setting(TOFU, 20, 40, 40, sampled=True),
    "6 layers x 384, batch 1": Setting(LARGER, 1, 64, 64),
    "6 layers x 384, batch 16": Setting(LARGER, 16, 64, 64),
    "2 + 2 layers x 128, batch 64": Setting(STUDENT, 64, 40, 24),
}
"""What is compared, by name."""


class Sides(NamedTuple):
    """Two programs that decode the same prompts, ``[batch, new]`` tokens, and the bytes of the matrices."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    weight_bytes: int


def run(repeats: int = 21) -> dict[str, Any]:
    """Times every setting on one core and on all.

    Args:
        repeats: pairs of samples for each setting, fewer where a call takes long.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` by setting: ``ratio_median`` is the peer's time over
        ours, ``ours_tokens_per_second`` and ``peer_tokens_per_second`` count new tokens of all prompts,
        ``roofline_seconds`` is the least time at the measured peaks.

    Raises:
        ImportError: torch or transformers is not installed.
        RuntimeError: the two sides decode different tokens.
    """
    torch, transformers = _peer_modules()
    cores = available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "pairs of samples": f"{repeats}, as many as {PAIR_SECONDS:g} s hold, at least 3",
            "prompts": "40 or 64 tokens at most, padded on the left; for the encoder-decoder on the right",
        },
        "one_core": in_a_process(cores[:1], times, tuple(SETTINGS), repeats),
        "all_cores": in_a_process(cores, times, tuple(SETTINGS), repeats) if len(cores) > 1 else {},
    }


def times(names: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
    """Times settings in this process.

    Args:
        names: of `SETTINGS`.
        repeats: pairs of samples.

    Returns:
        A row for each setting.

    Raises:
        RuntimeError: the two sides decode different tokens.
    """
    peaks, measured = machine_peaks(), {}
    for name in names:
        setting = SETTINGS[name]
        sides = both_sides(setting)
        require_same_tokens(name, setting, np.asarray(sides.ours()), np.asarray(sides.peer()))
        timing = paired_ratio(sides.ours, sides.peer, repeats, budget_seconds=PAIR_SECONDS)
        tokens = setting.batch * setting.new
        flops = 2.0 * sides.weight_bytes / 4 * tokens
        measured[name] = {
            **timing,
            "ours_tokens_per_second": tokens / timing["ours_seconds"],
            "peer_tokens_per_second": tokens / timing["peer_seconds"],
            "roofline_seconds": roofline_seconds(flops, sides.weight_bytes * setting.new, peaks),
        }
    return measured


def prompts(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths, without the tokens 0 and 1, padded on the left.

    Args:
        setting: how many, how long, and how many tokens there are.

    Returns:
        Tokens and mask.

    Example:
        >>> tokens, mask = prompts(Setting(TOFU, 4, 8, 1))
        >>> tokens.shape, int(mask.sum(1).min()) >= 4
        ((4, 8), True)
    """
    rng = np.random.default_rng(0)
    lengths = np.append(setting.prompt, rng.integers(setting.prompt // 2, setting.prompt, setting.batch - 1))
    return left_padded([rng.integers(2, setting.config.vocab, n).tolist() for n in lengths], pad=0)


def require_same_tokens(name: str, setting: Setting, ours: np.ndarray, peer: np.ndarray) -> None:
    """Refuses to go on where two sides decode different greedy tokens.

    Args:
        name: for the message.
        setting: whether the tokens are sampled, so that only the shapes are compared.
        ours: our tokens.
        peer: the peer's.

    Raises:
        RuntimeError: they differ.

    Example:
        >>> require_same_tokens("two", Setting(TOFU, 1, 8, 2), np.ones((1, 2)), np.ones((1, 2)))
    """
    expected = (setting.batch, setting.new)
    if ours.shape != expected or peer.shape != expected:
        raise RuntimeError(f"{name}: expected {expected} tokens, got {ours.shape} and {peer.shape}")
    if not setting.sampled and (ours != peer).any():
        raise RuntimeError(
            f"{name}: {np.mean(ours != peer):.1%} of the tokens differ: the two sides are not the same,"
            " and not timed"
        )


def both_sides(setting: Setting) -> Sides:
    """The peer's model, its weights in ours, and both programs.

    Args:
        setting: what is decoded.

    Returns:
        The programs, ours compiled.
    """
    if isinstance(setting.config, EncoderDecoderConfig):
        return _encoder_decoder_sides(setting, setting.config)
    return _language_model_sides(setting, setting.config)


def _language_model_sides(setting: Setting, config: TransformerConfig) -> Sides:
    torch, transformers = _peer_modules()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads or config.heads,
            rms_norm_eps=1e-5,
            tie_word_embeddings=config.tied,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    params = transformer_from_torch(_weights(model), config)
    tokens, mask = prompts(setting)
    apply = transformer(config).apply

    def decode(params: Any, key: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        def step(tokens: jax.Array, positions: jax.Array, mask: jax.Array, cache: Any) -> Any:
            return apply(params, tokens, positions=positions, mask=mask, cache=cache)

        cache = init_cache(config, setting.batch, setting.prompt + setting.new - 1)
        return generate(key, step, tokens, mask, cache, **_ours_options(setting)).tokens

    inputs = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    return _sides(setting, decode, params, (tokens, mask), model, inputs, setting.prompt)


def _encoder_decoder_sides(setting: Setting, config: EncoderDecoderConfig) -> Sides:
    torch, transformers = _peer_modules()
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab,
            d_model=config.width,
            d_kv=config.head_size,
            d_ff=config.hidden,
            num_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            scale_decoder_outputs=False,
            pad_token_id=0,
            eos_token_id=None,
            decoder_start_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # as drawn by the peer, all logits are equal
            if weight.ndim == 2:
                weight.normal_(0, 1 if name == "shared.weight" else 2 * weight.shape[1] ** -0.5)
    params = encoder_decoder_from_torch(_weights(model), config)
    tokens, mask = (each[:, ::-1].copy() for each in prompts(setting))  # T5 pads on the right
    ours = encoder_decoder(config)

    def decode(params: Any, key: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        states = ours.encode(params, tokens, mask)

        def step(tokens: jax.Array, positions: jax.Array, of_tokens: jax.Array, cache: Any) -> Any:
            del positions, of_tokens
            return ours.decode(params, states, mask, tokens, cache)

        cache, start = ours.init_cache(params, states, setting.new), jnp.zeros_like(tokens[:, :1])
        return generate(key, step, start, cache=cache, **_ours_options(setting)).tokens

    inputs = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    return _sides(setting, decode, params, (tokens, mask), model, inputs, 1)


def _sides(
    setting: Setting,
    decode: Callable[..., jax.Array],
    params: Any,
    arrays: tuple[np.ndarray, np.ndarray],
    model: Any,
    inputs: tuple[Any, Any],
    read: int,
) -> Sides:
    torch, _ = _peer_modules()
    given = (params, jax.random.key(0), *(jnp.asarray(array) for array in arrays))
    compiled = jax.jit(decode).lower(*given).compile()
    options: dict[str, Any] = {"do_sample": False}
    if setting.sampled:
        options = {"do_sample": True, "temperature": 0.7, "top_k": 50}

    def peer() -> Any:
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs[0], attention_mask=inputs[1], max_new_tokens=setting.new, **options
            )
        return tokens[:, read:]

    used = {name: part for name, part in params.items() if name != "embed"}  # its rows are only looked up
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(used))
    return Sides(lambda: compiled(*given), peer, weight_bytes)


def _ours_options(setting: Setting) -> dict[str, Any]:
    sampling = {"temperature": 0.7, "top_k": 50} if setting.sampled else {}
    return {"max_new_tokens": setting.new, "eos": None, "pad": 0, **sampling}


def _weights(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def _peer_modules() -> tuple[ModuleType, ModuleType]:
    """Torch on the cores of this process, and transformers; only benchmarks need them."""
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'decoding' measures against transformers ({error}); pip install 'jaxneg[bench]'"
        ) from error
    torch.set_num_threads(len(available_cores()))
    with contextlib.suppress(AttributeError):
        transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return torch, transformers
