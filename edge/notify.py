"""Telling systemd how the service is: the protocol of sd_notify(3), a datagram to the socket that it names."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send ``state``, such as "READY=1"; nothing happens where no systemd waits for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear "WATCHDOG=1", halved so that one may be late; None where it does not."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        wanted = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return wanted / 2e6 if wanted > 0 else None
