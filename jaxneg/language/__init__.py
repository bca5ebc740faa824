"""Negative bias of language models, rationale distillation with negatives, and decoding."""

__all__: list[str] = []
