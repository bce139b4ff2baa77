"""A server from Python: images in, typed answers out. Needs no part of the server.

from lspt_serve.client import Client

with Client("http://127.0.0.1:3000") as client:
    best = client.classify("photo.jpg", "flowers").predictions[0]
"""

from lspt_serve.client.calls import error_code
from lspt_serve.client.clients import AsyncClient, Client
from lspt_serve.client.images import Image

__all__ = ["AsyncClient", "Client", "Image", "error_code"]
