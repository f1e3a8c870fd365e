"""The door of a coordinator: a port at which workers on other machines come in.

A worker proves that it has the run's key, and the coordinator proves the same, by a challenge each
(`multiprocessing.connection`). What is sent then is neither encrypted nor signed: the network of a cluster is trusted as its
shared file system is.
"""

from __future__ import annotations

import contextlib
import resource
import secrets
import socket
import struct
import threading
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from queue import Empty, SimpleQueue

from holdfast.core.types import HoldfastError
from holdfast.jobs.executor import Arrival
from holdfast.jobs.worker import serve

_PATIENCE = 30
"""seconds for a connection and for each of its first messages"""

_FILES = 16_384
"""connections that are enough"""

_SILENCE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}
"""A machine that lost power sends nothing. The kernel asks every 10 s after 30 s of silence and gives up after six questions, so
such a machine counts as gone after 90 s."""


class Door:
    """The port, open until `close`."""

    def __init__(self, host: str = "") -> None:
        """Open a free port on all interfaces of this machine.

        Args:
            host: by which workers reach this machine; empty: by its host name.
        """
        _allow_files()
        self.host, self.key = host or socket.gethostname(), secrets.token_bytes(32)
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        else:
            self._socket = socket.create_server(("", 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self._came: SimpleQueue[Arrival] = SimpleQueue()
        self._closing, self._closed = threading.Lock(), False
        threading.Thread(target=self._wait, daemon=True).start()

    def arrivals(self) -> list[Arrival]:
        """The workers that have come since the last call."""
        came = []
        with contextlib.suppress(Empty):
            while True:
                came.append(self._came.get_nowait())
        return came

    def close(self) -> None:
        """Let nobody in any more; whoever has come and was not asked for is sent away."""
        with self._closing:
            self._closed = True
        for arrival in self.arrivals():
            arrival.connection.close()
        # A thread that waits in accept() would keep the port open.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _wait(self) -> None:
        with contextlib.suppress(OSError):  # the door was closed
            while True:
                connected, _ = self._socket.accept()
                # Whoever says nothing must not keep others waiting.
                threading.Thread(target=self._greet, args=(connected,), daemon=True).start()

    def _greet(self, connected: socket.socket) -> None:
        _limit(connected, _PATIENCE)
        _notice_silence(connected)
        connection = Connection(connected.detach())
        try:
            deliver_challenge(connection, self.key)
            answer_challenge(connection, self.key)
            name = connection.recv()
            with socket.socket(fileno=connection.fileno()) as again:
                _limit(again, 0)
                again.detach()
        except Exception:  # a stranger, or a worker that died meanwhile
            connection.close()
            return
        with self._closing:
            if self._closed:
                connection.close()
            else:
                self._came.put(Arrival(connection, name))


def work_at(host: str, port: int, key: bytes, name: str) -> None:
    """Come in at a coordinator's door and work.

    Args:
        host: of the coordinator.
        port: of its door.
        key: of the run.
        name: what the worker's place calls the worker.

    Raises:
        HoldfastError: the coordinator cannot be reached.
    """
    try:
        connected = socket.create_connection((host, port), timeout=_PATIENCE)
    except OSError as error:
        raise HoldfastError(
            f"the coordinator on {host}, port {port}, cannot be reached from {socket.gethostname()} ({error}); "
            "give the name or the address of the coordinator's machine with --cluster host=…"
        ) from error
    connected.settimeout(None)
    _notice_silence(connected)
    connection = Connection(connected.detach())
    answer_challenge(connection, key)
    deliver_challenge(connection, key)
    connection.send(name)
    serve(connection)


def _allow_files() -> None:
    """Let this process open more files, as far as it may: a thousand workers are a thousand open files."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _limit(connected: socket.socket, seconds: int) -> None:
    """Limit how long a read may wait; 0: without end."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def _notice_silence(connected: socket.socket) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _SILENCE.items():
        if hasattr(socket, name):  # macOS has other names
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
