"""A world behind HTTP: any server with POST /reset and POST /step in OpenEnv's JSON.

    POST /reset  {"seed": 7}                    -> {"observation": {"text": "..."}, "done": false}
    POST /step   {"action": {"text": "..."}}    -> the same, with "reward": a number or null

Instead of "done" a server may say "terminated" and "truncated", as newer OpenEnv clients do.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from textrl.envs.worlds.foreign import ForeignWorld
from textrl.errors import UserError, shown

LONGEST_REPLY = 16 * 2**20
"""Bytes above which a reply is refused."""


class HttpWorld(ForeignWorld):
    """A server with `/reset` and `/step`: `HttpWorld("http://127.0.0.1:8000")`.

    The seed and the options of `reset` are fields of its body; a reset without a seed sends one
    drawn from the world's own generator. Whether equal seeds give equal games is the server's to
    keep. One server holds one game unless it says otherwise, so a world a row needs a server a row.

    OpenEnv's own server (openenv-core 0.3) makes a *new* environment for each HTTP request and
    keeps sessions on its WebSocket only. Over HTTP it serves games of more than one request only if
    its factory returns one shared environment; tasks whose step needs no reset work in any case.

    Args:
        url: Where the server is, http or https, without "/reset". Redirects are refused.
        observation_field: The field of the observation that is the text. An observation that is a
            text itself needs none.
        action_field: The field of the action that takes the text; None sends the text itself.
        timeout: Limit for one request in seconds, the reading of its reply included.
        headers: Headers of every request, an authorization say.
    """

    def __init__(
        self,
        url: str,
        *,
        observation_field: str = "text",
        action_field: str | None = "text",
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_checked_url(url))
        if not 0 < timeout < 1e6:
            raise UserError(f"{self.who}: timeout {shown(timeout)}; expected seconds above 0")
        self._url = url.rstrip("/")
        self._observation_field = observation_field
        self._action_field = action_field
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        self._headers |= headers or {}
        self._opener = _opener()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the first observation of a new game; options are further fields of the request."""
        number = self.begin(seed)
        reply = self._post("/reset", {**(options or {}), "seed": number})
        text, info = self._read("/reset", reply)
        if reply.get("done") or reply.get("terminated") or reply.get("truncated"):
            raise UserError(f"{self.who}/reset: the game is over before the first move")
        return self.started(text, info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return the server's observation, reward (null is 0) and end."""
        text = self.taken(action)
        field = self._action_field
        reply = self._post("/step", {"action": text if field is None else {field: text}})
        found, info = self._read("/step", reply)
        if "done" not in reply and "terminated" not in reply:
            raise UserError(f"{self.who}/step: no field 'done' or 'terminated'; {_fields(reply)}")
        for name in ("reward", "done", "terminated", "truncated"):
            kinds = (int, float, type(None)) if name == "reward" else (bool, type(None))
            if not isinstance(reply.get(name), kinds):
                wanted = "a number or null" if name == "reward" else "true or false"
                raise UserError(f"{self.who}/step: {name} {shown(reply[name])}; expected {wanted}")
        truncated = bool(reply.get("truncated"))
        terminated = bool(reply.get("terminated", reply.get("done") and not truncated))
        reward = 0.0 if reply.get("reward") is None else reply["reward"]
        return self.replied(found, reward, terminated, truncated, info)

    def _read(self, path: str, reply: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the observation's text, and its other fields as the info."""
        if "observation" not in reply:
            raise UserError(f"{self.who}{path}: no field 'observation'; {_fields(reply)}")
        observation = reply["observation"]
        if isinstance(observation, str):
            return observation, {}
        name = self._observation_field
        if not isinstance(observation, dict) or not isinstance(observation.get(name), str):
            found = _fields(observation) if isinstance(observation, dict) else shown(observation)
            raise UserError(
                f"{self.who}{path}: no text {name!r} in the observation; {found}; "
                "say which with observation_field="
            )
        return observation[name], {k: v for k, v in observation.items() if k != name}

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that the server answers."""
        where = f"{self.who}{path}"
        try:
            data = json.dumps(body).encode()
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: options that are no JSON: {error}") from error
        raw = self._answer(where, urllib.request.Request(self._url + path, data, self._headers))
        try:
            reply = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: the reply is no JSON: {shown(raw[:100])}") from error
        if not isinstance(reply, dict):
            raise UserError(f"{where}: a reply of {shown(reply)[:100]}; expected a JSON object")
        return reply

    def _answer(self, where: str, request: urllib.request.Request) -> bytes:
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                parts, size = [], 0
                while part := response.read1(2**16):  # a part at a time, to keep to the limit
                    parts.append(part)
                    size += len(part)
                    if size > LONGEST_REPLY:
                        raise UserError(f"{where}: a reply above {LONGEST_REPLY} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError
                return b"".join(parts)
        except urllib.error.HTTPError as error:
            with error:
                raise UserError(f"{where}: {_status(error)}") from error
        except TimeoutError as error:
            raise UserError(f"{where}: no reply within {self._timeout:g} s (timeout=)") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"no reply within {self._timeout:g} s (timeout=)"
            raise UserError(f"{where}: {reason or type(error).__name__}") from error


def _checked_url(url: str) -> str:
    """Return the URL without a last slash, if a request to it could be made."""
    parts = urlsplit(url)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if "@" in parts.netloc:
        raise UserError(f"a URL with a name or password in it ({parts.hostname}); give headers=")
    if not good or parts.query or parts.fragment:
        raise UserError(f"{shown(url)}: expected http://HOST:PORT or https://HOST, maybe a path")
    return url.rstrip("/")


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https alone, and follows no redirect anywhere."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _status(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"a redirect to {shown(error.headers.get('Location'))}; give that URL instead"
    try:
        body = error.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        body = ""
    return f"status {error.code} {error.reason}: {body}"


def _fields(found: Mapping[str, Any]) -> str:
    return f"found {', '.join(map(str, found)) or 'no field'}"
