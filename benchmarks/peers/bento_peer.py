"""A service as BentoML's guides have it: pictures in, adaptive batches, a model in torch.

bentoml serve bento_peer:Peer
"""

import bentoml
import torch
from peer_model import PeerModel
from PIL import Image

MAX_BATCH_SIZE = 32


@bentoml.service(traffic={"timeout": 60})
class Peer:
    def __init__(self) -> None:
        self.model = PeerModel()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image.Image]) -> list[list[float]]:
        batch = torch.stack([self.model.prepare(image) for image in images])
        return self.model.classify(batch)
