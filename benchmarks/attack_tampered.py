"""Bundles that somebody changed, in the folder of a running server."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from common import Target, progress
from proof_scene import Scene
from proof_server import Server

from lspt_serve.bundle import MANIFEST, TENSORS

__all__ = ["tamper", "tamper_all"]

COUNT, NOTICED_S = 45, 4.0


def tamper(bundle: Path, number: int) -> str:
    """Change one thing of a bundle in place; returns what."""
    rng = random.Random(number)
    manifest, tensors = bundle / MANIFEST, bundle / TENSORS
    fields: dict[str, Any] = json.loads(manifest.read_text())
    kind = number % 9
    if kind in (0, 1):
        data = bytearray(tensors.read_bytes())
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        tensors.write_bytes(data)
        return f"bit of byte {place} of its tensors"
    if kind == 2:
        tensors.write_bytes(tensors.read_bytes()[: rng.randrange(1, 2000)])
        return "tensors cut off"
    if kind == 3:
        tensors.unlink()
        tensors.symlink_to("/etc/passwd")
        return "tensors that are a link to a file of the system"
    if kind == 8:
        outside = bundle.parent.parent / f"outside-{bundle.name}"
        bundle.rename(outside)
        bundle.symlink_to(outside)
        return "a folder that is a link to one outside"
    if kind == 4:
        fields["tensors"]["head.weight"] = [10**9, 10**9]
        what = "a head of 10^18 numbers"
    elif kind == 5:
        fields["backbone"]["sha256"] = "0" * 64
        what = "another backbone"
    elif kind == 6:
        fields["name"] = "../secret"
        what = "a name that leads out"
    else:
        fields["preprocess"]["img_size"] = 10**9
        what = "images of 10^18 pixels"
    manifest.write_text(json.dumps(fields))
    return what


def tamper_all(scene: Scene, server: Server) -> tuple[Target, str]:
    """Put COUNT of them beside the good ones; none is to be served, and all good ones still are."""
    bundles, done = scene.folder / "bundles", {}
    for number in range(COUNT):
        name = f"tampered{number:02}"
        hidden = bundles / f".{name}"
        shutil.copytree(bundles / scene.names[0], hidden)
        rename(hidden / MANIFEST, name)
        done[name] = tamper(hidden, number)
        hidden.rename(bundles / name)
    time.sleep(NOTICED_S)
    with urlopen(f"{server.url}/tasks", timeout=20) as answer:
        listed = json.load(answer)
    served = {task["name"] for task in listed["tasks"]}
    taken = [name for name in done if name not in listed["refused"] or name in served]
    telling = [name for name, reason in listed["refused"].items() if str(scene.folder) in reason]
    for name in taken:
        progress(f"{name} is not refused: {done[name]}")
        (bundles / name).rename(scene.folder / f"taken-{name}")
    wrong = len(taken) + len(telling) + len({*scene.names} - served)
    note = f"{COUNT} tampered, {len(taken)} not refused, {len(telling)} reasons with paths"
    return Target("tampered bundles", "at most", 0, wrong, note), ""


def rename(manifest: Path, name: str) -> None:
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "name": name}))
