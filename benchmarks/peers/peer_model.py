"""The model that both peers serve: one of timm's, with a head, in torch.

PEER_VIT is its name in timm, PEER_WEIGHTS a file of its weights.
"""

import json
import os
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms  # type: ignore[import-untyped]

__all__ = ["PeerModel"]


class PeerModel:
    """Images to the probabilities of their labels."""

    def __init__(self) -> None:
        weights = load_file(os.environ["PEER_WEIGHTS"])
        preprocess: dict[str, Any] = json.loads(os.environ["PEER_PREPROCESS"])
        num_classes = len(weights["head.bias"])
        self.model: Any = timm.create_model(os.environ["PEER_VIT"], num_classes=num_classes).eval()
        self.model.load_state_dict(weights)
        side = preprocess["img_size"]
        self.transform: Any = transforms.Compose(
            [
                transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(preprocess["mean"], preprocess["std"]),
            ]
        )

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """A picture to 3 x H x W."""
        tensor: torch.Tensor = self.transform(image.convert("RGB"))
        return tensor

    def classify(self, batch: torch.Tensor) -> list[list[float]]:
        """B x 3 x H x W to B x K."""
        with torch.inference_mode():
            scores: list[list[float]] = self.model(batch).softmax(dim=-1).tolist()
        return scores
