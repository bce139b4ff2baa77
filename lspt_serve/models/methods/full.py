"""Full fine-tuning: every weight of the ViT is the task's. A baseline to compare with (ours)."""

from lspt_serve.models.methods.linear import Linear

__all__ = ["Full"]


class Full(Linear):
    """P = 0, and the backbone is trained: a copy of it, of which no bundle can be made."""

    name = "full"
    trains_backbone = True
