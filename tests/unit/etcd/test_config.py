"""Which configurations make sense, and what gRPC is told."""

from typing import Any

import pytest
from remuda_core.etcd.client import EtcdConfig


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        (("127.0.0.1:2379",), "ipv4:127.0.0.1:2379"),
        (("10.0.0.1:2379", "10.0.0.2:2379"), "ipv4:10.0.0.1:2379,10.0.0.2:2379"),
        (("[::1]:2379", "[fd00::2]:2379"), "ipv6:[::1]:2379,[fd00::2]:2379"),
        (("etcd.example:2379",), "dns:///etcd.example:2379"),
    ],
)
def test_all_endpoints_become_one_target(endpoints: tuple[str, ...], target: str) -> None:
    assert EtcdConfig(endpoints=endpoints).target() == target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": ()}, "at least one"),
        ({"endpoints": ("127.0.0.1",)}, "not host:port"),
        ({"endpoints": ("http://127.0.0.1:2379",)}, "not host:port"),
        ({"endpoints": ("127.0.0.1:2379", "[::1]:2379")}, "one family"),
        ({"endpoints": ("a.example:2379", "b.example:2379")}, "one family"),
        ({"cert": b"x"}, "go together"),
        ({"cert": b"x", "key": b"y"}, "CA"),
        ({"user": "api"}, "user and password"),
        ({"timeout_seconds": 0}, "positive"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EtcdConfig(**{"endpoints": ("127.0.0.1:2379",), **changes})


def test_with_tls_the_certificate_is_checked_against_one_name() -> None:
    plain = EtcdConfig(endpoints=("10.0.0.1:2379",))
    assert "grpc.default_authority" not in dict(plain.channel_options())
    of_the_host = EtcdConfig(endpoints=("10.0.0.1:2379", "10.0.0.2:2379"), ca=b"pem")
    assert dict(of_the_host.channel_options())["grpc.default_authority"] == "10.0.0.1"
    named = EtcdConfig(endpoints=("10.0.0.1:2379",), ca=b"pem", server_name="etcd.internal")
    assert dict(named.channel_options())["grpc.default_authority"] == "etcd.internal"


def test_pings_are_no_more_frequent_than_etcd_allows() -> None:
    options = dict(EtcdConfig(endpoints=("10.0.0.1:2379",)).channel_options())
    assert int(options["grpc.keepalive_time_ms"]) >= 5_000
    assert options["grpc.keepalive_permit_without_calls"] == 0
    # gRPC core gives up by the longer of these two.
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"] == 5_000


def test_secrets_do_not_show_in_its_text() -> None:
    text = repr(
        EtcdConfig(endpoints=("h:1",), user="api", password="hidden", ca=b"a", cert=b"b", key=b"hush")
    )
    assert "hidden" not in text
    assert "hush" not in text
