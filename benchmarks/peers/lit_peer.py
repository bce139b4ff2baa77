"""A server as LitServe's guides have it: base64 in JSON, batches, a model in torch.

python lit_peer.py PORT
"""

import base64
import io
import sys

import litserve
import torch
from peer_model import PeerModel
from PIL import Image

MAX_BATCH_SIZE, BATCH_TIMEOUT_S = 32, 0.005


class Peer(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.model = PeerModel()

    # by a type it would take the parameter for one of the query
    def decode_request(self, request) -> torch.Tensor:  # type: ignore[no-untyped-def]
        data = base64.b64decode(request["image"])
        return self.model.prepare(Image.open(io.BytesIO(data)))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, x: torch.Tensor) -> list[list[float]]:
        return self.model.classify(x)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"scores": output}


if __name__ == "__main__":
    api = Peer(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
