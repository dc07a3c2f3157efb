"""Keeps a process from everything but this machine, and notes what it asks for."""

from pathlib import Path

BLOCKING = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        open({path!r}, "a").write(repr(address) + "\\n")
        raise OSError("blocked")
    return _connect(self, address)
socket.socket.connect = connect
def refuse(*args, **named):
    open({path!r}, "a").write(repr(args) + "\\n")
    raise OSError("blocked")
_resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: (
    _resolve(host, *a, **k) if host in (None, "127.0.0.1", "::1", "localhost") else refuse(host)
)
"""


class Offline:
    """What a process is started with.

    Args:
        folder: Where its first module and its notes lie.
    """

    def __init__(self, folder: Path) -> None:
        self._requests = folder / "asked"
        (folder / "sitecustomize.py").write_text(BLOCKING.format(path=str(self._requests)))
        self.environment = {"PYTHONPATH": str(folder)}

    def requests(self) -> str:
        """Return what it asked for; nothing is the good answer."""
        return self._requests.read_text() if self._requests.exists() else ""
