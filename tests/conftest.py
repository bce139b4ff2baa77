"""What the tests share: tiny backbones with random weights, bundles on them, real test material."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lspt_serve.bundle import Bundle
from lspt_serve.models import Backbone, create_prompted_vit, load_backbone
from lspt_serve.training import create_bundle

TINY: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 0,
}
TEST_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
torch.set_num_threads(1)  # on models this small, threads cost more than they give

# The examples are those of every other run: a failure elsewhere is a failure here.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real weights, tasks and difficult images; too large for the repository."""
    folder = Path(os.environ.get("LSPT_TEST_DATA") or TEST_DATA)
    if not folder.is_dir():
        pytest.skip(f"no test material in {folder}; set LSPT_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def make_backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Backbone]:
    """make_backbone(**architecture): a tiny ViT with random weights, by way of a file.

    The weights are far from their initialisation, at which attention is flat and norms do nothing.
    """

    def make(*, seed: int = 0, **architecture: Any) -> Backbone:
        wanted = TINY | architecture
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vit = VisionTransformer(**wanted).requires_grad_(False)
            for parameter in vit.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
        half = json.dumps([0.5, 0.5, 0.5])
        metadata = {"architecture": json.dumps(wanted), "mean": half, "std": half}
        save_file(vit.state_dict(), path, metadata=metadata)
        return load_backbone(str(path))

    return make


@pytest.fixture(scope="session")
def tiny_backbone(make_backbone: Callable[..., Backbone]) -> Backbone:
    """32 x 32 images, 16 patches, width 24, 3 blocks, 2 heads, a class token."""
    return make_backbone()


@pytest.fixture(scope="session")
def make_bundle(tiny_backbone: Backbone) -> Callable[..., Bundle]:
    """make_bundle(method, **options): an untrained task, as training would hand it on.

    What starts at 0, and would hide what comes before it, is filled with noise.
    """

    def make(
        method: str = "lspt",
        *,
        backbone: Backbone = tiny_backbone,
        name: str = "tiny",
        labels: Sequence[str] = ("ant", "bee", "cat"),
        pool: str | None = None,
        seed: int = 0,
        version: int = 1,
        **options: Any,
    ) -> Bundle:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = create_prompted_vit(
                backbone, method, num_classes=len(labels), pool=pool, options=options
            ).fold()
            for tensor in model.method.parameters():
                if not tensor.any():
                    torch.nn.init.normal_(tensor)
        return create_bundle(model, backbone, name=name, version=version, labels=list(labels))

    return make
