"""Knowledge-graph embeddings: scores, losses, negative samplers, filtered evaluation, LEMON."""

__all__: list[str] = []
