"""The sockets that a server listens at."""

from __future__ import annotations

import errno
import socket

from asd_policy.errors import ServerError

_NOT_HERE = errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT


def listen(host: str, port: int) -> list[socket.socket]:
    """One for each address of ``host`` ("" is all of this machine's), at ``port``; 0 is one that
    is free, the same for all.

    Raises:
        ServerError: it cannot be listened at: taken, not this machine's, or no name that exists.
    """
    made: list[socket.socket] = []
    try:
        _open(made, host, port)
    except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
        for each in made:
            each.close()
        raise ServerError(f"cannot listen at {host}:{port}: {error}") from error
    return made


def _open(made: list[socket.socket], host: str, port: int) -> None:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    refused: OSError | None = None
    for family, _, _, _, where in dict.fromkeys(found):
        try:
            each = socket.create_server((where[0], port), family=family)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            refused = error  # a name may have an address of a kind that is switched off
            continue
        each.settimeout(0.2)  # closing it wakes nobody
        made.append(each)
        port = each.getsockname()[1]
    if refused is not None and not made:
        raise refused
