"""One interface to the forget and retain losses: ``gamma * forget + alpha * retain``.

Implements the totals of Zhang et al., arXiv:2404.05868, Sections 2 and 3, of Fan et al., arXiv:2410.07163,
and of the methods whose losses have a file of their own here.

A *batch* is a dictionary of up to three parts, "forget", "retain" and "idk" (the forget questions with a
refusal for an answer), each a dictionary with ``tokens`` (what the model reads), ``labels`` and, from
`precompute_reference`, ``ref_seq_nll``, ``ref_logits`` or ``ref_hidden``. The reference is frozen, so it is
run once on the data and not in every step; what is too large to keep can be run in the step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.unlearning.ceu import ceu_loss, ceu_mask
from jaxneg.unlearning.dpo import dpo_loss
from jaxneg.unlearning.gradient_ascent import ga_loss
from jaxneg.unlearning.idk import idk_loss
from jaxneg.unlearning.kto import kto_baseline, kto_loss
from jaxneg.unlearning.methods import (
    Batch,
    UnlearnConfig,
    hidden_parts_of,
    parts_of,
    reference_needs,
    require_part,
    split_name,
)
from jaxneg.unlearning.npo import npo_loss, npo_weights
from jaxneg.unlearning.pdu import pdu_forget_loss
from jaxneg.unlearning.reference import require_entry, row_fingerprints
from jaxneg.unlearning.retain import ce_loss, check_logits, kl_retain_loss
from jaxneg.unlearning.rmu import harmonic_mean, rmu_loss
from jaxneg.unlearning.satimp import satimp_loss
from jaxneg.unlearning.sequence import IGNORE, answer_lengths, sequence_nll
from jaxneg.unlearning.simnpo import simnpo_loss
from jaxneg.unlearning.undial import undial_loss
from jaxneg.unlearning.wga import wga_loss

LossFn = Callable[[Any, Batch, Array | None], tuple[Array, dict[str, Any]]]


def unlearning_loss(
    name: str,
    batch: Batch,
    outputs: Mapping[str, Array],
    ref_outputs: Mapping[str, Array],
    cfg: UnlearnConfig,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The loss of a method by its name.

    ``loss = gamma mean_b forget[b] + alpha (mean_b retain[b] - eps)``; "idk+rt" is one cross-entropy over
    both parts.

    Args:
        name: one of `METHODS`.
        batch: parts by name with their ``labels`` ``[B, T]``; with more where the batch is a piece of a
            larger one (`with_token_means`). DPO pairs row b of "idk" with row b of "forget".
        outputs: the policy's logits ``[B, T, V]`` of each part; for RMU hidden states ``[B, T, D]`` of
            "forget", and of "retain" for "rmu+ed".
        ref_outputs: what the reference says of a part: logits ``[B, T, V]`` (hidden states for "rmu+ed"), or,
            for NPO, DPO and KTO, the cached ``sequence_nll`` ``[B]``. For RMU, "forget" holds the control
            vector ``[D]``. Empty for methods without a reference.
        cfg: coefficients; its own ``method`` is not read here.

    Returns:
        The loss, and its parts: ``forget_loss``, ``retain_loss``, the mean cross-entropy of each part whose
        logits are there (``forget_ce``, ...), and ``npo_weight``, NPO's mean weight, which falls from 1 to 0
        as forgetting proceeds.

    Raises:
        TypeError: logits that are not floating, labels that are not integers, cached likelihoods
            below float32.
        ValueError: a name that does not exist, a part that is missing, vocabularies or shapes that differ.

    Source:
        arXiv:2404.05868, Sections 2 and 3.

    Example:
        >>> batch = {"forget": {"labels": jnp.ones((2, 3), int)}}
        >>> loss, aux = unlearning_loss("ga", batch, {"forget": jnp.zeros((2, 3, 8))}, {}, UnlearnConfig())
        >>> float(loss / jnp.log(8))
        -1.0
    """
    forget, retain, aux = _both_losses(name, batch, outputs, ref_outputs, cfg)
    loss = cfg.gamma * forget
    if retain is not None:
        loss = loss + cfg.alpha * (retain - cfg.retain_eps)
    return loss, aux


def make_unlearn_loss(
    apply: Callable[[Any, Any], Array],
    cfg: UnlearnConfig,
    *,
    reference: Callable[[Any, Any], Array] | None = None,
    hidden: Callable[[Any, Any], Array] | None = None,
    control: Float[Array, " width"] | None = None,
) -> LossFn:
    """The loss function of an unlearning step, for ``jaxneg.train.make_step`` or any loop with
    ``value_and_grad``.

    ``loss_fn(params, batch, key) = unlearning_loss(cfg.method, batch, apply(params, tokens), reference,
    cfg)``.

    With LoRA ``params`` holds the frozen parameters beside the adapters: ``apply`` adds the adapters to
    ``jax.lax.stop_gradient`` of the frozen ones, ``reference`` reads the frozen ones alone, and
    ``optax.transforms.partition`` gives these ``optax.set_to_zero()``: neither gradient nor moments.

    Args:
        apply: ``apply(params, tokens) -> logits [B, T, V]``; ``tokens`` is whatever the parts' "tokens" hold,
            an array or a pytree with masks and positions.
        cfg: the method and its coefficients.
        reference: ``reference(params, tokens)`` runs the reference in the step, without gradient: its logits,
            or for "rmu+ed" its hidden states. Where None, the batch holds what `precompute_reference` added.
        hidden: ``hidden(params, tokens) -> [B, T, D]``, the states of RMU's layer; RMU alone needs it.
        control: RMU's direction, of `rmu_control_vector`.

    Returns:
        ``loss_fn(params, batch, key) -> (loss, aux)``. The key is not used. The loss is not a number if the
        batch's reference was computed for other rows; `check_reference` has the message.

    Raises:
        ValueError: RMU without hidden or control; while tracing, a part or a reference that the method needs
            and the batch lacks.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> loss_fn = make_unlearn_loss(lambda params, tokens: params[tokens], UnlearnConfig("ga"))
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> float(loss_fn(jnp.zeros((8, 8)), {"forget": part}, None)[0] / jnp.log(8))
        -1.0
    """
    evaluate = _evaluation(apply, cfg, reference, hidden, control)

    def loss_fn(params: Any, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Any]]:
        del key
        outputs, ref_outputs, seen = evaluate(params, batch)
        loss, aux = unlearning_loss(cfg.method, batch, outputs, ref_outputs, cfg)
        return jnp.where(seen, loss, jnp.nan), aux

    return loss_fn


def make_unlearn_losses(
    apply: Callable[[Any, Any], Array],
    cfg: UnlearnConfig,
    *,
    reference: Callable[[Any, Any], Array] | None = None,
    hidden: Callable[[Any, Any], Array] | None = None,
    control: Float[Array, " width"] | None = None,
) -> LossFn:
    """Forget and retain loss as two tasks: for `dual_ascent_retain`, or any link that weighs tasks.

    ``loss_fn(params, batch, key) = [mean_b forget[b], mean_b retain[b]]``; gamma, alpha and eps are the
    link's.

    Args:
        apply: as for `make_unlearn_loss`.
        cfg: the method, one with a retain loss, and its coefficients.
        reference: as for `make_unlearn_loss`.
        hidden: likewise.
        control: likewise.

    Returns:
        ``loss_fn(params, batch, key) -> (losses [2], aux)``.

    Raises:
        ValueError: a method without a retain loss, and what `make_unlearn_loss` raises.

    Source:
        arXiv:2506.05314 for the two losses of a constrained problem.

    Example:
        >>> loss_fn = make_unlearn_losses(lambda params, tokens: params[tokens], UnlearnConfig("pdu+rt"))
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> losses, aux = loss_fn(jnp.zeros((8, 8)), {"forget": part, "retain": part}, None)
        >>> losses.shape, float(aux["forget_loss"])
        ((2,), 0.0)
    """
    if split_name(cfg.method)[1] is None:
        raise ValueError(f"method: expected one with a retain loss, got {cfg.method!r}")
    evaluate = _evaluation(apply, cfg, reference, hidden, control)

    def loss_fn(params: Any, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Any]]:
        del key
        outputs, ref_outputs, seen = evaluate(params, batch)
        forget, retain, aux = _both_losses(cfg.method, batch, outputs, ref_outputs, cfg)
        return jnp.where(seen, jnp.stack([forget, jnp.asarray(retain)]), jnp.nan), aux

    return loss_fn


def with_token_means(batch: Batch, cfg: UnlearnConfig | None = None) -> dict[str, dict[str, Any]]:
    """The batch with its mean row length in every row, so that a piece of it keeps the whole's normalisation.

    ``mean_tokens[b] = mean_b' n[b']``: a step that accumulates gradients over pieces of equal size then has
    exactly the gradient of the whole batch, where normalising each piece by its own tokens would weigh short
    answers up. (KTO's baseline stays the mean of a piece: it is not a sum over tokens.)

    Args:
        batch: parts by name with their ``labels`` ``[B, T]``; the whole batch, before it is cut.
        cfg: the method; CE-U, PDU and RMU with ``rmu_own_length=False`` count other tokens and need it.

    Returns:
        The batch with ``mean_tokens`` ``[B]`` in each part, and ``mean_counted`` ``[B]`` where the method
        counts other tokens than those that are predicted.

    Example:
        >>> batch = with_token_means({"forget": {"labels": jnp.array([[1, 2, 3], [1, -100, 3]])}})
        >>> batch["forget"]["mean_tokens"].tolist()
        [1.5, 1.5]
    """
    extended = {}
    for part, content in batch.items():
        n_tokens = (content["labels"][:, 1:] != IGNORE).sum(-1, dtype=jnp.float32)
        extended[part] = {**content, "mean_tokens": jnp.full_like(n_tokens, n_tokens.mean())}
        if cfg is not None and (counted := _counted(part, content["labels"], cfg.method, cfg)) is not None:
            extended[part]["mean_counted"] = jnp.full_like(n_tokens, counted)
    return extended


def _both_losses(
    name: str,
    batch: Batch,
    outputs: Mapping[str, Array],
    ref_outputs: Mapping[str, Array],
    cfg: UnlearnConfig,
) -> tuple[Array, Array | None, dict[str, Any]]:
    """The forget loss, the retain loss, and what else is worth looking at."""
    forget, retain = split_name(name)
    parts, hidden_parts = parts_of(name), hidden_parts_of(name)
    for part in parts:
        require_part(batch, part, "batch", name)
        require_part(outputs, part, "outputs", name)
    for part in (*reference_needs(name), *(("forget",) if forget == "rmu" else ())):
        require_part(ref_outputs, part, "ref_outputs", name)

    nll, n_tokens = {}, {}
    for part in parts:
        if part not in hidden_parts:
            nll[part], n_tokens[part] = sequence_nll(outputs[part], batch[part]["labels"])
    mean_tokens = {part: batch[part].get("mean_tokens") for part in parts}
    aux = {f"{part}_ce": jnp.mean(ce_loss(nll[part], n_tokens[part], mean_tokens[part])) for part in nll}

    reference = {
        part: _reference_nll(part, ref_outputs[part], outputs[part], batch[part]["labels"])
        for part, entry in reference_needs(name).items()
        if entry == "ref_seq_nll"
    }
    if forget == "npo":
        aux["npo_weight"] = jnp.mean(npo_weights(nll["forget"], reference["forget"], cfg.beta))

    if name == "idk+rt":
        idk_rows, retain_rows = idk_loss(
            nll["idk"],
            n_tokens["idk"],
            nll["retain"],
            n_tokens["retain"],
            mean_tokens["idk"],
            mean_tokens["retain"],
        )
        aux["forget_loss"], aux["retain_loss"] = jnp.mean(idk_rows), jnp.mean(retain_rows)
        return aux["forget_loss"], aux["retain_loss"], aux

    if forget in ("ga", "npo", "dpo", "kto", "idk", "simnpo"):
        rows = _rows_of_likelihoods(forget, nll, n_tokens, reference, mean_tokens, batch, cfg)
    else:
        rows = _rows_of_outputs(forget, outputs["forget"], ref_outputs.get("forget"), batch["forget"], cfg)
    aux["forget_loss"] = jnp.mean(rows)
    if retain is None:
        return aux["forget_loss"], None, aux
    if retain == "rt":
        rows = ce_loss(nll["retain"], n_tokens["retain"], mean_tokens["retain"])
    elif retain == "kl":
        rows = _kl_rows(outputs["retain"], ref_outputs["retain"], batch["retain"], cfg)
    else:
        rows = _rmu_rows(outputs["retain"], ref_outputs["retain"], batch["retain"], cfg)
    aux["retain_loss"] = jnp.mean(rows)
    return aux["forget_loss"], aux["retain_loss"], aux


def _rows_of_likelihoods(
    forget: str,
    nll: Mapping[str, Array],
    n_tokens: Mapping[str, Array],
    reference: Mapping[str, Array],
    mean_tokens: Mapping[str, Array | None],
    batch: Batch,
    cfg: UnlearnConfig,
) -> Array:
    """The forget loss of each row, of the methods that read the likelihoods of whole answers."""
    match forget:
        case "ga":
            return ga_loss(nll["forget"], n_tokens["forget"], mean_tokens["forget"])
        case "npo":
            return npo_loss(nll["forget"], reference["forget"], cfg.beta)
        case "dpo":
            if nll["idk"].shape != nll["forget"].shape:
                raise ValueError(
                    f"batch['idk']: expected a row for each of the {nll['forget'].size} forget rows,"
                    f" got {nll['idk'].size}"
                )
            return dpo_loss(
                nll["idk"], reference["idk"], nll["forget"], reference["forget"], cfg.beta, cfg.factor
            )
        case "kto":
            z = kto_baseline(nll["idk"], reference["idk"])
            return kto_loss(
                nll["forget"],
                reference["forget"],
                z,
                cfg.beta,
                cfg.kto_kind,
                scale_z=cfg.scale_z,
                clamp_z=cfg.clamp_z,
            )
        case "idk":
            return ce_loss(nll["idk"], n_tokens["idk"], mean_tokens["idk"])
        case _:
            return simnpo_loss(nll["forget"], answer_lengths(batch["forget"]["labels"]), cfg.beta, cfg.delta)


def _rows_of_outputs(
    forget: str, output: Array, ref_output: Any, part: Mapping[str, Any], cfg: UnlearnConfig
) -> Array:
    """The forget loss of each row, of the methods that read logits or hidden states token by token."""
    labels, mean_tokens = part["labels"], part.get("mean_tokens")
    match forget:
        case "wga":
            return wga_loss(output, labels, cfg.beta, mean_tokens)
        case "satimp":
            return satimp_loss(output, labels, cfg.beta1, cfg.beta2, mean_tokens)
        case "undial":
            return undial_loss(
                output, ref_output, labels, cfg.beta, masked=cfg.undial_masked, mean_tokens=mean_tokens
            )
        case "ceu":
            return ceu_loss(output, labels, cfg.ignore_first_n, _mean_counted("ceu", part))
        case "pdu":
            return pdu_forget_loss(output, labels, _mean_counted("pdu", part))
        case _:
            return _rmu_rows(output, ref_output, part, cfg)


def _rmu_rows(h: Array, target: Array, part: Mapping[str, Any], cfg: UnlearnConfig) -> Array:
    mask, own_length = part["labels"] != IGNORE, cfg.rmu_own_length
    mean_tokens = None if own_length else _mean_counted("rmu", part)
    return rmu_loss(h, target, mask, own_length=own_length, mean_tokens=mean_tokens)


def _kl_rows(logits: Array, ref_logits: Array, part: Mapping[str, Any], cfg: UnlearnConfig) -> Array:
    if ref_logits.ndim != 3:
        raise ValueError(
            f"ref_outputs['retain']: KL needs logits [batch, tokens, vocab], got shape {ref_logits.shape}"
        )
    if not cfg.kl_mask:
        return kl_retain_loss(logits, ref_logits, direction=cfg.kl_direction)
    mask = jnp.pad(part["labels"][:, 1:] != IGNORE, ((0, 0), (0, 1)))
    return kl_retain_loss(
        logits, ref_logits, mask, direction=cfg.kl_direction, mean_tokens=part.get("mean_tokens")
    )


def _counted(part: str, labels: Array, name: str, cfg: UnlearnConfig) -> Array | None:
    """What a part's rows are divided by, where that is not the mean number of predicted tokens."""
    forget, _ = split_name(name)
    lengths = answer_lengths(labels).astype(jnp.float32)
    if part in hidden_parts_of(name):
        return None if cfg.rmu_own_length else harmonic_mean(lengths)
    if part != "forget" or forget not in ("ceu", "pdu"):
        return None
    return lengths.mean() if forget == "pdu" else ceu_mask(labels, cfg.ignore_first_n).sum(-1).mean()


def _mean_counted(forget: str, part: Mapping[str, Any]) -> Array | None:
    if "mean_tokens" in part and "mean_counted" not in part:
        raise ValueError(
            f"batch: expected 'mean_counted' beside 'mean_tokens' for {forget!r}, which counts other tokens;"
            " with_token_means(batch, cfg) adds it"
        )
    return part.get("mean_counted")


def _reference_nll(part: str, ref_output: Array, logits: Array, labels: Array) -> Array:
    """The reference's likelihoods, from its logits or as cached; without gradient."""
    if ref_output.ndim == 3:
        check_logits(logits, ref_output)
        return jax.lax.stop_gradient(sequence_nll(ref_output, labels)[0])
    if ref_output.shape != labels.shape[:1]:
        raise ValueError(
            f"ref_outputs[{part!r}]: expected logits {logits.shape} or one value for each row,"
            f" {labels.shape[:1]}, got shape {ref_output.shape}"
        )
    if ref_output.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"ref_outputs[{part!r}]: expected float32 or float64, got {ref_output.dtype}: a sum over tokens"
            " does not survive a narrower dtype; train.Precision(keep='ref_seq_nll') leaves it as it is"
        )
    return jax.lax.stop_gradient(ref_output)


def _evaluation(
    apply: Callable[[Any, Any], Array],
    cfg: UnlearnConfig,
    reference: Callable[[Any, Any], Array] | None,
    hidden: Callable[[Any, Any], Array] | None,
    control: Array | None,
) -> Callable[[Any, Batch], tuple[dict[str, Array], dict[str, Array], Array]]:
    """Outputs of policy and reference by part, and whether the reference has seen these rows."""
    parts, hidden_parts = parts_of(cfg.method), hidden_parts_of(cfg.method)
    needs = reference_needs(cfg.method)
    if "forget" in hidden_parts:
        for argument, value in (("hidden", hidden), ("control", control)):
            if value is None:
                raise ValueError(f"{argument}: expected one for {cfg.method!r}, got None")

    def evaluate(params: Any, batch: Batch) -> tuple[dict[str, Array], dict[str, Array], Array]:
        for part in parts:
            require_part(batch, part, "batch", cfg.method)
        outputs, ref_outputs = {}, {}
        for part in parts:
            model = hidden if part in hidden_parts and hidden is not None else apply
            outputs[part] = model(params, batch[part]["tokens"])
        if control is not None:
            ref_outputs["forget"] = control
        seen = jnp.array(True)
        for part, entry in needs.items():
            content = batch[part]
            if reference is not None:
                ref_outputs[part] = reference(jax.lax.stop_gradient(params), content["tokens"])
                continue
            require_entry(batch, part, entry, cfg.method)
            ref_outputs[part] = content[entry] if entry in content else content["ref_logits"]
            if "ref_rows" in content:
                seen = seen & jnp.all(content["ref_rows"] == row_fingerprints(content["labels"]))
        return outputs, ref_outputs, seen

    return evaluate
