"""Channels to other services. Deadlines and request ids are passed per call: see context.outgoing."""

import json
from collections.abc import Iterable

import grpc

from remuda_core.auth.identity import INSECURE_IDENTITY
from remuda_core.auth.policy import POLICY
from remuda_core.rpc.tls import Tls, channel_credentials, is_local

MAX_MESSAGE_BYTES = 64 << 20
MAX_METADATA_BYTES = 64 << 10
"""gRPC's own limit is 8 KiB. Our errors keep to it (see clipping); callers' tokens and traces need not."""

# Rpcs that change nothing; repeated by the channel while the other side cannot be reached. A stream is
# repeated only as long as nothing of it has arrived.
_READS = ("Get", "List", "Explain", "Observe")


def open_channel(
    target: str, tls: Tls | None, *, server_name: str = "", insecure_identity: str = ""
) -> grpc.aio.Channel:
    """A long-lived channel; close it, or use it as an async context manager.

    `target` is host:port or a gRPC target with several addresses, which are then tried in turn.
    `server_name`: name in the other side's certificate, when the target does not say it.
    `insecure_identity`: who we are where there is no TLS (`service/api`, `user/alice;admin`).
    Raises ValueError when `tls` is None and the target is not on this machine.
    """
    options: list[tuple[str, str | int]] = [*_OPTIONS, ("grpc.service_config", _service_config())]
    if tls is not None:
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        return grpc.aio.secure_channel(target, channel_credentials(tls), options=options)
    if not all(is_local(address) for address in _addresses(target)):
        raise ValueError(f"{target}: without TLS only this machine can be called")
    if insecure_identity:
        options.append(("grpc.primary_user_agent", f"{INSECURE_IDENTITY}{insecure_identity}"))
    return grpc.aio.insecure_channel(target, options=options)


_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    # A peer that vanished without a word is noticed within 15 s. Our servers allow these pings.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A connection of its own per channel: closing one never disturbs another.
    ("grpc.use_local_subchannel_pool", 1),
)


def _service_config() -> str:
    reads = [row.strip("/").split("/") for row in POLICY if row.rpartition("/")[2].startswith(_READS)]
    return json.dumps(
        {
            "methodConfig": [
                {
                    "name": [{"service": service, "method": method} for service, method in reads],
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.1s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ]
        }
    )


def _addresses(target: str) -> Iterable[str]:
    if target.startswith(("unix:", "unix-abstract:")):
        return [target]
    return target.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:").split(",")
