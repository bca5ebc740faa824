"""Unlearning TOFU from a real model: weights and tokenizer from a folder, on all devices there are.

The recipe of Zhang et al., arXiv:2404.05868, Section 5, and the whole evaluation of Maini et al.,
arXiv:2401.06121: losses and generations on four sets, model utility of nine numbers, and forget quality where
there is a retrained model. Both models must be there: those of open-unlearning are on the hub.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from experiments.run_dir import RunDir, Table
from experiments.tofu.llama import LlamaTokenizer, load_llama, save_llama
from experiments.tofu.model_step import LORA_ALPHA, RULES, model_step, optimizer, trained
from experiments.tofu.training import METHODS, asked_once
from jaxneg.diffusion import lora_apply
from jaxneg.language import generate
from jaxneg.nn.transformer import TransformerConfig, init_cache, transformer
from jaxneg.train import fit, init_state, make_mesh, pipeline, process_shard, shard_step
from jaxneg.unlearning import (
    Question,
    TofuLog,
    TofuReport,
    answer_rows,
    draw_partners,
    evaluation_split,
    load_refusals,
    load_tofu,
    make_tofu_evaluation,
    precompute_reference,
    tofu_report,
)

if TYPE_CHECKING:
    from experiments.tofu import Config

EVALUATED_TOKENS, NEW_TOKENS, CHECKPOINT_EVERY = 200, 200, 50
"""Tokens in a row of the evaluation and of a generated answer, as in the official code."""


class Data(NamedTuple):
    """TOFU's questions for one split."""

    forget: list[Question]
    retain: list[Question]
    refusals: list[str]
    evaluated: dict[str, list[Question]]
    """By the sets of `jaxneg.unlearning.tofu_report`."""


def load_data(split: str, folder: Path | None = None) -> Data:
    """Reads what a split needs.

    Args:
        split: "forget01", "forget05", "forget10", ...
        folder: of TOFU; None: as `load_tofu` finds it.

    Returns:
        Rows to train on and to evaluate on.

    Raises:
        FileNotFoundError: a file of TOFU is not there.
        ValueError: a split that does not exist, or a file that cannot be used.
    """
    kept = f"retain{100 - int(split.removeprefix('forget')):02d}"
    evaluated = {
        "forget": evaluation_split(split),
        "retain": "retain_perturbed",
        "real_authors": "real_authors_perturbed",
        "world_facts": "world_facts_perturbed",
    }
    return Data(
        load_tofu(split, folder),
        load_tofu(kept, folder),
        load_refusals(folder),
        {name: load_tofu(each, folder) for name, each in evaluated.items()},
    )


def unlearn_model(
    config: "Config", run_dir: RunDir, data: Data | None = None
) -> tuple[list[Table], list[str]]:
    """Unlearns a split from the model in a folder, by every method in turn, and evaluates. A run that died
    goes on.

    Args:
        config: the folder, the split, the methods and how they are trained.
        run_dir: keeps checkpoints and, for each method, the model that has unlearned, as the hub has it.
        data: TOFU's questions; None: as `load_data` finds them.

    Returns:
        A table of the models and what to know of it.

    Raises:
        FileNotFoundError: a file of the model or of TOFU is not there.
        ValueError: weights or a tokenizer of another model, rows longer than the model's context, a split
            without rows, a method whose reference does not fit.
    """
    assert config.model_dir is not None
    data = load_data(config.split) if data is None else data
    if not data.forget:
        raise ValueError(f"split: {config.split!r} has no question to forget")
    for name in config.model_methods:
        if not config.lora_rank and not asked_once(METHODS[name]):
            raise ValueError(
                "model_methods: expected methods that need one number of the reference for each forget row,"
                f" got {name!r}: its reference would have to stay in memory beside the model; with adapters"
                " (lora_rank) it is the model without them"
            )
    mesh = make_mesh({"data": -1, "model": config.model_axis})
    load = partial(load_llama, loader=config.loader, mesh=mesh)
    sizes, params = load(config.model_dir)
    longest = max(config.model_tokens, EVALUATED_TOKENS)
    if longest > sizes.max_length:
        raise ValueError(
            f"model_tokens: expected at most the model's context, {sizes.max_length} tokens, got {longest}"
        )
    tokenizer = LlamaTokenizer(config.model_dir, sizes.vocab, config.template)
    evaluate = _evaluation(sizes, tokenizer, data.evaluated, config.model_batch)
    logs = {"before": _logged(run_dir, "before", lambda: evaluate(params))}
    aim = None
    if config.retrained_dir is not None:
        retrained_dir = config.retrained_dir
        logs["retrained"] = _logged(run_dir, "retrained", lambda: evaluate(load(retrained_dir)[1]))
        aim = tofu_report(logs["retrained"]).forget_truth_ratio
    for name in config.model_methods:
        stage = name.lower().replace("+", "_").replace(", β = ", "_")
        folder = run_dir.path / "models" / stage
        unlearn = partial(_unlearned, config, sizes, tokenizer, data, mesh, params, name, folder)
        logs[name] = _logged(run_dir, stage, lambda unlearn=unlearn: evaluate(unlearn()))
    reports = {name: tofu_report(log, aim) for name, log in logs.items()}
    notes = [
        f"The model in {config.model_dir} forgot {config.split}; what became of it lies in the run's folder"
        " models, in the hub's format.",
    ]
    if aim is None:
        notes.append("Without --retrained-dir there is no forget quality.")
    return [_table(config.split, reports)], notes


def _unlearned(
    config: "Config",
    sizes: TransformerConfig,
    tokenizer: LlamaTokenizer,
    data: Data,
    mesh: jax.sharding.Mesh,
    params: Any,
    name: str,
    folder: Path,
) -> Any:
    """The parameters after unlearning, also saved."""
    objective, rank = METHODS[name], config.lora_rank
    arrays = _schedule(config, sizes, tokenizer, data, params, name)
    steps = config.model_epochs * len(data.forget) // config.model_batch
    tx = optimizer(config.learning_rate, steps, max(1, steps // config.model_epochs), rank)
    step = model_step(transformer(sizes).apply, objective, tx, rank)
    key = jax.random.key(config.seed)
    state = init_state(trained(key, params, rank), tx, key)
    shard = process_shard(NamedSharding(mesh, P("data")))
    batches = pipeline(arrays, config.model_batch, shuffle=False, epochs=1, shard=shard).map(_nested)
    sharded = shard_step(step, mesh, state, batches[0], rules=RULES)
    folder.parent.mkdir(exist_ok=True)
    result = fit(
        sharded,
        sharded.place_state(state),
        batches,
        steps=steps,
        run_dir=folder.with_name(f"{folder.name}_training"),
        config={"method": name, "split": config.split, "lora_rank": rank},
        resume=True,
        log_every=1,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    ended: Any = result.state
    found = ended.params
    if rank:
        found = jax.jit(partial(lora_apply, gamma=LORA_ALPHA))(found["base"], found["adapters"])
    save_llama(folder, sizes, found)
    assert config.model_dir is not None
    for file in ("config.json", "tokenizer.json"):
        shutil.copyfile(config.model_dir / file, folder / file)
    return found


def _schedule(
    config: "Config",
    sizes: TransformerConfig,
    tokenizer: LlamaTokenizer,
    data: Data,
    params: Any,
    name: str,
) -> dict[str, np.ndarray]:
    """The rows of all epochs in order, each forget row with a retain row and a refusal."""
    objective, length = METHODS[name], config.model_tokens
    rows = partial(answer_rows, encode=tokenizer.encode, length=length, pad=tokenizer.end)
    forget = rows([(each.question, each.answer) for each in data.forget], what="forget set")._asdict()
    retain = rows([(each.question, each.answer) for each in data.retain], what="retain set")
    apply = jax.jit(transformer(sizes).apply)
    whole: Mapping[str, np.ndarray] = forget
    if asked_once(objective):
        with_reference: list[Mapping[str, Any]] = []
        for start in range(0, len(data.forget), config.model_batch):
            chosen = np.arange(start, start + config.model_batch) % len(data.forget)
            part = {"forget": {field: array[chosen] for field, array in forget.items()}}
            with_reference.append(precompute_reference(apply, params, part, objective)["forget"])
        whole = {
            field: np.concatenate([np.asarray(part[field]) for part in with_reference])[: len(data.forget)]
            for field in with_reference[0]
        }
    order_key, partner_key = jax.random.split(jax.random.key(config.seed))
    found: dict[str, list[np.ndarray]] = {}
    for epoch in range(config.model_epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), len(data.forget)))
        kept, refused = map(
            np.asarray,
            draw_partners(
                partner_key,
                jax.numpy.asarray(order),
                epoch,
                n_retain=len(data.retain),
                n_refusals=len(data.refusals),
                fixed_pairing=config.fixed_pairing,
            ),
        )
        refusals = rows(
            [
                (data.forget[row].question, data.refusals[number])
                for row, number in zip(order, refused, strict=True)
            ],
            what="refusals",
        )
        parts = {
            "forget": {field: array[order] for field, array in whole.items()},
            "retain": {field: array[kept] for field, array in retain._asdict().items()},
            "idk": refusals._asdict(),
        }
        for part, fields in parts.items():
            for field, array in fields.items():
                found.setdefault(f"{part}.{field}", []).append(array)
    return {field: np.concatenate(arrays) for field, arrays in found.items()}


def _nested(batch: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    nested: dict[str, dict[str, np.ndarray]] = {}
    for name, array in batch.items():
        part, field = name.split(".")
        nested.setdefault(part, {})[field] = array
    return nested


def _evaluation(
    sizes: TransformerConfig, tokenizer: LlamaTokenizer, sets: Mapping[str, Sequence[Question]], batch: int
) -> Callable[[Any], dict[str, TofuLog]]:
    apply = transformer(sizes).apply

    @jax.jit
    def answered(params: Any, tokens: Array, mask: Array) -> Array:
        cache = init_cache(sizes, tokens.shape[0], tokens.shape[1] + NEW_TOKENS)

        def step(tokens: Array, positions: Array, mask: Array, cache: Any) -> Any:
            return apply(params, tokens, positions=positions, mask=mask, cache=cache)

        return generate(
            jax.random.key(0),
            step,
            tokens,
            mask,
            cache,
            max_new_tokens=NEW_TOKENS,
            eos=tokenizer.end,
            pad=tokenizer.end,
        ).tokens

    def decode(tokens: Sequence[int]) -> str:
        tokens = list(tokens)
        return tokenizer.decode(tokens[: tokens.index(tokenizer.end)] if tokenizer.end in tokens else tokens)

    return make_tofu_evaluation(
        apply,
        answered,
        tokenizer.encode,
        decode,
        sets,
        length=EVALUATED_TOKENS,
        pad=tokenizer.end,
        batch=batch,
    )


def _logged(run_dir: RunDir, name: str, evaluate: Callable[[], dict[str, TofuLog]]) -> dict[str, TofuLog]:
    """The evaluation of a model, as a stage of the run."""

    def compute() -> dict[str, np.ndarray]:
        return {
            f"{of_set}.{field}": array
            for of_set, log in evaluate().items()
            for field, array in log._asdict().items()
        }

    return {
        of_set: TofuLog(**fields)
        for of_set, fields in _nested(run_dir.stage(f"model_{name}", compute)).items()
    }


def _table(split: str, reports: Mapping[str, TofuReport]) -> Table:
    measured = [(of_set, number) for of_set, row in reports["before"].scores.items() for number in row]
    rows: list[list[str | float | int]] = []
    for name, report in reports.items():
        quality = "" if report.forget_quality is None else f"{report.forget_quality.p:.2e}"
        numbers = [f"{report.scores[of_set][number]:.3f}" for of_set, number in measured]
        rows.append([name, quality, f"{report.model_utility:.3f}", *numbers])
    columns = [f"{of_set.replace('_', ' ')}: {number.replace('_', ' ')}" for of_set, number in measured]
    return Table(f"TOFU, {split}: a real model", ["model", "forget quality", "model utility", *columns], rows)
