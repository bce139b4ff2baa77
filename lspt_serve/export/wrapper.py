"""A task's model in torch, and the modules of one task that are exported.

All call the model's own forward; none repeats it. That of several tasks is models' SharedGraph.

B batch, K classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lspt_serve.bundle import Bundle
from lspt_serve.errors import BundleError
from lspt_serve.manifest import BackboneRef
from lspt_serve.models import Backbone, PromptedViT, check_bundled, create_prompted_vit

__all__ = ["BakedGraph", "OneTaskGraph", "create_model"]


def create_model(backbone: Backbone, bundle: Bundle) -> PromptedViT:
    """The bundle's prompted ViT in torch.

    Raises:
        MethodError: unknown method or option, or one that no bundle can be of.
        BundleError: the bundle belongs to another backbone, or to other sizes of images.
    """
    bundle.check_backbone(BackboneRef(source=backbone.source, sha256=backbone.sha256))
    manifest = bundle.manifest
    check_bundled(manifest.method.name)
    theirs, ours = manifest.preprocess.img_size, backbone.preprocess.img_size
    if theirs != ours:
        raise BundleError(
            f"bundle {bundle.name!r} takes images of {theirs} px, the backbone was loaded for "
            f"{ours}: load it with img_size={theirs}"
        )
    model = create_prompted_vit(
        backbone,
        manifest.method.name,
        num_classes=len(bundle.labels),
        pool=manifest.pool,
        options=manifest.method.options,
    )
    model.load_task_tensors({name: torch.from_numpy(t) for name, t in bundle.tensors.items()})
    return model.eval()


class OneTaskGraph(nn.Module):
    """All tensors of one task are inputs, its head's too."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Images (B x 3 x H x W) to probabilities (B x K).

        Args:
            tensors: of the task, as a bundle holds them.
        """
        logits: Tensor = functional_call(self.model, dict(tensors), (images,))
        return logits.softmax(dim=-1)


class BakedGraph(nn.Module):
    """One task's tensors and head are constants too."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Images (B x 3 x H x W) to probabilities (B x K)."""
        return self.model(images).softmax(dim=-1)  # type: ignore[no-any-return]
