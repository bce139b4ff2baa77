"""The Open Inference Protocol, version 2, with Triton's extensions for binary data, classification
and model repositories: what `tritonclient.http` speaks. A model is a task.
"""

from fastapi import APIRouter

from lspt_serve.api.v2 import infer, models, repository, server

__all__ = ["router"]

router = APIRouter()
for part in (server, models, repository, infer):
    router.include_router(part.router)
