"""Pretrain the small ViT backbone on unlabelled digits with masked autoencoding.

    python examples/digits/pretrain.py --out FILE [--epochs N] [--seed 0] [--threads 2]

The method is MAE (He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022): hide most
patches, encode the rest, and let a small decoder paint the hidden ones. Only the training split is
read and its labels are never used. The decoder is thrown away; FILE is the encoder in safetensors
with timm's key names, and its header says how to rebuild the network and prepare its input.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from safetensors.torch import save
from split import load_digits_split
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from lspt_serve.files import atomic_file

IMAGE_SIZE = 32
ARCHITECTURE: dict[str, Any] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 8,
    "in_chans": 3,
    "num_classes": 0,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "class_token": True,
}
POOL = "cls"  # ties with patch_mean on val, where a linear probe is nearly as good as tuned prompts
DECODER_DIM, DECODER_DEPTH, DECODER_HEADS = 64, 1, 2
MASK_RATIO = 0.75
TARGET_EPS = 1e-2  # keeps the faint ringing of the resize in a dark patch from counting as ink
BATCH_SIZE = 128
PEAK_LR, WEIGHT_DECAY, BETAS, WARMUP_FRACTION = 2e-3, 0.05, (0.9, 0.95), 0.05


class MaskedAutoencoder(nn.Module):
    """An encoder that sees a few of the patches and a decoder that paints the others."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VisionTransformer(**ARCHITECTURE)
        width, self.patch = self.encoder.embed_dim, self.encoder.patch_embed.patch_size[0]
        grid = self.encoder.patch_embed.grid_size
        # A fixed sine table: a thousand images are too few to learn where patches lie.
        table = build_sincos2d_pos_embed(list(grid), width)
        with_class = torch.cat([torch.zeros(1, width), table]).unsqueeze(0)
        self.encoder_position = nn.Parameter(with_class, requires_grad=False)
        self.encoder.pos_embed = self.encoder_position
        self.decoder_position: Tensor
        self.register_buffer("decoder_position", build_sincos2d_pos_embed(list(grid), DECODER_DIM))
        self.narrow = nn.Linear(width, DECODER_DIM)
        self.mask_token = nn.Parameter(torch.zeros(DECODER_DIM))
        blocks = [Block(DECODER_DIM, DECODER_HEADS, qkv_bias=True) for _ in range(DECODER_DEPTH)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(DECODER_DIM))
        self.paint = nn.Linear(DECODER_DIM, self.patch**2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scalar loss for images (b, 3, 32, 32) in -1..1, under one random mask each."""
        order = torch.rand(len(images), self.decoder_position.shape[0]).argsort(dim=1)
        cut = round(order.shape[1] * (1 - MASK_RATIO))
        shown, hidden = order[:, :cut], order[:, cut:]
        painted = self._decode(self._encode(images, shown), shown, hidden)
        return F.mse_loss(painted, take(self._targets(images), hidden))

    def _encode(self, images: Tensor, shown: Tensor) -> Tensor:
        """Return (b, 1 + k, width): the class token and the k shown patches, normalised."""
        position = self.encoder_position
        patches = take(self.encoder.patch_embed(images) + position[:, 1:], shown)
        assert self.encoder.cls_token is not None  # ARCHITECTURE asks for one
        cls = (self.encoder.cls_token + position[:, :1]).expand(len(images), -1, -1)
        encoded: Tensor = self.encoder.norm(self.encoder.blocks(torch.cat([cls, patches], dim=1)))
        return encoded

    def _decode(self, encoded: Tensor, shown: Tensor, hidden: Tensor) -> Tensor:
        """Return the painted pixels (b, h, patch * patch) of the h hidden patches."""
        # Attention ignores order, so tokens stay shuffled and only carry their positions along.
        narrow = self.narrow(encoded)
        known = narrow[:, 1:] + self.decoder_position[shown]
        unknown = self.mask_token + self.decoder_position[hidden]
        decoded = self.decoder(torch.cat([narrow[:, :1], known, unknown], dim=1))
        painted: Tensor = self.paint(decoded[:, -hidden.shape[1] :])
        return painted

    def _targets(self, images: Tensor) -> Tensor:
        """Return each patch's normalised pixels (b, n, patch * patch), of one channel."""
        pixels = F.unfold(images[:, :1], self.patch, stride=self.patch).transpose(1, 2)
        return F.layer_norm(pixels, pixels.shape[-1:], eps=TARGET_EPS)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens (b, n, d) by index (b, k), giving (b, k, d)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def prepare(images: NDArray[np.uint8]) -> Tensor:
    """Turn greyscale images (n, 8, 8) into the backbone's input (n, 3, 32, 32) in -1..1."""
    colour = [Image.fromarray(image).convert("RGB") for image in images]
    size, bicubic = (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
    resized = np.stack([np.asarray(image.resize(size, bicubic)) for image in colour])
    scaled = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 255
    return ((scaled - 0.5) / 0.5).contiguous()


def augment(images: Tensor) -> Tensor:
    """Turn, scale, shear and shift each image a little; what comes in at the edges is dark."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * math.radians(24)
    scale = 1 + (torch.rand(count, 2) - 0.5) * 0.3
    shear = (torch.rand(count) - 0.5) * 0.3
    shift = (torch.rand(count, 2) - 0.5) * 0.35
    row_x = torch.stack([angle.cos() * scale[:, 0], shear - angle.sin(), shift[:, 0]], dim=1)
    row_y = torch.stack([angle.sin(), angle.cos() * scale[:, 1], shift[:, 1]], dim=1)
    affine = torch.stack([row_x, row_y], dim=1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    # grid_sample fills with 0, so dark (-1) has to be 0 while it runs.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def train(model: MaskedAutoencoder, images: Tensor, epochs: int) -> None:
    """Minimise the painting loss with AdamW under a warm-up and a cosine decay."""
    steps = epochs * math.ceil(len(images) / BATCH_SIZE)
    warmup = math.ceil(steps * WARMUP_FRACTION)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, PEAK_LR, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def factor(step: int) -> float:
        cosine = math.cos(math.pi * max(0, step - warmup) / (steps - warmup))
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with Progress() as progress:
        bar = progress.add_task("starting", total=epochs)
        for _ in range(epochs):
            total = 0.0
            for index in torch.split(torch.randperm(len(images)), BATCH_SIZE):
                loss = model(augment(images[index]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(index)
            progress.update(bar, advance=1, description=f"loss {total / len(images):.4f}")


def write(encoder: VisionTransformer, out: Path) -> None:
    """Write the encoder and how to rebuild it."""
    metadata = {
        "format": "pt",
        "architecture": json.dumps(ARCHITECTURE),
        "mean": "[0.5, 0.5, 0.5]",
        "std": "[0.5, 0.5, 0.5]",
        "pool": POOL,
        "license": "Apache-2.0",
        "description": "ViT pretrained by masked autoencoding on scikit-learn's digits, no labels",
    }
    with atomic_file(out) as path:
        path.write_bytes(sort_header(save(encoder.state_dict(), metadata)))


def sort_header(data: bytes) -> bytes:
    """Order a safetensors header's metadata, which the library leaves in a random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the digits backbone (MAE, no labels).")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="part of the result's exact bytes")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = MaskedAutoencoder()
    train(model, prepare(load_digits_split().train.images), options.epochs)
    write(model.encoder, options.out)


if __name__ == "__main__":
    main()
