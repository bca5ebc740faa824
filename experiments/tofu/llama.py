"""Llama's weights and tokenizer, from the files that Hugging Face's hub has them in.

A folder holds ``config.json``, one or several ``*.safetensors`` and ``tokenizer.json``. The weights become
parameters of `jaxneg.nn.transformer`, stacked over the layers. google-tunix reads them (the extra ``llm``),
sharded as they are read; or safetensors alone. The model that runs is `jaxneg.nn.transformer` in both cases:
Tunix's own Llama 3 (0.1.7) rotates by a base of 1,000,000 whatever ``rope_theta`` says.
"""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxneg.nn.transformer import (
    LLAMA_3_2_1B,
    TRANSFORMER_RULES,
    RotaryScaling,
    TransformerConfig,
    transformer,
)
from jaxneg.train import shardings

LLAMA_2_7B = TransformerConfig(
    vocab=32_000,
    width=4096,
    layers=32,
    heads=32,
    hidden=11_008,
    tied=False,
    scan=True,
    remat=True,
    dtype=jnp.bfloat16,
)
"""Shapes of Llama 2 7B (Touvron et al. 2023, arXiv:2307.09288)."""
MODELS = {"llama-2-7b": LLAMA_2_7B, "llama-3.2-1b": LLAMA_3_2_1B}

Loader = Literal["tunix", "safetensors"]
Template = Literal["llama-2", "llama-3", "question-answer"]


class _Template(NamedTuple):
    before: str
    after: str
    end: str | None = None
    """What ends an answer; None for the model's own end of a sequence."""


_SYSTEM = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 10 Apr 2025\n\nYou are a helpful assistant.<|eot_id|>"
)
TEMPLATES: dict[Template, _Template] = {
    "llama-2": _Template("[INST] ", " [/INST]"),
    "llama-3": _Template(
        f"{_SYSTEM}<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "question-answer": _Template("Question: ", "\nAnswer: "),
}
"""What stands around a question: TOFU's official forms, and open-unlearning's for Llama 3.2."""

_NORM_EPSILON = 1e-5
"""Of `jaxneg.nn.transformer`."""


class _Source(NamedTuple):
    """Where a parameter comes from, for a layer or for the model."""

    hub: str
    tunix: str
    transposed: bool = True

    def of_layer(self, layer: int) -> str:
        """The name of a layer's tensor."""
        return f"model.layers.{layer}.{self.hub}"


_OF_LAYER = {
    "attention_norm/scale": _Source("input_layernorm.weight", "input_layernorm.w", False),
    "attention/query/kernel": _Source("self_attn.q_proj.weight", "attn.q_proj.w"),
    "attention/key/kernel": _Source("self_attn.k_proj.weight", "attn.k_proj.w"),
    "attention/value/kernel": _Source("self_attn.v_proj.weight", "attn.v_proj.w"),
    "attention/out/kernel": _Source("self_attn.o_proj.weight", "attn.o_proj.w"),
    "feed_forward_norm/scale": _Source(
        "post_attention_layernorm.weight", "post_attention_layernorm.w", False
    ),
    "feed_forward/gate/kernel": _Source("mlp.gate_proj.weight", "mlp.gate_proj.kernel"),
    "feed_forward/up/kernel": _Source("mlp.up_proj.weight", "mlp.up_proj.kernel"),
    "feed_forward/down/kernel": _Source("mlp.down_proj.weight", "mlp.down_proj.kernel"),
}
_OF_MODEL = {
    "embed/embedding": _Source("model.embed_tokens.weight", "embedder.input_embedding", False),
    "norm/scale": _Source("model.norm.weight", "final_norm.w", False),
    "unembed/kernel": _Source("lm_head.weight", "lm_head.w"),
}

Read = Callable[[_Source, int | None], Any]
"""A parameter of a layer (None: of the model), inputs before outputs."""


def read_config(folder: Path | str) -> TransformerConfig:
    """The sizes in a folder's ``config.json``.

    Args:
        folder: of the model.

    Returns:
        Sizes. The layers are scanned over and recomputed, the computation is in bfloat16.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not JSON or lacks a size, or a model that is no Llama.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: point to the folder of a model as the hub has it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): get it again") from error
    if content.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type: expected 'llama', got {content.get('model_type')!r}")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    if missing := [name for name in sizes if name not in content]:
        raise ValueError(f"{path}: expected {missing[0]!r}, got {', '.join(sorted(content))}")
    if (epsilon := content.get("rms_norm_eps", 1e-6)) != _NORM_EPSILON:
        raise ValueError(f"{path}: rms_norm_eps: expected {_NORM_EPSILON}, got {epsilon}")
    rope = content.get("rope_parameters") or {}
    scaling = content.get("rope_scaling") or rope
    return TransformerConfig(
        vocab=content["vocab_size"],
        width=content["hidden_size"],
        layers=content["num_hidden_layers"],
        heads=content["num_attention_heads"],
        kv_heads=content.get("num_key_value_heads"),
        head_width=content.get("head_dim"),
        hidden=content["intermediate_size"],
        max_length=content.get("max_position_embeddings", 2048),
        rotary_base=float(content.get("rope_theta", rope.get("rope_theta", 10_000.0))),
        rotary_scaling=_rotary_scaling(path, scaling),
        tied=bool(content.get("tie_word_embeddings", False)),
        scan=True,
        remat=True,
        dtype=jnp.bfloat16,
    )


def load_llama(
    folder: Path | str,
    *,
    loader: Loader = "tunix",
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
) -> tuple[TransformerConfig, Any]:
    """A model's sizes and parameters.

    Args:
        folder: holds ``config.json`` and one or several ``*.safetensors``.
        loader: what reads the weights: google-tunix (the extra ``llm``), or safetensors alone.
        mesh: over whose axes "data" and "model" the parameters are split; None for one device.
        dtype: of the parameters.

    Returns:
        The sizes for `jaxneg.nn.transformer`, and its parameters.

    Raises:
        FileNotFoundError: no config.json or no safetensors in the folder.
        ImportError: google-tunix is asked for and not installed.
        ValueError: a config.json of another kind of model; a damaged file; tensors that are missing, of
            another shape, or that the model has no place for. The message names the first.

    Source:
        Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783.
    """
    folder = Path(folder)
    config = read_config(folder)
    files = check_tensors(folder, config)
    read = _tunix_reader(folder, config, mesh, dtype) if loader == "tunix" else _safetensors_reader(files)
    expected = _leaves(config)
    placed: dict[str, Any] = dict.fromkeys(expected)
    if mesh is not None:
        tree = shardings(unflatten_dict(expected, sep="/"), mesh, TRANSFORMER_RULES)
        placed = flatten_dict(tree, sep="/")
    params = {}
    for path, leaf in expected.items():
        shape, layer_path = leaf.shape, path.removeprefix("blocks/")
        if layer_path == path:
            value = jnp.asarray(read(_OF_MODEL[path], None)).reshape(shape)
        else:
            layers = [read(_OF_LAYER[layer_path], layer) for layer in range(config.layers)]
            stack = np.stack if isinstance(layers[0], np.ndarray) else jnp.stack
            value = stack([layer.reshape(shape[1:]) for layer in layers])
        params[path] = jax.device_put(value.astype(dtype), placed[path])
    return config, unflatten_dict(params, sep="/")


def save_llama(folder: Path | str, config: TransformerConfig, params: Any) -> None:
    """Writes parameters as ``model.safetensors`` with the hub's names, in bfloat16.

    Args:
        folder: is made.
        config: sizes of the model.
        params: of the model.
    """
    from safetensors.flax import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    tensors = {}

    def keep(name: str, path: str, value: Array, source: _Source) -> None:
        shape = _hub_shape(path, value.shape, source)
        flat = value.astype(jnp.bfloat16).reshape(shape[::-1] if source.transposed else shape)
        tensors[name] = flat.T if source.transposed else flat

    for path in _leaves(config):
        layer_path = path.removeprefix("blocks/")
        if layer_path == path:
            keep(_OF_MODEL[path].hub, path, leaves[path], _OF_MODEL[path])
        else:
            source = _OF_LAYER[layer_path]
            for layer in range(config.layers):
                keep(source.of_layer(layer), path, leaves[path][layer], source)
    save_file(tensors, folder / "model.safetensors")


def check_tensors(folder: Path, config: TransformerConfig) -> dict[str, Path]:
    """Refuses weights that are not those of the model, from the files' headers alone.

    Args:
        folder: of the model.
        config: its sizes.

    Returns:
        The file of each tensor.

    Raises:
        FileNotFoundError: no safetensors in the folder.
        ValueError: a damaged file; tensors that are missing, of another shape, or too much.
    """
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"there is no *.safetensors in {folder}: point to the folder of a model as the hub has it"
        )
    files, shapes = {}, {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    files[name], shapes[name] = path, tuple(tensors.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error}): get it again") from error
    expected = _expected_shapes(config)
    ignored = {name for name in files if name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        ignored.add("lm_head.weight")
    if missing := [name for name in expected if name not in files]:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]!r}:"
            f" {len(paths)} safetensors files were found; get all of them"
        )
    if unknown := sorted(files.keys() - expected.keys() - ignored):
        raise ValueError(f"{files[unknown[0]]}: {unknown[0]!r} is no tensor of a Llama")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{files[name]}: {name!r}: expected shape {list(shape)} after config.json, got"
                f" {list(shapes[name])}"
            )
    return files


class LlamaTokenizer:
    """A folder's ``tokenizer.json``, with questions in a template.

    Args:
        folder: of the model.
        vocab: how many tokens the model has.
        template: what stands around a question.

    Attributes:
        end: the token that ends an answer, and fills rows.

    Raises:
        FileNotFoundError: no tokenizer.json or config.json in the folder.
        ValueError: a tokenizer of another model: damaged, with more tokens than the model, or without the
            token that ends an answer.
    """

    def __init__(self, folder: Path | str, vocab: int, template: Template) -> None:
        from tokenizers import Tokenizer

        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: point to the folder of a model as the hub has it")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is no tokenizer ({error}): get it again") from error
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if max(ids, default=-1) >= vocab:
            raise ValueError(
                f"{path}: expected tokens below {vocab}, the model's vocabulary, got {max(ids)}: this is the"
                " tokenizer of another model"
            )
        self._template = TEMPLATES[template]
        self.end = self._end(Path(folder) / "config.json", path, template)

    def encode(self, question: str, answer: str) -> tuple[list[int], int]:
        """The tokens of a question and its answer.

        Args:
            question: put into the template.
            answer: what follows.

        Returns:
            Tokens with the end of the answer, and how many of them are the prompt.
        """
        prompt = self.prompt(question)
        whole = self._tokenizer.encode(f"{self._template.before}{question}{self._template.after}{answer}").ids
        return [*whole, self.end], len(prompt)

    def prompt(self, question: str) -> list[int]:
        """The tokens of a question that waits for its answer."""
        return self._tokenizer.encode(f"{self._template.before}{question}{self._template.after}").ids

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        return self._tokenizer.decode(tokens).strip()

    def _end(self, config: Path, path: Path, template: str) -> int:
        if self._template.end is not None:
            end = self._tokenizer.token_to_id(self._template.end)
            if end is None:
                raise ValueError(
                    f"{path} has no {self._template.end!r}, which ends answers in the template {template!r}:"
                    f" choose another template ({', '.join(TEMPLATES)}) or get this model's tokenizer"
                )
            return end
        end = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id")
        end = end[0] if isinstance(end, list) else end
        if not isinstance(end, int) or self._tokenizer.id_to_token(end) is None:
            raise ValueError(
                f"{path} has no token {end}, the eos_token_id of config.json: this is the tokenizer of"
                " another model"
            )
        return end


def _rotary_scaling(path: Path, scaling: dict[str, Any]) -> RotaryScaling | None:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"{path}: rope_scaling: expected the type 'llama3' or 'default', got {kind!r}")
    return RotaryScaling(
        factor=float(scaling["factor"]),
        low=float(scaling["low_freq_factor"]),
        high=float(scaling["high_freq_factor"]),
        length=int(scaling["original_max_position_embeddings"]),
    )


def _expected_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Of the hub's tensors, which have outputs before inputs."""
    expected = {}
    for path, leaf in _leaves(config).items():
        layer_path = path.removeprefix("blocks/")
        if layer_path == path:
            expected[_OF_MODEL[path].hub] = _hub_shape(path, leaf.shape, _OF_MODEL[path])
        else:
            source = _OF_LAYER[layer_path]
            shape = _hub_shape(path, leaf.shape[1:], source)
            expected |= {source.of_layer(layer): shape for layer in range(config.layers)}
    return expected


def _hub_shape(path: str, shape: tuple[int, ...], source: _Source) -> tuple[int, ...]:
    if not source.transposed:
        return shape
    inputs = math.prod(shape[:-1]) if path.endswith("attention/out/kernel") else shape[0]
    return math.prod(shape) // inputs, inputs


def _leaves(config: TransformerConfig) -> dict[str, Any]:
    return flatten_dict(jax.eval_shape(transformer(config).init, jax.random.key(0)), sep="/")


def _safetensors_reader(files: dict[str, Path]) -> Read:
    from safetensors import safe_open

    def read(source: _Source, layer: int | None) -> np.ndarray:
        name = source.hub if layer is None else source.of_layer(layer)
        with safe_open(files[name], framework="numpy") as tensors:
            array = tensors.get_tensor(name)
        return array.T if source.transposed else array

    return read


def _tunix_reader(folder: Path, config: TransformerConfig, mesh: Mesh | None, dtype: DTypeLike) -> Read:
    """Reads all weights with google-tunix, onto the mesh."""
    try:
        from tunix.models.llama3 import model as llama  # pyright: ignore[reportMissingImports]
        from tunix.models.llama3 import params as llama_params  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "loader: 'tunix' needs google-tunix: pip install 'jaxneg[llm]', or choose 'safetensors'"
        ) from error
    axes = {"fsdp": "data", "tp": "model"}
    default = llama.ShardingConfig.get_default_sharding()
    split = {
        field.name: tuple(axes.get(axis, axis) for axis in getattr(default, field.name))
        for field in fields(default)
    }
    model = llama_params.create_model_from_safe_tensors(
        str(folder),
        llama.ModelConfig(
            num_layers=config.layers,
            vocab_size=config.vocab,
            embed_dim=config.width,
            hidden_dim=config.hidden,
            num_heads=config.heads,
            head_dim=config.head_size,
            num_kv_heads=config.kv_heads or config.heads,
            rope_theta=int(config.rotary_base),
            norm_eps=_NORM_EPSILON,
            shd_config=llama.ShardingConfig(**split),
            weight_tying=config.tied,
        ),
        mesh,
        dtype,
    )

    def read(source: _Source, layer: int | None) -> Array:
        part: Any = model if layer is None else model.layers[layer]
        for name in source.tunix.split("."):
            part = getattr(part, name)
        return part[...]

    return read
