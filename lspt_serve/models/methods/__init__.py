"""The prompt methods, one file each."""

from typing import Any

from lspt_serve.errors import MethodError, nearest
from lspt_serve.models.methods.base import PromptMethod, Settings, Shape
from lspt_serve.models.methods.full import Full
from lspt_serve.models.methods.gated import Gated
from lspt_serve.models.methods.linear import Linear
from lspt_serve.models.methods.lspt import LSPT
from lspt_serve.models.methods.v2apt import V2APT
from lspt_serve.models.methods.vfpt import VFPT
from lspt_serve.models.methods.vpt import VPTDeep, VPTShallow

__all__ = [
    "BASELINES",
    "METHODS",
    "PromptMethod",
    "Settings",
    "Shape",
    "check_bundled",
    "create_method",
]

METHODS: dict[str, Any] = {
    method.name: method for method in (Linear, VPTShallow, VPTDeep, VFPT, V2APT, Gated, LSPT)
}
# What prompts are compared with: they train the backbone, and no bundle or graph knows them.
BASELINES: dict[str, Any] = {Full.name: Full}


def check_bundled(name: str) -> None:
    """Raises MethodError for a baseline, of which no bundle can be made."""
    if name in BASELINES:
        raise MethodError(
            f"method {name!r} is a baseline: it trains the backbone, and a bundle belongs to a "
            "frozen one; use train_baseline or lspt train"
        )


def create_method(name: str, vit: Shape, /, **options: Any) -> PromptMethod:
    """Build a method with freshly initialised tensors.

    Raises:
        MethodError: unknown method or option (the nearest are named), or a bad value.
    """
    known = METHODS | BASELINES
    if name not in known:
        raise MethodError(
            f"unknown method {name!r}; wanted one of: {', '.join(known)}{nearest(name, known)}"
        )
    method: PromptMethod = known[name](known[name].settings_type.from_options(options), vit)
    return method
