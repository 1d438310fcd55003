"""Plain HTTP to an address inside the fabric, from the machine."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import quote

from remuda_lab.errors import LabError
from remuda_lab.namespaces import connect_in_network
from remuda_lab.processes import ProcessRef


def get(init: ProcessRef, address: tuple[str, int], path: str, *, timeout: float = 5.0) -> bytes:
    """The body of a 200 answer. Raises LabError for anything else."""
    where = f"http://{address[0]}:{address[1]}{path}"
    try:
        connection = http.client.HTTPConnection(address[0])
        connection.sock = connect_in_network(init.pid, address, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Connection": "close", "Host": address[0]})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"{where}: {error!r}") from error
    if answer.status != http.client.OK:
        raise LabError(f"{where}: {answer.status} {body.decode(errors='replace').strip()}")
    return body


def query(
    init: ProcessRef, prometheus: tuple[str, int], expression: str
) -> list[tuple[dict[str, str], float]]:
    """An instant query to Prometheus: labels and value of each sample. Raises LabError."""
    body = get(init, prometheus, f"/api/v1/query?query={quote(expression)}")
    answer: dict[str, Any] = json.loads(body)
    if answer.get("status") != "success" or answer["data"]["resultType"] != "vector":
        raise LabError(f"Prometheus, {expression}: {body.decode(errors='replace')[:300]}")
    return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]
