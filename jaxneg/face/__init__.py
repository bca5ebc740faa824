"""Margin losses for face recognition, UNPG, class-sharded softmax, verification metrics."""

__all__: list[str] = []
