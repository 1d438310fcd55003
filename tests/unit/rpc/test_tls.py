"""What may go without TLS, and what TLS needs."""

import pytest
from remuda_core.rpc.tls import Tls, is_local, server_credentials


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:7443", True),
        ("127.9.9.9:1", True),
        ("[::1]:7443", True),
        ("localhost:0", True),
        ("unix:/run/remuda.sock", True),
        ("0.0.0.0:7443", False),
        ("[::]:7443", False),
        ("10.77.0.1:7443", False),
        ("localhost.example.org:1", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_local(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_a_server_needs_a_certificate() -> None:
    with pytest.raises(ValueError, match="needs a certificate"):
        server_credentials(Tls(ca=b"ca"), client_certificate=True)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Tls(ca=b"ca", cert=b"cert", key=b"secret"))
