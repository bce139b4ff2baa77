"""The server: whether it is there, and what it is."""

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from lspt_serve import __version__
from lspt_serve.api.openapi import responses
from lspt_serve.api.v2.schemas import ServerMetadata

__all__ = ["router"]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]
router = APIRouter()


@router.get("/v2")
async def get_server() -> ServerMetadata:
    """Name, version and extensions of the protocol."""
    return ServerMetadata(name="lspt-serve", version=__version__, extensions=EXTENSIONS)


@router.get("/v2/health/live")
async def is_live() -> None:
    """The server answers."""


@router.get("/v2/health/ready", responses=responses(503, of_v2=True))
async def is_ready(request: Request) -> None:
    """The server can classify."""
    if not hasattr(request.app.state, "classifier"):
        raise HTTPException(503, "the server is starting")
