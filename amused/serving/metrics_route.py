"""The owner's page, `/metrics`: what was done so far, as text that both people and Prometheus read.

There is none unless the owner sets a token; it is the password that the browser then asks for.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from amused.errors import UserError
from amused.serving.runtime import Runtime

VARIABLE = "AMUSED_OWNER_TOKEN"
LEAST = 16


def routes(runtime: Runtime) -> list[Any]:
    """The page's route, or none.

    Raises:
        UserError: the token is too short.
    """
    token = os.environ.get(VARIABLE, "")
    if not token:
        return []
    if len(token) < LEAST:
        raise UserError(f"{VARIABLE} must have at least {LEAST} characters.")

    async def metrics(request: Request) -> Response:
        if not hmac.compare_digest(password(request.headers.get("authorization", "")), token.encode()):
            return PlainTextResponse("The owner's token is needed.\n", 401, {"www-authenticate": "Basic"})
        lines = [f"{name} {value}\n" for name, value in runtime.numbers().items()]
        return PlainTextResponse("".join(lines), headers={"cache-control": "no-store"})

    return [Route("/metrics", metrics)]


def password(header: str) -> bytes:
    """The password of a basic authorization, whoever the user; empty if there is none."""
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
