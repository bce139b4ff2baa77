"""Prompted Vision Transformers in torch: backbones, prompt methods, and the model made of both."""

from lspt_serve.models.backbone import EMBEDDED, Backbone, load_backbone
from lspt_serve.models.methods import BASELINES, METHODS, check_bundled, create_method
from lspt_serve.models.prompted_vit import POOLS, PromptedViT, create_prompted_vit
from lspt_serve.models.shared_graph import SharedGraph

__all__ = [
    "BASELINES",
    "EMBEDDED",
    "METHODS",
    "POOLS",
    "Backbone",
    "PromptedViT",
    "SharedGraph",
    "check_bundled",
    "create_method",
    "create_prompted_vit",
    "load_backbone",
]
