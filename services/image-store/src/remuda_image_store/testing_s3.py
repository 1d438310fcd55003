"""For tests: moto's S3 in a process of its own, and the variables with which a bucket in it is reached."""

import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remuda_core.testing.etcd import free_ports
from remuda_core.testing.waiting import wait_for_sync

_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def make_bucket(self) -> str:
        """A backend's URL, inside a bucket of its own."""
        bucket = f"b{uuid.uuid4().hex}"
        url = f"http://127.0.0.1:{self.port}/{bucket}"
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=60):
            return f"s3://{bucket}/images"


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """Raises ChildProcessError, TimeoutError when it does not come up."""
    (port,) = free_ports(1)
    log = directory / "s3.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)

    def answers() -> bool:
        if process.poll() is not None:
            raise ChildProcessError(log.read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5) as answer:
            return bool(answer.status == 200)

    try:
        wait_for_sync(answers, timeout=_START_SECONDS, ignoring=(OSError,), last_status=log.read_text)
        yield S3Server(port=port)
    finally:
        process.kill()
        process.wait()
