"""The modules that are exported. All call the model's own forward; none repeats it.

B batch, F pooled features, K classes.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lspt_serve.bundle import BackboneRef, Bundle
from lspt_serve.errors import BundleError
from lspt_serve.graph import BACK, NUM_PROMPTS, PLACE
from lspt_serve.models import Backbone, PromptedViT, check_bundled, create_prompted_vit
from lspt_serve.models.rows import ManyTasks, OneTask, Rows

__all__ = ["BakedGraph", "OneTaskGraph", "SharedGraph", "create_model"]

NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})  # a linear probe has none


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
        **manifest.method.options,
    )
    model.load_task_tensors({name: torch.from_numpy(t) for name, t in bundle.tensors.items()})
    return model.eval()


class _Features(nn.Module):
    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, rows: Rows) -> Tensor:
        return self.model.forward_features(images, rows)


class SharedGraph(nn.Module):
    """The backbone's weights are constants, the tensors of the tasks' prompt method are inputs."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.features = _Features(model)

    def forward(
        self,
        images: Tensor,
        tensors: Mapping[str, Tensor] = NO_TENSORS,
        rows: Mapping[str, Tensor] = NO_TENSORS,
    ) -> Tensor:
        """Images of several tasks (B x 3 x H x W) to features (B x F).

        Args:
            tensors: of the method, by name, of the tasks in the batch.
            rows: whose row is whose; both as `create_feed` makes them.
        """
        if not tensors:  # a linear probe
            return self.features(images, OneTask(images.shape[0]))  # type: ignore[no-any-return]
        own = {f"model.{name}": tensor for name, tensor in tensors.items()}
        whose = ManyTasks(rows[PLACE], rows[BACK], rows[NUM_PROMPTS])
        features: Tensor = functional_call(self.features, own, (images, whose))
        return features


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
