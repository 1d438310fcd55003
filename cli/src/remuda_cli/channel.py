"""The synchronous channel of a command line: one call at a time, Ctrl-C between messages.

remuda_core.rpc is asyncio's, made for services; a command that waits in a plain loop needs none of it.
"""

import json
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from remuda_cli.failure import usage
from remuda_cli.settings import Connection

REQUEST_ID_KEY = "x-request-id"
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_RETRIES = 3

_RETRY = {
    "maxAttempts": MAX_RETRIES + 1,
    "initialBackoff": "0.3s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# Every mutation carries a request_id, so a call that is repeated has one effect. UploadImage is left out:
# where to go on is asked with GetUpload, never replayed from a buffer.
_SERVICE_CONFIG = {
    "methodConfig": [
        {"name": [{}], "retryPolicy": _RETRY},
        {"name": [{"service": "remuda.image.v1.ImageService", "method": "UploadImage"}]},
    ]
}


def open_channel(connection: Connection, *, debug: bool) -> grpc.Channel:
    """Dials lazily: a server that is away shows at the first call.

    Raises Failure (usage) when a PEM file cannot be read.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A watch that has to reconnect must not wait for gRPC's default of up to two minutes.
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.primary_user_agent", "remuda-cli"),
    ]
    if connection.plaintext:
        channel = grpc.insecure_channel(connection.target, options=options)
    else:
        if connection.server_name:
            options.append(("grpc.ssl_target_name_override", connection.server_name))
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_pem(connection.cacert),
            private_key=_pem(connection.key),
            certificate_chain=_pem(connection.cert),
        )
        channel = grpc.secure_channel(connection.target, credentials, options=options)
    return grpc.intercept_channel(channel, _Calls(connection, debug=debug))


def _pem(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise usage(f"cannot read {path}: {error.strerror}") from None


def curl_line(connection: Connection, method: str, request: Message | None) -> str:
    """The same call with an independent client. The token is left to the shell, so that none is printed."""
    scheme = "http" if connection.plaintext else "https"
    words = ["buf", "curl", "--protocol", "grpc"]
    words += ["--http2-prior-knowledge"] if connection.plaintext else []
    for option, value in (
        ("--cacert", connection.cacert),
        ("--cert", connection.cert),
        ("--key", connection.key),
        ("--servername", connection.server_name),
    ):
        words += [option, value] if value else []
    line = shlex.join(words)
    if connection.token:
        line += ' -H "authorization: Bearer $REMUDA_TOKEN"'
    body = "@-" if request is None else MessageToJson(request, indent=None)
    url = f"{scheme}://{connection.target}{method}"
    return f"{line} -d {shlex.quote(body)} {shlex.quote(url)}"


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _CallDetails(_Details, grpc.ClientCallDetails):
    pass


class _Calls(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token and a request id to every call; prints both forms of it with --debug."""

    def __init__(self, connection: Connection, *, debug: bool) -> None:
        self._connection = connection
        self._debug = debug

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return continuation(self._prepared(client_call_details, request), request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return continuation(self._prepared(client_call_details, request), request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Iterator[Any]
    ) -> Any:
        return continuation(self._prepared(client_call_details, None), request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Iterator[Any]
    ) -> Any:
        return continuation(self._prepared(client_call_details, None), request_iterator)

    def _prepared(self, details: Any, request: Message | None) -> _CallDetails:
        request_id = str(uuid.uuid4())
        metadata = [*(details.metadata or ()), (REQUEST_ID_KEY, request_id)]
        if self._connection.token:
            metadata.append(("authorization", f"Bearer {self._connection.token}"))
        if self._debug:
            print(f"debug: request id {request_id}", file=sys.stderr)
            print(f"debug: {curl_line(self._connection, details.method, request)}", file=sys.stderr)
        return _CallDetails(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
