"""The destinations: whether their names are known, somebody listens, TLS holds, and DICOM is spoken to us.

A DICOMweb server has no C-ECHO; that it listens and shows its certificate is all that is asked of it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from orthokernels.edge.config import AnyDestination, Config, Tls, WebDestination
from orthokernels.edge.doctor.look import Look
from orthokernels.edge.forms import STORAGE, LabelMap, wished
from orthokernels.edge.send.scu import WRITTEN, NotDeliveredError, echo
from orthokernels.edge.tls import client_context
from pydicom.uid import UID

from orthokernels.errors import InputError

_CONNECT_SECONDS = 5.0


def look_at_destinations(config: Config) -> Iterator[Look]:
    """Each destination, as far as it answers."""
    if not config.destinations:
        yield Look("destinations", "note", "none is configured, so results stay here", "Add [[destinations]].")
    for destination in config.destinations:
        yield _destination(config.appliance.ae_title, destination, config.label_map(destination))


def _destination(title: str, destination: AnyDestination, label_map: LabelMap) -> Look:
    what = f"destination {destination.name}"
    host, port = _address(destination)
    place = f"{host}:{port}"
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Look(what, "failed", f"{host}: no such host ({error.strerror})", "Correct it, or give an address.")
    context = None
    try:
        context = _context(destination)
        _connect(host, port, context)
    except InputError as error:
        return Look(what, "failed", str(error), "Correct destinations.tls.")
    except ssl.SSLError as error:
        return Look(
            what, "failed", f"{place}: TLS failed ({error.reason or error})", "Check authority and certificate."
        )
    except OSError as error:
        told = f"{place}: nobody answers ({error.strerror or error})"
        return Look(what, "failed", told, "Start it, or open the firewall between. Results wait and are sent later.")
    over_tls = ", over TLS" * (context is not None)
    if isinstance(destination, WebDestination):
        return Look(what, "ok", f"{place} listens{over_tls}; what it takes shows when results are sent")
    try:
        accepted = echo(title, destination, WRITTEN)
    except NotDeliveredError as error:
        remedy = f"Make {title} known to {destination.ae_title}; check both AE titles."
        return Look(what, "failed", f"{place} listens, and C-ECHO failed: {error}", remedy)
    segmentation = {STORAGE[form] for form in wished(label_map)}
    refused = [{own} for own in WRITTEN if own not in STORAGE.values()] + [segmentation]
    if names := [UID(min(classes)).name for classes in refused if not classes & accepted]:
        told = f"{place} answers C-ECHO, and does not accept: {', '.join(names)}"
        return Look(what, "failed", told, f"Let {destination.ae_title} store these; until then nothing is whole there.")
    told = f"{place}, {destination.ae_title} answers C-ECHO{over_tls}"
    if label_map == "auto":
        told += "; it takes label maps" if STORAGE["label map"] in accepted else "; it takes binary segmentations alone"
    return Look(what, "ok", told)


def _address(destination: AnyDestination) -> tuple[str, int]:
    if not isinstance(destination, WebDestination):
        return destination.host, destination.port
    url = urlsplit(destination.url)
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _context(destination: AnyDestination) -> ssl.SSLContext | None:
    if isinstance(destination, WebDestination):
        return client_context(destination.tls or Tls()) if destination.url.startswith("https:") else None
    return client_context(destination.tls) if destination.tls is not None else None


def _connect(host: str, port: int, context: ssl.SSLContext | None) -> None:
    with socket.create_connection((host, port), _CONNECT_SECONDS) as plain:
        if context is not None:
            with context.wrap_socket(plain, server_hostname=host):
                pass
