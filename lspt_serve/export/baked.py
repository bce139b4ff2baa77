"""One task in one self-contained ONNX file, for the edge and for plain model servers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lspt_serve.bundle import Bundle
from lspt_serve.export.parity import check_parity, create_session
from lspt_serve.export.to_onnx import atomic_onnx, write_onnx
from lspt_serve.export.wrapper import BakedGraph, create_model
from lspt_serve.graph import IMAGES, PROBABILITIES, ParityRow
from lspt_serve.models import Backbone, PromptedViT

__all__ = ["export_bundle"]


def export_bundle(backbone: Backbone, bundle: Bundle, out: Path) -> list[ParityRow]:
    """Write one ONNX file: normalised images (B x 3 x H x W) in, probabilities (B x K) out.

    Its metadata holds `task`, `version`, `labels` (JSON list), `preprocess` (JSON object) and
    `backbone_sha256`. Written only after its answers agreed with torch in fp32.

    Raises:
        BundleError: the bundle belongs to another backbone or size of images.
        GraphError: the graph disagrees with torch.
        OutputError: OUT cannot be written.
    """
    model = create_model(backbone, bundle)
    img_size = backbone.preprocess.img_size
    metadata = {
        "task": bundle.name,
        "version": str(bundle.manifest.version),
        "labels": json.dumps(bundle.labels),
        "preprocess": json.dumps(asdict(bundle.manifest.preprocess)),
        "backbone_sha256": backbone.sha256,
    }
    with atomic_onnx(out) as path:
        write_onnx(
            BakedGraph(model), path, img_size=img_size, outputs=[PROBABILITIES], metadata=metadata
        )
        session = create_session(path)

        def predict(
            images: NDArray[np.float32], _: Sequence[PromptedViT]
        ) -> list[NDArray[np.float32]]:
            return list(session.run([PROBABILITIES], {IMAGES: images})[0])

        return check_parity(predict, {bundle.name: model}, img_size, softmax=True)
