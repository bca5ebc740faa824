"""Self-supervised contrastive losses, adaptive temperatures with several heads (AMCL), augmentations."""

__all__: list[str] = []
