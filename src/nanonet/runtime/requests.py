"""A request's body: read within limits, checked, and refused with one line that says why."""

import asyncio
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from nanonet.core.errors import NanoNetError
from nanonet.tasks.labels import quoted

UPLOAD_SECONDS = 30.0
Row = str | list[str]  # a text, or the sentences of one


@dataclass(frozen=True)
class Limits:
    """What a request may hold."""

    body_bytes: int = 1_048_576
    texts: int = 256
    characters: int = 20_000  # of one text


class RequestError(NanoNetError):
    """A request that is refused with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Asked(BaseModel):
    """A body: one row or several, and what to say of each (see `nanonet.runtime.answers`).

    Attributes:
        sources: fields that hold rows, one of which is given; that of several rows comes last.
        advice: says so.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    sources: ClassVar[tuple[str, ...]] = ("text", "texts")
    advice: ClassVar[str] = "give either 'text' (one) or 'texts' (a list)"

    def rows(self) -> dict[str, Row]:
        """Return the rows by their names in the body, in order."""
        *ones, several = self.sources
        for name in ones:
            if (row := getattr(self, name)) is not None:
                return {name: row}
        return {f"{several}[{i}]": row for i, row in enumerate(getattr(self, several) or [])}


A = TypeVar("A", bound=Asked)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the whole body, never holding much more than ``limit`` bytes.

    Raises:
        RequestError: 413 too long, 408 too slow, 400 broken off.
    """
    too_long = RequestError(
        413, f"the body has more than {limit:,} bytes: send fewer or shorter texts at once"
    )
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise too_long
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive in {UPLOAD_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise RequestError(400, "the client closed the connection") from None
    return bytes(body)


def parse(body: bytes, limits: Limits, kind: type[A]) -> A:
    """Return the checked content of a body.

    Raises:
        RequestError: 400 not JSON, 422 not what is asked for.
    """
    try:
        asked = kind.model_validate_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8 (byte {error.start})") from None
    except ValidationError as error:
        raise _refusal(error, kind) from None
    if sum(getattr(asked, name) is not None for name in kind.sources) != 1:
        raise RequestError(422, kind.advice)
    rows = asked.rows()
    if not rows:
        raise RequestError(422, f"'{kind.sources[-1]}' is empty: give at least one text")
    if len(rows) > limits.texts:
        raise RequestError(
            422, f"{len(rows)} texts in one request; at most {limits.texts} are allowed"
        )
    for name, row in rows.items():
        parts = [row] if isinstance(row, str) else row
        length = sum(map(len, parts)) + max(len(parts) - 1, 0)  # with a blank between sentences
        if length > limits.characters:
            raise RequestError(
                422,
                f"'{name}' has {length:,} characters; at most {limits.characters:,} are allowed",
            )
        if any("\0" in part for part in parts):
            raise RequestError(422, f"'{name}' holds a NUL character: remove it")
    return asked


def _refusal(error: ValidationError, kind: type[Asked]) -> RequestError:
    """Return the first of the things that are wrong, in our words."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return RequestError(400, f"the body is not valid JSON: {reason}")
    if not first["loc"]:
        return RequestError(422, 'the body must be a JSON object such as {"text": "..."}')
    key, *inner = first["loc"]
    # Beside numbers of a list's parts, pydantic names the kind of part that it took them for.
    name = quoted("".join([str(key), *(f"[{p}]" for p in inner if isinstance(p, int))]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        return RequestError(422, f"unknown key {name} (known: {known})")
    says = first["msg"].removeprefix("Input should be ").replace("a valid ", "of the type ")
    return RequestError(422, f"{name} must be {says}")
