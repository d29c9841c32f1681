"""Recordings as bytes: JSON, gzipped or not, and whole files of them."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any, NoReturn

LIMIT_MB = 256
"""Largest document, unpacked."""

_GZIP = b"\x1f\x8b"


def pack(document: Any, *, gz: bool) -> bytes:
    """A document as JSON in UTF-8; the same document, the same bytes."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    data = text.encode("utf-8", "backslashreplace")
    return gzip.compress(data, 6, mtime=0) if gz else data


def unpack(data: bytes) -> Any:
    """The document. Raises `ValueError`, which says what is wrong."""
    if data.startswith(_GZIP):
        data = _unzipped(data)
    if len(data) > LIMIT_MB * 1e6:
        raise ValueError(f"it is larger than {LIMIT_MB} MB")
    try:
        return json.loads(data, parse_constant=_refuse)
    except UnicodeDecodeError:
        raise ValueError("it is neither JSON nor gzip") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(path: Path) -> bytes:
    """A file, up to what `unpack` refuses. Raises `OSError`."""
    with path.open("rb") as file:
        return file.read(int(LIMIT_MB * 1e6) + 1)


def _unzipped(data: bytes) -> bytes:
    """No more than is allowed, and a byte."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(int(LIMIT_MB * 1e6) + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"its gzip is damaged: {error}") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
