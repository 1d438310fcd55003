"""What a disturbed migration has left on hosts and in etcd, beside the one guest that there should be."""

from __future__ import annotations

from remuda_lab.lab import Lab
from remuda_lab.mesh import Guest, Mesh

OPEN_WORK = ("claims/", "journals/", "cancels/", "debts/")
"""Key prefixes that are empty when no operation runs and nothing is owed. Reservations are in journals."""


def leftovers(mesh: Mesh, guest: Guest, at: str, before: dict[str, frozenset[str]]) -> list[str]:
    """Sentences. ``at``: the host that has the guest; ``before``: `footprints` from before the migration."""
    found = [key for prefix in OPEN_WORK for key in mesh.etcd(prefix)]
    found += [f"{len(mesh.etcd('ports/'))} ports"] if len(mesh.etcd("ports/")) != 1 else []
    for host in mesh.lab.running_hosts():
        domains = mesh.domains(host)
        if set(domains) != ({guest.uid} if host == at else set()):
            found.append(f"{host}: domains {domains}")
        pids = mesh.lab.host(host).qemu_pids()
        if len(pids) > (host == at):
            found.append(f"{host}: {len(pids)} QEMUs")
        directories = {path.name for path in mesh.directory(host, "").iterdir()}
        if directories != ({guest.uid} if host == at else set()):
            found.append(f"{host}: directories {directories}")
        now = footprint(mesh.lab, host)
        found += [f"{host}: {one}" for one in sorted(now - before.get(host, now))]
    return found


def footprints(lab: Lab) -> dict[str, frozenset[str]]:
    """Of every host that runs."""
    return {host: footprint(lab, host) for host in lab.running_hosts()}


def footprint(lab: Lab, host: str) -> frozenset[str]:
    """Listening sockets, and files that the agent keeps for itself."""
    listening = lab.host(host).run(["ss", "-Hltn"]).splitlines()
    sockets = {f"listens on {line.split()[3]}" for line in listening if line.strip()}
    state = lab.paths.host(host).state
    kept = {f"keeps {path.relative_to(state)}" for path in state.rglob("*") if path.is_file()}
    # The newest leader: kept for ever, from the first order on.
    return frozenset(sockets | (kept - {"keeps leader"}))
