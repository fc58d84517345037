"""A request's body: read within limits, checked, and refused with one line that says why."""

import asyncio
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from nanonet.core.errors import NanoNetError
from nanonet.tasks.labels import quoted

UPLOAD_SECONDS = 30.0


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


class PredictRequest(BaseModel):
    """One text or several, and what to say of each."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"texts": ["first text", "second text"], "top_k": 2}]},
    )

    text: str | None = Field(None, description="One text; give either this or texts.")
    texts: list[str] | None = Field(None, fail_fast=True, description="Several texts.")
    top_k: int | None = Field(
        None, ge=1, le=1_000_000, description="Also list this many classes, best first."
    )
    probabilities: bool = Field(False, description="Also give the probability of every class.")
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Abstain (label null) where the best class has a lower probability. Without it,"
        " the bundle decides; 0: never.",
    )

    def to_classify(self) -> list[str]:
        """Return the texts, one or many."""
        return [self.text] if self.text is not None else self.texts or []


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


def parse(body: bytes, limits: Limits) -> PredictRequest:
    """Return the checked content of a body.

    Raises:
        RequestError: 400 not JSON, 422 not what is asked for.
    """
    try:
        request = PredictRequest.model_validate_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8 (byte {error.start})") from None
    except ValidationError as error:
        raise _refusal(error) from None
    if (request.text is None) == (request.texts is None):
        raise RequestError(422, "give either 'text' (one) or 'texts' (a list)")
    texts = request.to_classify()
    if not texts:
        raise RequestError(422, "'texts' is empty: give at least one text")
    if len(texts) > limits.texts:
        raise RequestError(
            422, f"{len(texts)} texts in one request; at most {limits.texts} are allowed"
        )
    for i, text in enumerate(texts):
        name = "text" if request.text is not None else f"texts[{i}]"
        if len(text) > limits.characters:
            raise RequestError(
                422,
                f"'{name}' has {len(text):,} characters; at most {limits.characters:,} are allowed",
            )
        if "\0" in text:
            raise RequestError(422, f"'{name}' holds a NUL character: remove it")
    return request


def _refusal(error: ValidationError) -> RequestError:
    """Return the first of the things that are wrong, in our words."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return RequestError(400, f"the body is not valid JSON: {reason}")
    if not first["loc"]:
        return RequestError(422, 'the body must be a JSON object such as {"text": "..."}')
    name = quoted("".join(f"[{p}]" if isinstance(p, int) else p for p in first["loc"]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(PredictRequest.model_fields)
        return RequestError(422, f"unknown key {name} (known: {known})")
    says = first["msg"].removeprefix("Input should be ").replace("a valid ", "of the type ")
    return RequestError(422, f"{name} must be {says}")


def body_schema() -> dict[str, Any]:
    """Return the JSON schema of a body, for OpenAPI."""
    return PredictRequest.model_json_schema()
