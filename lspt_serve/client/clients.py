"""The two clients: the same calls, waiting for their answers or awaiting them."""

import time
from collections.abc import Iterable, Sequence
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import httpx
from pydantic import BaseModel

from lspt_serve.client.calls import (
    Call,
    ask_answer,
    ask_items,
    ask_task,
    ask_tasks,
    converse,
    group_images,
    place_items,
)
from lspt_serve.client.images import Image, read_image
from lspt_serve.client.settings import URL, Settings
from lspt_serve.schemas import Activation, Answer, Item, Task, TaskList

__all__ = ["AsyncClient", "Client"]

M = TypeVar("M", bound=BaseModel)


class Client(Settings):
    """A running server; `with Client(url) as client:`, or close it. Threads may share one.

    Its methods raise what the server refused (UnknownTaskError, TooLargeError, OverloadedError and
    the like; ServerError for what has no class of its own), UnavailableError where no server
    answers, and DeadlineError for an answer that does not come in time. A request that the server
    is too busy for is sent again when it said to.

    Args:
        api_key: sent as `Authorization: Bearer`.
        timeout_s: for each step of a request, the longest of which is its answer.
        retries: of a request that the server is too busy for (429, 503).
        transport: in place of the network.

    Raises:
        SettingError: a url or key that cannot be one.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s, retries)
        self._http = httpx.Client(transport=transport, **self._http_settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def classify(
        self,
        image: Image,
        task: str,
        *,
        top_k: int = 5,
        activation: Activation = "softmax",
        threshold: float | None = None,
        attention: bool = False,
    ) -> Answer:
        """One image by one task: NAME, NAME@VERSION or NAME:ALIAS.

        Args:
            top_k: labels, best first.
            activation: what scores are: probabilities of labels that exclude one another, sigmoid
                of labels that do not, none for logits.
            threshold: no labels that score less.
            attention: also where in the image the answer looks; costs a second run of the image.
        """
        asked = {"top_k": top_k, "activation": activation, "threshold": threshold}
        return self._do(ask_answer(read_image(image), task, attention=attention, **asked))

    def classify_many(
        self,
        images: Iterable[Image],
        tasks: Sequence[str],
        *,
        top_k: int = 5,
        activation: Activation = "softmax",
        threshold: float | None = None,
    ) -> list[Item]:
        """Every image by every task, each decoded once; in order, the tasks of an image together.

        What an image or a task is to blame for is the `error` of its items. Images are sent in as
        many requests as the server's limits ask for; one that is too large alone is TooLargeError.
        `file` of an item is the path, where one was given.
        """
        asked = {"top_k": top_k, "activation": activation, "threshold": threshold}
        items: list[Item] = []
        for group in group_images(images, len(tasks), top_k):
            items += place_items(self._do(ask_items(group, tasks, **asked)), group)
        return items

    def tasks(self) -> TaskList:
        """What is served, and which bundles are not."""
        return self._do(ask_tasks())

    def task(self, name: str) -> Task:
        """One task."""
        return self._do(ask_task(name))

    def is_ready(self) -> bool:
        """Whether the server takes requests; False also where there is none."""
        try:
            return self._http.get("readyz").is_success
        except httpx.RequestError:
            return False

    def _do(self, call: Call[M]) -> M:
        talk = converse(call, self.url, **self._patience)
        wait_s = next(talk)
        while True:
            time.sleep(wait_s)
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = self._http.request(call.method, call.path, **call.settings)
            except httpx.RequestError as error:
                outcome = error
            try:
                wait_s = talk.send(outcome)
            except StopIteration as done:
                answer: M = done.value
                return answer


class AsyncClient(Settings):
    """Client with methods to await; `async with AsyncClient(url) as client:`.

    Files are read and pixels encoded in threads.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout_s, retries)
        self._http = httpx.AsyncClient(transport=transport, **self._http_settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def classify(
        self,
        image: Image,
        task: str,
        *,
        top_k: int = 5,
        activation: Activation = "softmax",
        threshold: float | None = None,
        attention: bool = False,
    ) -> Answer:
        """See Client."""
        asked = {"top_k": top_k, "activation": activation, "threshold": threshold}
        data = await anyio.to_thread.run_sync(read_image, image)
        return await self._do(ask_answer(data, task, attention=attention, **asked))

    async def classify_many(
        self,
        images: Iterable[Image],
        tasks: Sequence[str],
        *,
        top_k: int = 5,
        activation: Activation = "softmax",
        threshold: float | None = None,
    ) -> list[Item]:
        """See Client."""
        asked = {"top_k": top_k, "activation": activation, "threshold": threshold}
        items: list[Item] = []
        groups = group_images(images, len(tasks), top_k)
        while group := await anyio.to_thread.run_sync(next, groups, None):
            items += place_items(await self._do(ask_items(group, tasks, **asked)), group)
        return items

    async def tasks(self) -> TaskList:
        """See Client."""
        return await self._do(ask_tasks())

    async def task(self, name: str) -> Task:
        """See Client."""
        return await self._do(ask_task(name))

    async def is_ready(self) -> bool:
        """See Client."""
        try:
            return (await self._http.get("readyz")).is_success
        except httpx.RequestError:
            return False

    async def _do(self, call: Call[M]) -> M:
        talk = converse(call, self.url, **self._patience)
        wait_s = next(talk)
        while True:
            await anyio.sleep(wait_s)
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = await self._http.request(call.method, call.path, **call.settings)
            except httpx.RequestError as error:
                outcome = error
            try:
                wait_s = talk.send(outcome)
            except StopIteration as done:
                answer: M = done.value
                return answer
