"""The analysis of a real language model: a Llama from its folder, on all devices there are."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from experiments.neg_bias.items import load_items
from experiments.run_dir import RunDir, Table, write_json
from experiments.tofu.llama import TEMPLATES, LlamaTokenizer, Loader, Template, load_llama
from jaxneg.language import LanguageModel, Report, run_negative_bias
from jaxneg.nn.transformer import init_cache, transformer
from jaxneg.train import make_mesh

if TYPE_CHECKING:
    from experiments.neg_bias import Config

FORMATS = ("YN", "negated-YN", "right-YN", "wrong-YN", "TF", "correct", "right", "MC-yn", "MC-ny")
SCENARIOS = ("plain", "no-first", "idk", "cot")
_SHOWN = ("negative_bias", "low", "high", "fnr", "fpr", "pr_gap", "accuracy_all", "coverage", "unparsable")


def load_model(
    folder: Path, *, loader: Loader = "tunix", template: Template = "llama-3", model_axis: int = 1
) -> LanguageModel:
    """A model and its tokenizer as functions, the parameters in bfloat16, split over all devices.

    Args:
        folder: ``config.json``, ``*.safetensors`` and ``tokenizer.json``, as the hub has them.
        loader: what reads the weights.
        template: what stands around a question.
        model_axis: devices over which a layer is split; all others share prompts and parameters.

    Returns:
        What `run_negative_bias` takes, with a probe of all layers.

    Raises:
        FileNotFoundError: a file is not there.
        ImportError: google-tunix is asked for and not installed.
        ValueError: weights or a tokenizer of another model.
    """
    mesh = make_mesh({"data": -1, "model": model_axis})
    sizes, params = load_llama(folder, loader=loader, mesh=mesh, dtype=jnp.bfloat16)
    end = LlamaTokenizer(folder, sizes.vocab, template).end
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    apply = transformer(sizes).apply

    def placed(*arrays: Array) -> list[Array]:
        """Prompts lie over the data axis, where they divide by it."""
        spec = P("data") if arrays[0].shape[0] % mesh.shape["data"] == 0 else P()
        return [jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)) for x in arrays]

    def step(params: Any, tokens: Array, positions: Array, mask: Array, cache: Any) -> tuple[Array, Any]:
        tokens, positions, mask = placed(tokens, positions, mask)
        found = apply(params, tokens, positions=positions, mask=mask, cache=cache)
        return found if cache is not None else (found, None)

    def probe(params: Any, tokens: Array, positions: Array, mask: Array) -> tuple[Array, Array]:
        tokens, positions, mask = placed(tokens, positions, mask)
        return apply(params, tokens, positions=positions, mask=mask, probe=range(sizes.layers))[1]

    before, after, _ = TEMPLATES[template]
    # What the tokenizer puts in front of every text; labels are encoded without it.
    start = "".join(tokenizer.encode("").tokens)
    return LanguageModel(
        params,
        step,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        decode=tokenizer.decode,
        pad=end,
        eos=end,
        init_cache=partial(init_cache, sizes),
        offsets=lambda text: tokenizer.encode(text, add_special_tokens=False).offsets,
        probe=probe,
        template=(start + before, after),
    )


def analyse(config: "Config", run_dir: RunDir) -> tuple[list[Table], list[str]]:
    """Measures the bias of the model in a folder, in every format and scenario.

    Args:
        config: the folder, the questions and sizes.
        run_dir: keeps the whole report, ``negative_bias.json`` and ``negative_bias.md``.

    Returns:
        Tables, and what to know of them.

    Raises:
        FileNotFoundError: a file of the model or the questions is not there.
        ValueError: weights or a tokenizer of another model, questions that cannot be used.
    """
    assert config.model_dir is not None
    items = load_items(config.items)
    model = load_model(
        config.model_dir, loader=config.loader, template=config.template, model_axis=config.model_axis
    )
    scenarios = [*SCENARIOS, *(["context"] if all(item.passage for item in items) else [])]
    report = run_negative_bias(
        model,
        items,
        FORMATS,
        scenarios,
        jax.random.key(config.seed),
        batch=config.model_batch,
        thought_tokens=config.thought_tokens,
    )
    (run_dir.path / "negative_bias.md").write_text(report.to_markdown() + "\n", encoding="utf-8")
    write_json(run_dir.path / "negative_bias.json", {"model": str(config.model_dir), **vars(report)})
    return report_tables(report), [format_note(report)]


def report_tables(report: Report) -> list[Table]:
    """The partition, the bias of everything that was asked, and the heads."""
    columns = ["format", "scenario", "subset", "prompts", *_SHOWN]
    rows: list[list[str | float | int]] = [
        [f"{row[name]:+.3f}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        for row in report.rows
    ]
    counts: list[list[str | float | int]] = [
        [tau, *map(str, found.values())] for tau, found in report.partition.items()
    ]
    names = list(next(iter(report.partition.values())))
    heads: list[list[str | float | int]] = [
        [str(each["layer"]), str(each["head"]), f"{each['score']:+.4f}"] for each in report.heads[:10]
    ]
    return [
        Table("Real model: items by what it knows", ["tau", *names], counts),
        Table("Real model: bias, with 95 % bootstrap intervals over items", columns, rows),
        Table("Real model: heads of the highest negative attention score", ["layer", "head", "score"], heads),
    ]


def format_note(report: Report) -> str:
    """Whether the bias belongs to the word No, or to the meaning of a negative answer."""
    bias = {
        row["format"]: row["negative_bias"]
        for row in report.rows
        if row["scenario"] == "plain" and row["subset"] == "all"
    }
    sign = "the same sign" if bias["YN"] * bias["negated-YN"] > 0 else "not the same sign"
    letters = (bias["MC-yn"] + bias["MC-ny"]) / 2
    return (
        f"Real model: the bias is {bias['YN']:+.3f} asked with yes or no and {bias['negated-YN']:+.3f} where"
        f" No affirms the fact ({sign}; a bias of the format has the same); with letters it is"
        f" {letters:+.3f}."
    )
