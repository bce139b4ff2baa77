"""The servers that are compared: ours, a BentoML service and LitServe, with the same weights."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import HERE, check_equal, progress
from numpy.typing import NDArray
from proof_client import Way
from proof_packages import find_python
from proof_server import Server, run_server, serve
from proof_traffic import Load, Run, Shot, Start
from safetensors.numpy import load_file, save_file
from vits import create_backbone

from lspt_serve.bundle import Bundle, save_bundle
from lspt_serve.export import export_graph, quantise_graph
from lspt_serve.models import Backbone, create_prompted_vit
from lspt_serve.preprocess import decode_image, preprocess_image
from lspt_serve.runtime import Candidate, Engine, Precision, activate, choose_engine, try_engines
from lspt_serve.training import create_bundle

__all__ = ["BENTO", "LIT", "OURS", "Arm", "Material", "create_material", "run_arms"]

OURS, BENTO, LIT = "ours", "BentoML", "LitServe"
TASK, NUM_CLASSES, HEAD_STD = "photo", 10, 0.5
PEERS = HERE / "peers"
TOLERANCES: dict[Precision, float] = {"fp32": 2e-3, "bf16": 0.05, "int8": 0.2}  # of a probability
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Material:
    """A ViT with a head, as our graph and bundle, and as a file of timm's."""

    vit: str
    folder: Path
    engine: Engine
    bundle: Bundle
    images: Sequence[bytes]

    def pixels(self, image: int) -> Array:
        return preprocess_image(self.images[image], self.bundle.manifest.preprocess)

    def scores(self, image: int) -> Array:
        """Probabilities (K), by the engine alone."""
        (features,) = self.engine.features(self.pixels(image)[None], [self.bundle.method_tensors])
        weight, bias = self.bundle.head
        return activate((weight @ features + bias).astype(np.float32))


def create_material(vit: str, folder: Path, images: Sequence[bytes]) -> Material:
    """Everything in `folder`, an int8 twin too. The engine is the one that is fastest in fp32."""
    backbone = create_backbone(vit, folder)
    bundle = _create_probe(backbone)
    save_bundle(bundle, folder / "bundles" / TASK)
    export_graph(backbone, folder / "graph", like=bundle)
    side = bundle.manifest.preprocess.img_size
    pixels = np.stack([decode_image(each, side) for each in images])
    quantise_graph(folder / "graph", bundle, pixels)
    weights = load_file(str(folder / f"{vit}.safetensors"))
    head = {name: bundle.tensors[name] for name in ("head.weight", "head.bias")}
    save_file({**weights, **head}, str(folder / "peer.safetensors"))
    return Material(vit, folder, choose_engine(folder / "graph", device="cpu"), bundle, images)


def _create_probe(backbone: Backbone) -> Bundle:
    """A task without prompts: what timm's model with a head is."""
    model = create_prompted_vit(backbone, "linear", num_classes=NUM_CLASSES)
    labels = [f"label{number}" for number in range(NUM_CLASSES)]
    plain = create_bundle(model, backbone, name=TASK, labels=labels)
    rng = np.random.default_rng(0)
    tensors = {
        name: HEAD_STD * rng.standard_normal(tensor.shape, np.float32)
        for name, tensor in plain.tensors.items()
    }
    about = {"name", "labels", "method", "backbone", "preprocess", "pool"}
    return Bundle.create(tensors, **{name: getattr(plain.manifest, name) for name in about})


@dataclass(frozen=True)
class Arm:
    """A server and how it is asked."""

    name: str
    server: Server
    path: str
    way: Way
    field: str
    tolerance: float = TOLERANCES["fp32"]

    def run(
        self,
        start: Start,
        images: Sequence[bytes],
        *,
        seconds: float,
        clients: int | None = None,
        shots: Sequence[Shot] = (),
    ) -> Run:
        load = Load(
            self.server.host,
            self.server.port,
            images,
            shots or [Shot(0, number, TASK) for number in range(len(images))],
            path=self.path,
            way=self.way,
            field=self.field,
            clients=clients,
            seconds=seconds,
        )
        return start(load).result()

    def check(self, start: Start, material: Material) -> float:
        """Ends the script where an answer is another than the engine's."""
        run = self.run(start, material.images, seconds=1.0, clients=1)
        worst = 0.0
        for seen in run.seen:
            if seen.status != 200:
                raise SystemExit(f"{self.name}: {seen.status} {seen.body[:300]!r}")
            got, wanted = read_scores(seen.body), material.scores(seen.image)
            if got.shape != wanted.shape:
                raise SystemExit(f"{self.name}: {got.shape} scores, wanted {wanted.shape}")
            worst = max(worst, float(np.abs(got - wanted).max()))
        return check_equal(self.name, worst, self.tolerance)


def read_scores(body: bytes) -> Array:
    """Probabilities (K) of whichever answer."""
    record = json.loads(body)
    if isinstance(record, dict) and "predictions" in record:
        best = sorted(record["predictions"], key=lambda prediction: prediction["index"])
        record = [prediction["score"] for prediction in best]
    elif isinstance(record, dict):
        record = record["scores"]
    return np.ravel(np.array(record, np.float32))


def find_faster(material: Material) -> list[Precision]:
    """Precisions that this CPU is faster in than in fp32, each by its fastest engine."""
    speeds = dict.fromkeys(TOLERANCES, 0.0)
    graph = material.folder / "graph"
    for found in try_engines(graph, precisions=tuple(TOLERANCES), device="cpu"):
        progress(str(found))
        if isinstance(found, Candidate):
            precision = found.engine.precision
            speeds[precision] = max(speeds[precision], found.images_per_s)
            found.engine.close()
    return [precision for precision, speed in speeds.items() if speed > speeds["fp32"]]


@contextmanager
def run_arms(material: Material, *, skip: Sequence[str] = ()) -> Iterator[tuple[list[Arm], str]]:
    """All arms that there are, and why LitServe is none, where it is not."""
    preprocess = material.bundle.manifest.preprocess
    about = {"img_size": preprocess.img_size, "mean": preprocess.mean, "std": preprocess.std}
    environment = {
        "PEER_VIT": material.vit,
        "PEER_WEIGHTS": material.folder / "peer.safetensors",
        "PEER_PREPROCESS": json.dumps(about),
    }
    ours = f"/classify?task={TASK}&top_k=1000"
    python, found = (None, "left out") if LIT in skip else find_python("litserve")
    with ExitStack() as servers:
        server = servers.enter_context(serve(material.folder, engine=material.engine.name))
        arms = [Arm(OURS, server, ours, "body", "image")]
        for precision in find_faster(material):
            server = servers.enter_context(serve(material.folder, precision=precision))
            name = f"{OURS} in {precision}"
            arms.append(Arm(name, server, ours, "body", "image", TOLERANCES[precision]))
        if BENTO not in skip:
            words = [sys.executable, "-m", "bentoml", "serve", "bento_peer:Peer"]
            words += ["--working-dir", str(PEERS), "--host", "127.0.0.1", "--port"]
            server = servers.enter_context(
                run_server(words, material.folder, environment=environment)
            )
            arms.append(Arm(BENTO, server, "/classify", "form", "images"))
        if python:
            words = [str(python), str(PEERS / "lit_peer.py")]
            server = servers.enter_context(
                run_server(words, material.folder, ready="/health", environment=environment)
            )
            arms.append(Arm(LIT, server, "/predict", "json", "image"))
        yield arms, found
