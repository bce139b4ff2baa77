"""The model for rows of several tasks: what an export writes and the torch engine runs.

B batch, F pooled features, N patches.
"""

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn
from torch.func import functional_call

from lspt_serve.models.prompted_vit import PromptedViT
from lspt_serve.models.rows import ManyTasks, OneTask, Rows

__all__ = ["SharedGraph"]

NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})  # a linear probe has none


class _Outputs(nn.Module):
    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        if self.model.can_be_watched:
            return self.model.forward_watched(images, rows)
        return (self.model.forward_features(images, rows),)


class SharedGraph(nn.Module):
    """The backbone's weights are its own, the tensors of the tasks' prompt method are inputs."""

    def __init__(self, model: PromptedViT) -> None:
        super().__init__()
        self.outputs = _Outputs(model)

    def forward(
        self,
        images: Tensor,
        tensors: Mapping[str, Tensor] = NO_TENSORS,
        rows: Mapping[str, Tensor] = NO_TENSORS,
    ) -> tuple[Tensor, ...]:
        """Images of several tasks (B x 3 x H x W) to features (B x F) and attention (B x N).

        The attention is left out of a model that cannot be watched.

        Args:
            tensors: of the method, by name, of the tasks in the batch.
            rows: whose row is whose, as ManyTasks takes it; both as `create_feed` makes them.
        """
        if not tensors:  # a linear probe
            return self.outputs(images, OneTask(images.shape[0]))  # type: ignore[no-any-return]
        own = {f"model.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(self.outputs, own, (images, ManyTasks(**rows)))  # type: ignore[no-any-return]
