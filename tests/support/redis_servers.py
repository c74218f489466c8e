"""Redis servers of the tests' own: real ones, each on a Unix socket in a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SERVER = os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
needs_redis = pytest.mark.skipif(SERVER is None, reason="no redis-server is installed")


def said(where: str | tuple[str, int], *words: str) -> bytes:
    """What the server at a path or a port says to a command."""
    with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as connection:
        connection.settimeout(10)
        connection.connect(where)
        connection.sendall(
            b"*%d\r\n" % len(words)
            + b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
        )
        return connection.recv(65536)


class RedisProcess:
    """Started at once, and again by `start`; `stop` ends it for certain, and its data with it."""

    def __init__(self, *options: str) -> None:
        assert SERVER is not None
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.path = self.directory / "redis.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        assert SERVER is not None
        words = ["--port", "0", "--unixsocket", str(self.path), "--save", "", "--dir", str(self.directory)]
        self._process = subprocess.Popen(
            [SERVER, *words, *self._options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.path))
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64):
                        return
                except OSError:
                    time.sleep(0.01)
        raise AssertionError("the redis-server did not start")

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def command(self, *words: str) -> bytes:
        """What the server says to it, in a reply of less than 64 KiB."""
        return said(str(self.path), *words)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
