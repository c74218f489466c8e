"""Redis servers over TLS, under Sentinels and in a cluster: real ones, with a socket each for the test."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.certified import Pair
from tests.support.ports import unused_ports
from tests.support.redis_servers import SERVER, RedisProcess, said

NAME = "main"  # what the Sentinels call the primary


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Without a loop, in which nothing of a module's servers could wait."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.02)


def is_a(role: str, server: RedisProcess) -> bool:
    """Sentinels end all connections to a server of which they change that."""
    with contextlib.suppress(OSError):
        return f"role:{role}\r".encode() in server.command("INFO", "replication")
    return False


def over_tls(pair: Pair) -> tuple[RedisProcess, int]:
    """One that takes only clients with a certificate, and its port."""
    (port,) = unused_ports(1)
    files = ("--tls-cert-file", str(pair.certificate), "--tls-key-file", str(pair.key))
    return RedisProcess("--tls-port", str(port), *files, "--tls-ca-cert-file", str(pair.ca)), port


class Sentinel:
    def __init__(self, port: int, primary: int, quorum: int, *lines: str, down_after: int = 1000) -> None:
        assert SERVER is not None
        self.port = port
        self._directory = Path(tempfile.mkdtemp(prefix="sentinel-"))
        conf = self._directory / "sentinel.conf"
        monitored = f"sentinel monitor {NAME} 127.0.0.1 {primary} {quorum}"
        timing = (
            f"sentinel down-after-milliseconds {NAME} {down_after}",
            f"sentinel failover-timeout {NAME} 4000",
        )
        written = (f"port {port}", "bind 127.0.0.1", f"dir {self._directory}", monitored, *timing, *lines)
        conf.write_text("\n".join(written) + "\n", "utf-8")
        self.process = subprocess.Popen(
            [SERVER, str(conf), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.command("PING"))
        return False

    def command(self, *words: str) -> bytes:
        return said(("127.0.0.1", self.port), *words)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


class Watched:
    """A primary and a replica under `sentinels` of them."""

    def __init__(self, sentinels: int, *, down_after: int = 1000) -> None:
        ports = unused_ports(2 + sentinels)
        self.ports = ports[:2]
        first, second = (str(port) for port in self.ports)
        self.servers = [
            RedisProcess("--port", first, "--repl-diskless-sync-delay", "0"),
            RedisProcess("--port", second, "--replicaof", f"127.0.0.1 {first}"),
        ]
        wait_for(lambda: b"master_link_status:up" in self.servers[1].command("INFO", "replication"))
        quorum = sentinels // 2 + 1
        self.sentinels = [Sentinel(port, ports[0], quorum, down_after=down_after) for port in ports[2:]]
        wait_for(self._known)

    def _known(self) -> bool:
        """Each knows the replica and the others."""
        others = b"num-other-sentinels\r\n$1\r\n%d" % (len(self.sentinels) - 1)
        about = [one.command("SENTINEL", "MASTER", NAME) for one in self.sentinels]
        return all(b"num-slaves\r\n$1\r\n1" in one and others in one for one in about)

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        return f"redis+sentinel://{hosts}/{NAME}"

    def fail_over(self) -> None:
        """The primary is killed; once the other has its place it comes back, empty."""
        killed, other = sorted(self.servers, key=lambda server: is_a("slave", server))
        killed.stop()
        wait_for(lambda: is_a("master", other), 60.0)
        killed.start()
        wait_for(lambda: is_a("slave", killed), 60.0)

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for server in self.servers:
            server.signal(signal.SIGCONT)
            server.close()


class RedisCluster:
    """Three primaries with a third of the slots each, and `replicas` for each. For use once it is `ready`."""

    def __init__(self, replicas: int = 0, *, node_timeout: int = 1500) -> None:
        self._failed_over = 0
        number = 3 * (1 + replicas)
        self.ports = unused_ports(2 * number)
        self.nodes = [
            RedisProcess(
                *("--port", str(port), "--cluster-port", str(bus), "--bind", "127.0.0.1"),
                *("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout)),
                *("--cluster-require-full-coverage", "no"),
                *("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"),
            )
            for port, bus in zip(self.ports[::2], self.ports[1::2], strict=True)
        ]
        for i, node in enumerate(self.nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(i + 1))
        for i, node in enumerate(self.nodes[:3]):
            node.command("CLUSTER", "ADDSLOTSRANGE", str(i * 16384 // 3), str((i + 1) * 16384 // 3 - 1))
        for port, bus in zip(self.ports[2::2], self.ports[3::2], strict=True):
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", str(port), str(bus))

    def ready(self) -> None:
        number = len(self.nodes)
        wait_for(lambda: all(self._ready(node, number) for node in self.nodes[:3]))
        for i, node in enumerate(self.nodes[3:]):
            primary = self.id_of(self.nodes[i % 3])
            wait_for(lambda: b"OK" in node.command("CLUSTER", "REPLICATE", primary))  # noqa: B023
        for node in self.nodes[3:]:
            wait_for(lambda: b"master_link_status:up" in node.command("INFO", "replication"))  # noqa: B023
        # Who has not heard yet that it is a replica does not vote for it.
        wait_for(lambda: all(self._ready(node, number) for node in self.nodes))
        wait_for(
            lambda: all(
                node.command("CLUSTER", "NODES").count(b"slave ") == number - 3 for node in self.nodes
            )
        )

    @staticmethod
    def _ready(node: RedisProcess, number: int) -> bool:
        info = node.command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % number in info

    @staticmethod
    def id_of(node: RedisProcess) -> str:
        return node.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports[::2])

    def owner(self, slot: int) -> RedisProcess:
        """Whoever serves it: asking it for a key there is no redirection."""
        for node in self.nodes:
            with contextlib.suppress(OSError):
                slots = node.command("CLUSTER", "NODES").decode()
                mine = next(line for line in slots.splitlines() if "myself,master" in line)
                for part in mine.split()[8:]:
                    first, _, last = part.partition("-")
                    if not part.startswith("[") and int(first) <= slot <= int(last or first):
                        return node
        raise AssertionError("nobody has it")

    def move(self, slot: int, to: RedisProcess) -> Iterator[str]:
        """One slot from node to node, as redis-cli does it; it stops where a test may look at it."""
        source = self.owner(slot)
        source_id, target_id = self.id_of(source), self.id_of(to)
        to.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target_id)
        yield "begun"
        port = self.ports[2 * self.nodes.index(to)]
        while keys := [
            line.decode()
            for line in source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1").split(b"\r\n")[2::2]
        ]:
            moved = source.command("MIGRATE", "127.0.0.1", str(port), keys[0], "0", "5000")
            assert moved.startswith(b"+OK"), moved
            yield keys[0]
        for node in (to, source, *self.nodes[:3]):
            node.command("CLUSTER", "SETSLOT", str(slot), "NODE", target_id)

    def fail_over(self) -> None:
        """A primary is killed; once its replica has its place it comes back, empty. Another one each time."""
        self._failed_over += 1
        number = self._failed_over % 3
        pair = [self.nodes[number], self.nodes[number + 3]]
        killed, other = sorted(pair, key=lambda node: is_a("slave", node))
        killed.stop()
        wait_for(lambda: is_a("master", other), 60.0)
        killed.start()
        wait_for(lambda: is_a("slave", killed), 60.0)

    def close(self) -> None:
        for node in self.nodes:
            node.signal(signal.SIGCONT)
            node.close()
