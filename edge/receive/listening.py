"""Ports that are taken before anything starts, so that one that is in use is told in a sentence."""

from __future__ import annotations

import socket

from orthokernels.errors import InputError


def listen(section: str, host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address is not this machine's, or the port is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=32)
    except OSError as error:
        raise not_taken(section, host, port, error) from error


def not_taken(section: str, host: str, port: int, error: OSError) -> InputError:
    """What is said of a port that can't be had."""
    return InputError(f"{section}: can't listen on {host}:{port} ({error.strerror}). Choose another.")
