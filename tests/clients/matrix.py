"""
The clients that legacy integrations are written with, and the Content-Type that each sends by itself.

Each is a program in senders/: CLIENT BASE VARIANT… sends the seed call once a variant, to a conversation that
is named after both, and prints the variant with the status that its user would see. All that one client sends
is sent by one process: a virtual machine takes longer to start than to call.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SENDERS = Path(__file__).parent / "senders"
JARS = Path("/usr/share/java")
APACHE_AND_OKHTTP = (
    "httpclient", "httpcore", "httpclient5", "httpcore5", "httpcore5-h2", "okhttp", "okio", "commons-logging",
    "commons-codec", "slf4j-api",
)  # fmt: skip
FORM, OCTETS, JSON = "application/x-www-form-urlencoded", "application/octet-stream", "application/json"
TEXT = "text/plain; charset=utf-8"

Variant = Literal[
    "default", "none", "text", "form", "json", "charset", "gzip", "http10", "chunked", "expect", "upload",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Client:
    """
    `sends`: the Content-Type that it gives the body by itself, None for none. `missing` says what this
    machine lacks for it.
    """

    name: str
    command: tuple[str, ...]
    sends: str | None
    variants: tuple[Variant, ...]
    missing: str | None = None


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"no {name} on this machine"


def _module(name: str) -> str | None:
    return None if importlib.util.find_spec(name) else f"no {name} in this environment"


def _package(name: str) -> str | None:
    there = (SENDERS / "node_modules" / name).is_dir()
    return _program("node") or (None if there else f"no node_modules/{name}: npm ci in tests/clients/senders")


def _jars() -> str | None:
    absent = [name for name in APACHE_AND_OKHTTP if not (JARS / f"{name}.jar").exists()]
    return _program("java") or (f"no {', '.join(absent)} in {JARS}" if absent else None)


def _sender(*command: str) -> tuple[str, ...]:
    *rest, file = command
    return (*rest, str(SENDERS / file))


PYTHON = _sender(sys.executable, "python_clients.py")
NODE = _sender("node", "node_clients.cjs")
SHELL = _sender("bash", "shell_clients")
# No compiler that optimises for a program that makes ten calls.
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
CLASSES = ":".join(f"{JARS}/{name}.jar" for name in APACHE_AND_OKHTTP)
JAR_CLIENTS = (*JAVA, "-cp", CLASSES, str(SENDERS / "JarClients.java"))
USUAL: tuple[Variant, ...] = ("default", "text", "form", "charset")
CLIENTS: Sequence[Client] = (
    Client("curl", SHELL, FORM, (*USUAL, "none", "json", "gzip", "http10", "chunked", "expect", "upload"),
           _program("curl")),
    Client("wget", SHELL, FORM, (*USUAL, "gzip"), _program("wget")),
    Client("httpie", PYTHON, JSON, ("default", "text", "gzip", "chunked"), _module("httpie")),
    Client("urllib", PYTHON, FORM, (*USUAL, "gzip", "chunked")),
    Client("http.client", PYTHON, None, (*USUAL, "gzip", "http10", "chunked")),
    Client("requests", PYTHON, None, (*USUAL, "json", "gzip", "chunked"), _module("requests")),
    Client("httpx", PYTHON, None, (*USUAL, "gzip", "chunked"), _module("httpx")),
    Client("urllib3", PYTHON, None, (*USUAL, "gzip", "chunked"), _module("urllib3")),
    Client("aiohttp", PYTHON, TEXT, (*USUAL, "gzip", "chunked", "expect"), _module("aiohttp")),
    Client("fetch", NODE, "text/plain;charset=UTF-8", (*USUAL, "none", "gzip", "chunked"),
           _program("node")),
    Client("http", NODE, None, (*USUAL, "gzip", "chunked", "expect"), _program("node")),
    Client("axios", NODE, FORM, (*USUAL, "json", "gzip"), _package("axios")),
    Client("got", NODE, None, (*USUAL, "gzip"), _package("got")),
    Client("superagent", NODE, FORM, (*USUAL, "json"), _package("superagent")),
    Client("node-fetch", NODE, "text/plain;charset=UTF-8", (*USUAL, "none", "gzip", "chunked"),
           _package("node-fetch")),
    Client("jdk", (*JAVA, str(SENDERS / "JdkClient.java")), None, (*USUAL, "chunked", "expect"),
           _program("java")),
    Client("apache4", JAR_CLIENTS, "text/plain; charset=UTF-8",
           (*USUAL, "none", "gzip", "http10", "chunked", "expect"), _jars()),
    Client("apache5", JAR_CLIENTS, "text/plain; charset=UTF-8", (*USUAL, "none", "gzip", "chunked"), _jars()),
    Client("okhttp", JAR_CLIENTS, TEXT, (*USUAL, "none", "expect"), _jars()),
    Client("go", _sender("go", "run", "go_client.go"), None, (*USUAL, "gzip", "chunked", "expect"),
           _program("go")),
    Client("lwp", _sender("perl", "perl_clients.pl"), None, (*USUAL, "gzip"), _program("perl")),
    Client("http-tiny", _sender("perl", "perl_clients.pl"), OCTETS, (*USUAL, "chunked"), _program("perl")),
    Client("ruby", _sender("ruby", "ruby_client.rb"), FORM, (*USUAL, "gzip", "chunked", "expect"),
           _program("ruby")),
    Client("php-curl", _sender("php", "php_clients.php"), FORM,
           (*USUAL, "none", "gzip", "http10", "chunked", "expect"), _program("php")),
    Client("php-streams", _sender("php", "php_clients.php"), FORM, (*USUAL, "http10"), _program("php")),
)  # fmt: skip
