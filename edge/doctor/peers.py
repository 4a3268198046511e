"""The destinations: whether their names are known, somebody listens, TLS holds, and DICOM is spoken to us."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from orthokernels.edge.config import Config, Destination
from orthokernels.edge.doctor.look import Look
from orthokernels.edge.send.scu import NotDeliveredError, echo
from orthokernels.edge.tls import client_context

from orthokernels.errors import InputError

_CONNECT_SECONDS = 5.0


def look_at_destinations(config: Config) -> Iterator[Look]:
    """Each destination, as far as it answers."""
    if not config.destinations:
        yield Look("destinations", "note", "none is configured, so results stay here", "Add [[destinations]].")
    for destination in config.destinations:
        yield _destination(config.appliance.ae_title, destination)


def _destination(title: str, destination: Destination) -> Look:
    what = f"destination {destination.name}"
    place = f"{destination.host}:{destination.port}"
    try:
        socket.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Look(
            what, "failed", f"{destination.host}: no such host ({error.strerror})", "Correct it, or give an address."
        )
    try:
        _connect(destination)
    except InputError as error:
        return Look(what, "failed", str(error), "Correct destinations.tls.")
    except ssl.SSLError as error:
        return Look(
            what, "failed", f"{place}: TLS failed ({error.reason or error})", "Check authority and certificate."
        )
    except OSError as error:
        told = f"{place}: nobody answers ({error.strerror or error})"
        return Look(what, "failed", told, "Start it, or open the firewall between. Results wait and are sent later.")
    try:
        echo(title, destination)
    except NotDeliveredError as error:
        remedy = f"Make {title} known to {destination.ae_title}; check both AE titles."
        return Look(what, "failed", f"{place} listens, and C-ECHO failed: {error}", remedy)
    return Look(what, "ok", f"{place}, {destination.ae_title} answers C-ECHO" + ", over TLS" * bool(destination.tls))


def _connect(destination: Destination) -> None:
    with socket.create_connection((destination.host, destination.port), _CONNECT_SECONDS) as plain:
        if destination.tls is not None:
            with client_context(destination.tls).wrap_socket(plain, server_hostname=destination.host):
                pass
