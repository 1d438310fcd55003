"""Where settings come from, and what is said when they are wrong."""

from pathlib import Path

import pytest
from pydantic import Field
from remuda_core.config import (
    ConfigError,
    EtcdSettings,
    Section,
    ServiceSettings,
    TlsSettings,
    load,
    load_or_exit,
)


class Pool(Section):
    name: str
    shared: bool = False


class Demo(ServiceSettings):
    etcd: EtcdSettings = Field(default_factory=EtcdSettings)
    pools: tuple[Pool, ...] = ()
    bridges: dict[str, str] = Field(default_factory=dict)
    ttl_seconds: float = Field(default=5.0, gt=0)


FILE = """
listen = "127.0.0.1:1"
log_level = "debug"
ttl_seconds = 7
[etcd]
endpoints = ["10.0.0.1:2379"]
user = "file"
[bridges]
lan = "br0"
[[pools]]
name = "local"
[[pools]]
name = "nfs"
shared = true
"""


def demo(tmp_path: Path, *argv: str, env: dict[str, str] | None = None, text: str = FILE) -> Demo:
    path = tmp_path / "demo.toml"
    path.write_text(text)
    return load(Demo, ["--config", str(path), *argv], "REMUDA_DEMO__", environ=env or {})


def test_the_file_goes_over_the_defaults(tmp_path: Path) -> None:
    settings = demo(tmp_path)
    assert (settings.listen, settings.log_level, settings.drain_seconds) == ("127.0.0.1:1", "debug", 10.0)
    assert settings.pools == (Pool(name="local"), Pool(name="nfs", shared=True))
    assert settings.bridges == {"lan": "br0"}
    assert settings.tls is None


def test_the_environment_goes_over_the_file_key_by_key(tmp_path: Path) -> None:
    env = {"REMUDA_DEMO__ETCD__USER": "env", "REMUDA_DEMO__TTL_SECONDS": "8", "ETCD__USER": "not ours"}
    settings = demo(tmp_path, env=env)
    assert (settings.etcd.user, settings.etcd.endpoints) == ("env", ("10.0.0.1:2379",))
    assert settings.ttl_seconds == 8.0


def test_flags_go_over_everything(tmp_path: Path) -> None:
    settings = demo(
        tmp_path,
        "--etcd.user=flag",
        '--etcd.endpoints=["10.0.0.9:2379"]',
        "--ttl_seconds=9",
        env={"REMUDA_DEMO__ETCD__USER": "env"},
    )
    assert (settings.etcd.user, settings.etcd.endpoints, settings.ttl_seconds) == (
        "flag",
        ("10.0.0.9:2379",),
        9.0,
    )


def test_words_of_a_flag_may_be_joined_by_hyphens_and_its_value_stays_as_it_is(tmp_path: Path) -> None:
    assert demo(tmp_path, "--ttl-seconds=9").ttl_seconds == 9.0
    assert demo(tmp_path, "--log-level", "info").log_level == "info"
    assert demo(tmp_path, "--etcd.user=a-b").etcd.user == "a-b"


def test_without_a_file_environment_and_flags_suffice() -> None:
    settings = load(Demo, ["--listen=127.0.0.1:0"], "REMUDA_DEMO__", environ={})
    assert settings.listen == "127.0.0.1:0"


def test_constructing_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "error")
    assert Demo(listen="127.0.0.1:0").log_level == "info"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "listen: field required"),
        ('listen = "a:1"\nlisten_on = 1', "listen_on: extra inputs are not permitted"),
        ('listen = "a:1"\n[etcd]\nprefx = "/"', "etcd.prefx: extra inputs"),
        ('listen = "a:1"\nttl_seconds = -1', "ttl_seconds: input should be greater than 0"),
        ('listen = "a:1"\n[[pools]]\nshared = true', "pools.0.name: field required"),
        ("listen = ", "demo.toml: Invalid value"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        demo(tmp_path, text=text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_malformed_flags_are_mistakes(tmp_path: Path) -> None:
    for flag in ("--no-such-flag=1", "--ttl_seconds=soon", "--etcd.endpoints=["):
        with pytest.raises(ConfigError):
            demo(tmp_path, flag)


def test_a_mistake_ends_a_main_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_or_exit(Demo, ["--config", "/nonexistent.toml"], "REMUDA_DEMO__")
    assert caught.value.code == 2
    assert "/nonexistent.toml" in capsys.readouterr().err


def test_pem_files_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    tls = TlsSettings(ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key").read()
    assert (tls.ca, tls.cert, tls.key) == (b"ca", b"cert", b"key")
    with pytest.raises(ConfigError, match="absent"):
        TlsSettings(ca=tmp_path / "absent").read()
    with pytest.raises(ConfigError, match="go together"):
        TlsSettings(ca=tmp_path / "ca", cert=tmp_path / "cert").read()


def test_etcd_settings_become_the_clients_configuration() -> None:
    config = EtcdSettings(endpoints=("10.0.0.1:2379",), user="api", password="p").client_config()
    assert (config.endpoints, config.user, config.timeout_seconds) == (("10.0.0.1:2379",), "api", 5.0)
    with pytest.raises(ConfigError, match="user and password"):
        EtcdSettings(user="api").client_config()
    with pytest.raises(ValueError, match="prefix"):
        EtcdSettings(prefix="remuda")
