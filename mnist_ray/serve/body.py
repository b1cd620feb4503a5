"""The body of a request: read within limits, and made a picture."""

import asyncio
import json
from collections.abc import AsyncGenerator

import numpy as np
from fastapi import HTTPException, Request
from PIL.Image import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from mnist_ray.data.pictures import header, opened
from mnist_ray.errors import SettingsError, first_line

JSON, FORM = "application/json", "multipart/form-data"
CURL = "application/x-www-form-urlencoded"  # what curl --data-binary sends unless told otherwise
FILES = ("image/", CURL, "application/octet-stream")
LARGEST = 16 * 2**20  # bytes of a request's body
LARGEST_JSON = 4 * 2**20  # a list of numbers takes many times its text in memory
# That a picture's file states: they take about 300 MB while it is decoded.
MOST_PIXELS = 25_000_000
PATIENCE = 10.0  # seconds for a request to arrive, and again for its answer
SCHEMA = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        FORM: {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
        JSON: {
            "schema": {
                "type": "array",
                "items": {"type": "array", "items": {}},
                "description": "pixels from 0 to 255: [height, width] or [height, width, 3 or 4]",
            }
        },
    },
}


async def read(request: Request) -> tuple[bytes, str]:
    """A request's body and its kind, JSON or "": a form's first file, or the body as it is.

    Raises:
        HTTPException: It is too large, too slow or of another kind.
    """
    kind = request.headers.get("content-type", FILES[-1]).partition(";")[0].strip().lower()
    if kind not in (JSON, FORM) and not kind.startswith(FILES):
        raise HTTPException(415, f"content-type: {kind!r}; expected image/*, {FORM} or {JSON}")
    most = LARGEST_JSON if kind == JSON else LARGEST
    length = request.headers.get("content-length", "")
    found = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            if length.isdigit() and int(length) > most:
                raise _closing(413, f"the body has {length} bytes; at most {most} are allowed")
            async for part in request.stream():
                found += part
                if len(found) > most:
                    raise _closing(413, f"the body has more than {most} bytes")
    except TimeoutError as error:
        raise _closing(408, f"the body took more than {PATIENCE:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body ended early") from error
    if kind == FORM:
        return await _file_of(request, bytes(found)), ""
    return bytes(found), kind if kind == JSON else ""


def _closing(status: int, detail: str) -> HTTPException:
    """A refusal after which the rest of the body is not waited for."""
    return HTTPException(status, detail, {"Connection": "close"})


async def _file_of(request: Request, body: bytes) -> bytes:
    """The first file of a form."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(400, f"the form cannot be read: {first_line(error)}") from error
    try:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    finally:
        await form.close()
    raise HTTPException(400, "the form has no file")


def picture_of(body: bytes, kind: str) -> Image | np.ndarray:
    """The picture in a request's body: a picture file, or JSON.

    Raises:
        SettingsError: It is neither, or too large.
    """
    if kind == JSON:
        return _array(body)
    header(body, "the body", MOST_PIXELS)
    return opened(body, "the body")


def _array(body: bytes) -> np.ndarray:
    expected = "expected [height, width] or [height, width, 3 or 4] of numbers from 0 to 255"
    try:
        pixels = np.array(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the body is no array in JSON; {expected}") from error
    if pixels.dtype.kind not in "iu" or not pixels.size or pixels.min() < 0 or pixels.max() > 255:
        raise SettingsError(f"the body is no array of pixels; {expected}")
    return pixels.astype(np.uint8)
