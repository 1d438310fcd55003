"""Where etcd is and how to log in."""

import ipaddress
from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    """How to reach etcd. Certificates and key are PEM contents, not paths."""

    endpoints: tuple[str, ...]
    """`host:port` of every member. Several must be IP addresses of one family: gRPC resolves one name."""
    ca: bytes | None = None
    """Certificate authority of the members; giving it turns TLS on."""
    cert: bytes | None = None
    """This client's certificate, together with `key`."""
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    """Name that every member's certificate carries; the host of the first endpoint when None."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_seconds: float = 5.0
    """Bound of every call, attempts and log-in included."""
    silence_seconds: float = 15.0
    """A connection that answers no ping for about this long is given up. etcd ends those of clients that ping
    more often than every 5 s (--grpc-keepalive-min-time), so that 7.5 is the least without changing it."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("etcd: at least one endpoint is needed")
        if (self.cert is None) != (self.key is None):
            raise ValueError("etcd: a client certificate and its key go together")
        if self.cert is not None and self.ca is None:
            raise ValueError("etcd: a client certificate needs the members' CA as well")
        if (self.user is None) != (self.password is None):
            raise ValueError("etcd: user and password go together")
        if self.timeout_seconds <= 0:
            raise ValueError("etcd: timeout_seconds must be positive")
        self.target()

    def target(self) -> str:
        """The gRPC target for all members. Raises ValueError for endpoints that do not go together."""
        hosts = [_split(endpoint) for endpoint in self.endpoints]
        families = {_family(host) for host, _ in hosts}
        if families == {"name"} and len(hosts) == 1:
            return "dns:///" + self.endpoints[0]
        if len(families) != 1 or "name" in families:
            raise ValueError(f"etcd: several endpoints must be IP addresses of one family: {self.endpoints}")
        return f"{families.pop()}:" + ",".join(self.endpoints)

    def credentials(self) -> grpc.ChannelCredentials | None:
        if self.ca is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca, private_key=self.key, certificate_chain=self.cert
        )

    def channel_options(self) -> list[tuple[str, str | int]]:
        """Measured settings: one channel over all members, quick reconnects, silent peers noticed."""
        ping_ms = int(self.silence_seconds * 1000 / 3)
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
            # 1.5 MiB is etcd's limit for a request, not for an answer.
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.keepalive_time_ms", ping_ms * 2),
            ("grpc.keepalive_timeout_ms", ping_ms),
            # Without this one, gRPC core 1.85 did not notice a silent network in 45 s; with it, 7 to 15 s.
            ("grpc.http2.ping_timeout_ms", ping_ms),
            # Pings without calls are answered by etcd with GOAWAY too_many_pings.
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # A connection of its own for each channel: a keep-alive never waits behind a large list.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.ca is not None:
            # Several addresses have no name of their own to check certificates against.
            name = self.server_name or _split(self.endpoints[0])[0]
            options.append(("grpc.default_authority", name))
        return options


def _split(endpoint: str) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in endpoint:
        raise ValueError(f"etcd: endpoint {endpoint!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _family(host: str) -> str:
    try:
        return f"ipv{ipaddress.ip_address(host).version}"
    except ValueError:
        return "name"
