"""Negative bias of language models, rationale distillation with negatives, and decoding."""

from jaxneg.language.attention_score import (
    ScorePairs,
    attention_score_pairs,
    nas_alignment_loss,
    negative_attention_score,
    rank_heads,
)
from jaxneg.language.binary_metrics import Interval, binary_metrics, paired_bootstrap, soft_bias
from jaxneg.language.decoding import (
    Generated,
    generate,
    left_padded,
    next_token_distribution,
    sample_token,
)
from jaxneg.language.equations import equation_accuracy, equation_value
from jaxneg.language.head_repair import (
    HeadKernel,
    ablate_heads,
    apply_head_lora,
    head_mask_lora,
    transformer_kernels,
)
from jaxneg.language.knowledge_partition import knowledge_partition, multi_hop_partition, partition_agreement
from jaxneg.language.label_logits import label_forms, label_logits, surface_forms
from jaxneg.language.negative_bias import SUBSETS, LanguageModel, Report, run_negative_bias
from jaxneg.language.prompts import (
    FORMATS,
    UNKNOWN,
    Item,
    Prompt,
    make_prompts,
    scenarios_of,
    token_positions,
    wrong_answer,
)
from jaxneg.language.qcrd import (
    QCRDConfig,
    QCRDState,
    corrupt_rationales,
    init_qcrd,
    make_qcrd_step,
    sample_rationales,
)
from jaxneg.language.rationale_distillation import (
    contrastive_rationale_loss,
    discriminator_loss,
    dss_loss,
    qcrd_total,
    sequence_ce,
    token_mean_ce,
)
from jaxneg.language.self_consistency import self_consistency
from jaxneg.language.short_answers import (
    UNPARSABLE,
    answer_ids,
    answers_match,
    normalized_answer,
    parse_label,
)
from jaxneg.language.snapshots import SnapshotBuffer

__all__ = [
    "FORMATS",
    "SUBSETS",
    "UNKNOWN",
    "UNPARSABLE",
    "Generated",
    "HeadKernel",
    "Interval",
    "Item",
    "LanguageModel",
    "Prompt",
    "QCRDConfig",
    "QCRDState",
    "Report",
    "ScorePairs",
    "SnapshotBuffer",
    "ablate_heads",
    "answer_ids",
    "answers_match",
    "apply_head_lora",
    "attention_score_pairs",
    "binary_metrics",
    "contrastive_rationale_loss",
    "corrupt_rationales",
    "discriminator_loss",
    "dss_loss",
    "equation_accuracy",
    "equation_value",
    "generate",
    "head_mask_lora",
    "init_qcrd",
    "knowledge_partition",
    "label_forms",
    "label_logits",
    "left_padded",
    "make_prompts",
    "make_qcrd_step",
    "multi_hop_partition",
    "nas_alignment_loss",
    "negative_attention_score",
    "next_token_distribution",
    "normalized_answer",
    "paired_bootstrap",
    "parse_label",
    "partition_agreement",
    "qcrd_total",
    "rank_heads",
    "run_negative_bias",
    "sample_rationales",
    "sample_token",
    "scenarios_of",
    "self_consistency",
    "sequence_ce",
    "soft_bias",
    "surface_forms",
    "token_mean_ce",
    "token_positions",
    "transformer_kernels",
    "wrong_answer",
]
