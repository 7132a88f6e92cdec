"""Several real Redis servers that know of each other: with sentinels, or as a cluster. On loopback, ended by pid."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from gateway.stores.address import ClusterAddress, RedisAddress, SentinelAddress
from tests.kit.programs import program
from tests.kit.redis import RedisServer, free_ports, until
from tests.kit.tls import Pem, pem_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

SERVICE = "limits"
SLOTS = 16384
_AT_ONCE = ("--repl-diskless-sync-delay", "0")
_CLUSTERED = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *_AT_ONCE)


class Tls:
    """What servers need that speak TLS and nothing else, with clients and with each other.

    Args:
        ca: Who vouches for them.
        directory: For the files.
    """

    def __init__(self, ca: trustme.CA, directory: Path) -> None:
        self.ca_file = pem_file(ca, directory)
        self._pem = Pem(directory / "redis.pem", directory / "redis.key")
        self._pem.write(ca, "127.0.0.1")

    def settings(self, port: int) -> dict[str, str]:
        """What to configure a server or a sentinel with, beside all else; in place of its `port`."""
        files = {"tls-cert-file": self._pem.cert, "tls-key-file": self._pem.key, "tls-ca-cert-file": self.ca_file}
        modes = {"port": "0", "tls-port": str(port), "tls-auth-clients": "no", "tls-replication": "yes"}
        return modes | {name: str(file) for name, file in files.items()}


def _url(address: SentinelAddress | ClusterAddress) -> str:
    return str(address) + (f"?ca_file={address.ca_file}" if address.ca_file else "")


def _seeds(servers: list[RedisServer], tls: Tls | None) -> tuple[RedisAddress, ...]:
    places = (RedisAddress("127.0.0.1", one.port) for one in servers)
    return tuple(dataclasses.replace(one, tls=True, ca_file=tls.ca_file) if tls else one for one in places)


class Sentinels:
    """A master, a replica, and three sentinels that watch them."""

    def __init__(self, servers: list[RedisServer], sentinels: list[RedisServer], tls: Tls | None) -> None:
        self.servers = servers
        self.sentinels = sentinels
        self.address = SentinelAddress(_seeds(sentinels, tls), SERVICE)
        self.url = _url(self.address)

    def master(self) -> RedisServer:
        """The server that the first living sentinel takes for the master."""
        reply = self.sentinels[0].call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        assert isinstance(reply, list)
        (found,) = [one for one in self.servers if one.port == int(reply[1])]
        return found

    def promoted(self, old: RedisServer) -> None:
        """Wait until the other server takes writes."""
        (other,) = [one for one in self.servers if one is not old]
        until(lambda: _role(other) == b"master", "a promoted replica")


def _role(server: RedisServer) -> object:
    try:
        reply = server.call("ROLE")
    except ConnectionError:  # a sentinel cuts all connections when it changes a role
        return None
    return reply[0] if isinstance(reply, list) else reply


def _fields(reply: object) -> dict[bytes, bytes]:
    assert isinstance(reply, list), reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


@contextlib.contextmanager
def running_sentinels(tls: Tls | None = None) -> Iterator[Sentinels]:
    """Run a master, a replica and three sentinels that have found each other."""
    binary = program("redis-server")
    with contextlib.ExitStack() as stack:
        ports = free_ports(5)
        servers = [_server(stack, binary, ports[0], tls, *_AT_ONCE)]
        servers.append(_server(stack, binary, ports[1], tls, *_AT_ONCE, "--replicaof", f"127.0.0.1 {ports[0]}"))
        until(lambda: b"master_link_status:up" in servers[1].info("replication"), "a replica in step")
        sentinels = [_sentinel(stack, binary, port, ports[0], tls) for port in ports[2:]]

        def knows_all(sentinel: RedisServer) -> bool:
            fields = _fields(sentinel.call("SENTINEL", "MASTER", SERVICE))
            return (fields[b"num-other-sentinels"], fields[b"num-slaves"]) == (b"2", b"1")

        until(lambda: all(map(knows_all, sentinels)), "sentinels that know each other")
        yield Sentinels(servers, sentinels, tls)


def _directory(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-")))


def _server(stack: contextlib.ExitStack, binary: str, port: int, tls: Tls | None, *options: str) -> RedisServer:
    secured = [word for name, value in (tls.settings(port) if tls else {}).items() for word in (f"--{name}", value)]
    server = RedisServer(binary, _directory(stack), (*options, *secured), port)
    stack.callback(server.kill)
    server.start()
    return server


def _sentinel(stack: contextlib.ExitStack, binary: str, port: int, master_port: int, tls: Tls | None) -> RedisServer:
    settings = tls.settings(port) if tls else {"port": str(port)}
    directory = _directory(stack)
    # Sentinels write what they learn into their configuration.
    file = directory / "sentinel.conf"
    file.write_text(
        "".join(f"{name} {value}\n" for name, value in settings.items())
        + f"bind 127.0.0.1\ndir {directory}\nunixsocket {directory}/redis.sock\nloglevel warning\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {master_port} 2\n"
        f"sentinel down-after-milliseconds {SERVICE} 500\n"
        f"sentinel failover-timeout {SERVICE} 1500\n",
        encoding="ascii",
    )
    sentinel = RedisServer(binary, directory, port=port, command=[binary, str(file), "--sentinel"])
    stack.callback(sentinel.kill)
    sentinel.start()
    return sentinel


class Cluster:
    """Three masters with a third of the slots each, and a replica of the first."""

    def __init__(self, servers: list[RedisServer], tls: Tls | None) -> None:
        self.masters = servers[:3]
        self.replica = servers[3]
        self.address = ClusterAddress(_seeds(self.masters, tls))
        self.url = _url(self.address)

    @property
    def servers(self) -> list[RedisServer]:
        return [*self.masters, self.replica]

    def of_key(self, key: str) -> RedisServer:
        """The master that the cluster is made with for a key."""
        slot = self.masters[0].call("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)
        return self.masters[min(slot // (SLOTS // 3), 2)]

    def replica_has(self, key: str) -> object:
        """The value of a key that the replica has by now."""
        with contextlib.closing(redis.Redis("127.0.0.1", self.replica.port, protocol=2)) as client:
            client.execute_command("READONLY")  # type: ignore[no-untyped-call]
            return client.get(key)

    def node_id(self, server: RedisServer) -> str:
        reply = server.call("CLUSTER", "MYID")
        assert isinstance(reply, bytes)
        return reply.decode()

    def fail_over(self) -> None:
        """Have the replica take over from the first master, which lives on as its replica."""
        assert self.replica.call("CLUSTER", "FAILOVER") == b"OK"
        self.taken_over()

    def taken_over(self) -> None:
        """Wait until the replica is master."""
        until(lambda: _role(self.replica) == b"master", "a replica that took over")

    def move_slot(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move a slot, keys and all, as `redis-cli --cluster reshard` does."""
        self.begin_move(slot, source, target)
        self.end_move(slot, source, target)

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        assert target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source)) == b"OK"
        assert source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(target)) == b"OK"

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        assert isinstance(keys, list)
        for key in keys:
            assert source.call("MIGRATE", "127.0.0.1", target.port, key, 0, 5000) in {b"OK", b"NOKEY"}
        for server in (target, source):
            assert server.call("CLUSTER", "SETSLOT", slot, "NODE", self.node_id(target)) == b"OK"


@contextlib.contextmanager
def running_cluster(tls: Tls | None = None) -> Iterator[Cluster]:
    """Run a cluster of three masters and a replica that all know each other."""
    binary = program("redis-server")
    with contextlib.ExitStack() as stack:
        ports, bus = free_ports(8), ("--tls-cluster", "yes") if tls else ()
        servers = [
            _server(stack, binary, port, tls, *_CLUSTERED, "--cluster-port", str(bus_port), *bus)
            for port, bus_port in zip(ports[:4], ports[4:], strict=True)
        ]
        for number, server in enumerate(servers):
            server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            first, last = number * (SLOTS // 3), SLOTS - 1 if number == 2 else (number + 1) * (SLOTS // 3) - 1
            if number < 3:
                assert server.call("CLUSTER", "ADDSLOTSRANGE", first, last) == b"OK"
            for port, bus_port in zip(ports[:number], ports[4 : 4 + number], strict=True):
                server.call("CLUSTER", "MEET", "127.0.0.1", port, bus_port)
        until(lambda: all(b"cluster_known_nodes:4" in cluster_info(one) for one in servers), "nodes that met")
        cluster = Cluster(servers, tls)
        first_id = cluster.node_id(servers[0])
        until(lambda: servers[3].call("CLUSTER", "REPLICATE", first_id) == b"OK", "a replica")
        until(lambda: b"master_link_status:up" in servers[3].info("replication"), "a replica in step")
        until(lambda: all(b"cluster_state:ok" in cluster_info(one) for one in servers), "a cluster that is up")
        # Each has to have heard that the fourth is a replica, or it would be counted as a master without slots.
        until(lambda: all(b"slave" in _nodes(one) for one in servers), "nodes that know the replica")
        yield cluster


def cluster_info(server: RedisServer) -> bytes:
    reply = server.call("CLUSTER", "INFO")
    return reply if isinstance(reply, bytes) else b""


def _nodes(server: RedisServer) -> bytes:
    reply = server.call("CLUSTER", "NODES")
    return reply if isinstance(reply, bytes) else b""
