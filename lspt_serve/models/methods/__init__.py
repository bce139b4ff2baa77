"""The prompt methods, one file each."""

from typing import Any

from lspt_serve.errors import MethodError, nearest
from lspt_serve.models.methods.base import PromptMethod, Settings, Shape
from lspt_serve.models.methods.gated import Gated
from lspt_serve.models.methods.linear import Linear
from lspt_serve.models.methods.lspt import LSPT
from lspt_serve.models.methods.v2apt import V2APT
from lspt_serve.models.methods.vfpt import VFPT
from lspt_serve.models.methods.vpt import VPTDeep, VPTShallow

__all__ = ["METHODS", "PromptMethod", "Settings", "Shape", "create_method"]

METHODS: dict[str, Any] = {
    method.name: method for method in (Linear, VPTShallow, VPTDeep, VFPT, V2APT, Gated, LSPT)
}


def create_method(name: str, vit: Shape, **options: Any) -> PromptMethod:
    """Build a method with freshly initialised tensors.

    Raises:
        MethodError: unknown method or option (the nearest are named), or a bad value.
    """
    if name not in METHODS:
        raise MethodError(
            f"unknown method {name!r}; wanted one of: {', '.join(METHODS)}{nearest(name, METHODS)}"
        )
    method: PromptMethod = METHODS[name](METHODS[name].settings_type.from_options(options), vit)
    return method
