"""One try to deliver over DICOMweb: STOW-RS requests (PS3.18 section 10.5), and what the answer says of each object."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import urllib3
from orthokernels.edge.config import Tls, WebDestination
from orthokernels.edge.credentials import read_secret
from orthokernels.edge.deliveries import Made, NotDeliveredError
from orthokernels.edge.send.scu import DUPLICATE
from orthokernels.edge.tls import client_context
from pydicom.uid import UID

from orthokernels import __version__

_CHUNK = 2**16

# An answer has some 400 bytes for each object.
_LONGEST_ANSWER = 4 * 2**20

# Statuses whose answer tells of each object (PS3.18 table 10.5.3-1): all stored, some, none.
_ALL, _SOME, _NONE = 200, 202, 409

# Attributes of the answer (PS3.18 annex I.2).
_REFERENCED, _FAILED = "00081199", "00081198"
_INSTANCE, _REASON = "00081155", "00081197"


def post(destination: WebDestination, data: Path, owed: Sequence[Made], accepted: Callable[[Made], None]) -> None:
    """Send every object; ``accepted`` is called for each that the destination says it keeps.

    Raises:
        NotDeliveredError: it could not be asked, or objects that were not taken. Those that were told stay delivered.
        InputError: the secret or the certificates can't be read.
    """
    # No proxy of the environment's: images go where the configuration says, and nowhere else.
    with urllib3.PoolManager(
        retries=False,
        timeout=urllib3.Timeout(connect=destination.timeout_seconds, read=destination.timeout_seconds),
        ssl_context=client_context(destination.tls or Tls()),
    ) as pool:
        failures: list[str] = []
        for batch in _batches(data, owed, destination.bytes_per_request):
            status, body = _send(pool, destination, data, batch)
            for one in batch:
                failure = _failure(one, status, body)
                if failure is None:
                    accepted(one)
                else:
                    failures.append(f"{UID(one.sop_class).name}: {failure}")
    if failures:
        raise NotDeliveredError("; ".join(dict.fromkeys(failures)))


def authorization(destination: WebDestination) -> dict[str, str]:
    """The header that says who we are; none, where no secret is configured.

    Raises:
        InputError: the secret can't be read.
    """
    where = f"destinations: {destination.name}"
    if destination.token_file is not None:
        return {"Authorization": f"Bearer {read_secret(destination.token_file, f'{where}.token_file')}"}
    if destination.password_file is not None:
        login = read_secret(destination.password_file, f"{where}.password_file")
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    return {}


def _batches(data: Path, owed: Sequence[Made], most_bytes: int) -> Iterator[list[Made]]:
    """What goes into one request: one object at least, and no more than ``most_bytes`` beyond it."""
    batch: list[Made] = []
    size = 0
    for one in owed:
        more = (data / one.file).stat().st_size
        if batch and size + more > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += more
    if batch:
        yield batch


def _send(pool: urllib3.PoolManager, destination: WebDestination, data: Path, batch: list[Made]) -> tuple[int, Any]:
    """The answer's status, and what its body says: None where there is none."""
    boundary = uuid.uuid4().hex
    paths = [data / one.file for one in batch]
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"--{boundary}--\r\n".encode()
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(sum(len(head) + path.stat().st_size + 2 for path in paths) + len(tail)),
        "Accept": "application/dicom+json",
        "User-Agent": f"orthokernels/{__version__}",
        **authorization(destination),
    }
    until = time.monotonic() + destination.timeout_seconds
    try:
        response = pool.request(
            "POST",
            f"{destination.url}/studies",
            headers=headers,
            body=_body(paths, head, tail),
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            until = max(until, time.monotonic() + destination.timeout_seconds)
            return response.status, _told(response.status, _read(response, until))
        finally:
            response.close()
    except urllib3.exceptions.SSLError as error:
        raise NotDeliveredError(f"TLS failed: {_last_words(error)}") from error
    except urllib3.exceptions.NewConnectionError as error:  # one of the next, by urllib3
        raise NotDeliveredError(f"no connection ({_last_words(error)})") from error
    except urllib3.exceptions.TimeoutError as error:
        raise NotDeliveredError(f"it did not answer within {destination.timeout_seconds:g} seconds") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NotDeliveredError(f"the connection broke ({type(error).__name__})") from error


def _body(paths: Sequence[Path], head: bytes, tail: bytes) -> Iterator[bytes]:
    for path in paths:
        yield head
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                yield part
        yield b"\r\n"
    yield tail


def _read(response: urllib3.BaseHTTPResponse, until: float) -> bytes:
    body = bytearray()
    while part := response.read1(_CHUNK):
        body += part
        if len(body) > _LONGEST_ANSWER:
            raise NotDeliveredError(f"its answer is longer than {_LONGEST_ANSWER >> 20} MB")
        if time.monotonic() > until:
            raise NotDeliveredError("its answer did not end in time")
    return bytes(body)


def _told(status: int, body: bytes) -> Any:
    """What an answer says; its status alone may say enough.

    Raises:
        NotDeliveredError: it says that nothing was taken, or nothing that can be read.
    """
    if status in (401, 403):
        raise NotDeliveredError(f"it does not let us in (HTTP {status}); see token_file or password_file")
    if 300 <= status < 400:
        raise NotDeliveredError(f"it redirects (HTTP {status}), which is not followed; correct the url")
    if status not in (_ALL, _SOME, _NONE):
        raise NotDeliveredError(f"it answered HTTP {status}")
    if not body.strip() and status != _SOME:
        return None
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotDeliveredError(f"it answered HTTP {status} with something that is not DICOM JSON") from error
    return told[0] if isinstance(told, list) and len(told) == 1 else told


def _failure(one: Made, status: int, told: Any) -> str | None:
    """Why an object was not taken, or None if it was."""
    if told is None:
        return None if status == _ALL else f"it answered HTTP {status}"
    for item in _items(told, _FAILED):
        if _first(item, _INSTANCE) == one.sop_uid:
            reason = _first(item, _REASON)
            if reason == DUPLICATE:
                return None
            return f"it answered 0x{reason:04X}" if isinstance(reason, int) else "it did not take it"
    # A warning (00081196) may stand beside it: kept all the same, with elements coerced or left out.
    if any(_first(item, _INSTANCE) == one.sop_uid for item in _items(told, _REFERENCED)):
        return None
    return "it did not say that it keeps it"


def _items(told: Any, tag: str) -> list[Any]:
    """The values of an attribute in DICOM JSON (PS3.18 annex F), whatever else stands there."""
    element = told.get(tag) if isinstance(told, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _first(item: Any, tag: str) -> Any:
    return next(iter(_items(item, tag)), None)


def _last_words(error: BaseException) -> str:
    """urllib3 puts addresses and objects of its own before the reason."""
    return str(error).rsplit(": ", 1)[-1].strip(" ()'\",")[:120]
