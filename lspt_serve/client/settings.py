"""Where a server is and how it is talked to."""

from typing import Any

import httpx

from lspt_serve.errors import SettingError

__all__ = ["URL", "Settings"]

URL = "http://127.0.0.1:3000"
IDLE_S = 2.0  # a connection is kept for; servers close theirs after 5


class Settings:
    """What both have; see Client."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retries: int) -> None:
        self.url = url
        self._patience: dict[str, Any] = {"timeout_s": timeout_s, "retries": retries}
        if retries < 0:
            raise SettingError(f"retries is {retries}; wanted 0 or more")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise SettingError("the API key holds what no header may; wanted printable ASCII")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise SettingError(f"the server's url is {url!r}; wanted http://HOST:PORT")
        self._http_settings: dict[str, Any] = {
            "base_url": parsed,
            "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            "timeout": timeout_s,
            "limits": httpx.Limits(max_connections=None, keepalive_expiry=IDLE_S),
        }
