"""Credentials for servers and channels. Certificates and keys are PEM contents, not paths."""

import ipaddress
from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """`ca` alone verifies the other side; with certificate and key we show who we are as well."""

    ca: bytes
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls: certificate and key go together")


def server_credentials(tls: Tls, *, client_certificate: bool) -> grpc.ServerCredentials:
    """`client_certificate`: every client must show one of our authority; otherwise none is asked for.

    gRPC's Python API has no third kind, "ask, but do not insist". Raises ValueError without our own
    certificate.
    """
    if tls.cert is None or tls.key is None:
        raise ValueError("tls: a server needs a certificate and its key")
    return grpc.ssl_server_credentials(
        [(tls.key, tls.cert)], root_certificates=tls.ca, require_client_auth=client_certificate
    )


def channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(tls.ca, private_key=tls.key, certificate_chain=tls.cert)


def is_local(address: str) -> bool:
    """Whether `host:port`, `unix:...` or `unix-abstract:...` can be reached from this machine only."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
