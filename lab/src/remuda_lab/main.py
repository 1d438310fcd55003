"""The ``remuda-lab`` command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import tomllib
from collections.abc import Sequence

from remuda_lab.cluster import Cluster
from remuda_lab.errors import LabError
from remuda_lab.guest import ensure_guest_image
from remuda_lab.kvm import probe_kvm
from remuda_lab.lab import Lab
from remuda_lab.layout import lab_paths
from remuda_lab.state import load_state
from remuda_lab.units import UnitStatus

DEFAULT_LAB = "default"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run one verb, return the exit code: 0 done, 1 the lab could not, 2 usage."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.verb(arguments) or 0)
    except LabError as error:
        print(f"remuda-lab: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # A full disk, a file of somebody else: the path in it says where to look.
        print(f"remuda-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("remuda-lab: interrupted", file=sys.stderr)
        return 130


def _lab(arguments: argparse.Namespace) -> Lab:
    return Lab(lab_paths(arguments.name))


def _up(arguments: argparse.Namespace) -> None:
    lab = _lab(arguments)
    started = time.monotonic()
    if arguments.bare:
        lab.up(hosts=arguments.hosts, tcp=arguments.tcp)
        lines = [_command(lab, "exec host1 -- virsh list --all")]
    else:
        cluster = Cluster(lab)
        cluster.up(
            hosts=arguments.hosts,
            tcp=arguments.tcp,
            port=arguments.port,
            tell=lambda line: print(line, flush=True),
        )
        lines = cluster.client.how_to()
    names = ", ".join(lab.running_hosts())
    print(f"lab {lab.paths.name} is up after {time.monotonic() - started:.1f} s: {names}")
    if port := load_state(lab.paths).forwards.get("prometheus"):
        print(f"Prometheus is at http://127.0.0.1:{port}; talk to the api with:")
    lines += [_command(lab, "status"), _command(lab, "down")]
    print("\n".join(f"  {line}" for line in lines))


def _command(lab: Lab, words: str) -> str:
    name = "" if lab.paths.name == DEFAULT_LAB else f"--name {lab.paths.name} "
    return f"remuda-lab {name}{words}"


def _down(arguments: argparse.Namespace) -> None:
    lab = _lab(arguments)
    if arguments.force:
        lab.paths.state.unlink(missing_ok=True)
    lab.down(keep_files=arguments.keep_files)
    print(f"lab {lab.paths.name} is down: no process, namespace or mount is left")


def _status(arguments: argparse.Namespace) -> int:
    lab = _lab(arguments)
    if not lab.is_up():
        print(f"lab {lab.paths.name} is down")
        return 1
    running = lab.running_hosts()
    print(f"lab {lab.paths.name} in {lab.paths.root}")
    _print_units("fabric", lab.fabric().units.status(), hide={plan.name for plan in lab.plans()})
    for plan in lab.plans():
        if plan.name in running:
            host = lab.host(plan.name)
            print(f"{plan.name} {plan.address} {plan.uuid}, {len(host.qemu_pids())} guests")
            _print_units(plan.name, host.units.status())
        else:
            print(f"{plan.name} {plan.address} {plan.uuid} is powered off")
    for service, port in load_state(lab.paths).forwards.items():
        print(f"127.0.0.1:{port} reaches {service}")
    return 0


def _print_units(where: str, units: dict[str, UnitStatus], hide: set[str] | None = None) -> None:
    for name, unit in sorted(units.items()):
        if name in (hide or set()):
            continue
        now = f"pid {unit.pid}" if unit.pid is not None else f"down (status {unit.status})"
        print(f"  {where}/{name}: {now}, started {unit.starts} times, log {unit.log}")


def _exec(arguments: argparse.Namespace) -> None:
    command = [word for n, word in enumerate(arguments.command) if n or word != "--"]
    if not command:
        raise LabError("exec needs a command: remuda-lab exec host1 -- virsh list")
    argv = _lab(arguments).command(arguments.where, command)
    sys.stdout.flush()
    os.execv(argv[0], argv)  # noqa: S606 - a list built here, no shell


def _power_fail(arguments: argparse.Namespace) -> None:
    _lab(arguments).power_fail(arguments.host)
    print(f"{arguments.host} lost power")


def _boot(arguments: argparse.Namespace) -> None:
    _lab(arguments).boot(arguments.host)
    print(f"{arguments.host} is up, its libvirtd answers")


def _cut(arguments: argparse.Namespace) -> None:
    _lab(arguments).cut(arguments.host, guests=arguments.guests)
    print(f"{arguments.host} is cut off; `remuda-lab heal {arguments.host}` plugs it in again")


def _heal(arguments: argparse.Namespace) -> None:
    _lab(arguments).heal(arguments.host)
    print(f"{arguments.host} is plugged in")


def _shape(arguments: argparse.Namespace) -> None:
    _lab(arguments).shape(arguments.host, arguments.mbit or None)
    limit = f"{arguments.mbit} Mbit/s" if arguments.mbit else "no limit"
    print(f"{arguments.host} sends with {limit} on the management network")


def _kill(arguments: argparse.Namespace) -> None:
    number = signal.Signals[f"SIG{arguments.signal.upper().removeprefix('SIG')}"]
    _lab(arguments).send_signal(arguments.where, arguments.unit, number)
    print(f"{number.name} to {arguments.where}/{arguments.unit}")


def _restart(arguments: argparse.Namespace) -> None:
    cluster = Cluster(_lab(arguments))
    if cluster.is_running(arguments.service):
        cluster.kill(arguments.service)
    cluster.start(arguments.service)
    print(f"{arguments.service} runs, as pid {cluster.pid(arguments.service).pid}")


def _facts(arguments: argparse.Namespace) -> None:
    try:
        facts = tomllib.loads("\n".join(arguments.facts))
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"facts are KEY=VALUE, a value as in TOML: {error}") from error
    Cluster(_lab(arguments)).override_facts(arguments.host, facts)
    told = ", ".join(facts) or "nothing"
    print(f"{arguments.host} runs its agent with {told} overridden")


def _demo(_: argparse.Namespace) -> None:
    # Imported here: the other verbs do without gRPC's start-up time.
    from remuda_lab.demo import run_demo

    run_demo()


def _guest_image(_: argparse.Namespace) -> None:
    image = ensure_guest_image(tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(image.qcow2)


def _probe_kvm(_: argparse.Namespace) -> int:
    probe = probe_kvm(ensure_guest_image(tell=lambda line: print(line, file=sys.stderr, flush=True)))
    print(f"{'KVM' if probe.usable else 'TCG'}: {probe.reason}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="remuda-lab", description="A whole cluster on one machine.")
    parser.add_argument("--name", default=DEFAULT_LAB, help="which lab; several may run at once")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    up = verbs.add_parser("up", help="start the lab")
    up.add_argument("--hosts", type=int, default=3)
    up.add_argument("--bare", action="store_true", help="hosts with libvirt only, no service of Remuda")
    up.add_argument("--port", type=int, default=0, help="of the api on 127.0.0.1; 0 for any free one")
    up.add_argument(
        "--tcp", action="store_true", help="libvirt listens on plain TCP too, without authentication"
    )
    up.set_defaults(verb=_up)

    down = verbs.add_parser("down", help="end the lab and prove that nothing is left")
    down.add_argument("--keep-files", action="store_true", help="leave logs and disks in the lab's directory")
    down.add_argument(
        "--force", action="store_true", help="forget a damaged record; processes are found by name"
    )
    down.set_defaults(verb=_down)

    verbs.add_parser("status", help="what runs, with pids and logs").set_defaults(verb=_status)

    execute = verbs.add_parser("exec", help="run a command in the fabric or in a host")
    execute.add_argument("where", help="fabric, host1, host2, ...")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    execute.set_defaults(verb=_exec)

    for name, verb, text in (
        ("power-fail", _power_fail, "pull a host's plug"),
        ("boot", _boot, "power a host on again"),
        ("heal", _heal, "plug a host's cables in again"),
    ):
        one = verbs.add_parser(name, help=text)
        one.add_argument("host")
        one.set_defaults(verb=verb)

    cut = verbs.add_parser("cut", help="unplug a host's management cable")
    cut.add_argument("host")
    cut.add_argument("--guests", action="store_true", help="the guests' cable too")
    cut.set_defaults(verb=_cut)

    shape = verbs.add_parser("shape", help="limit what a host sends on the management network")
    shape.add_argument("host")
    shape.add_argument("mbit", type=int, help="Mbit/s; 0 for no limit")
    shape.set_defaults(verb=_shape)

    kill = verbs.add_parser("kill", help="send a signal to a service, or to a host's libvirtd, agent or qemu")
    kill.add_argument("where", help="fabric, host1, host2, ...")
    kill.add_argument("unit", help="a unit of `status`, qemu, or qemu:DOMAIN")
    kill.add_argument("--signal", default="KILL", choices=["KILL", "TERM", "STOP", "CONT"])
    kill.set_defaults(verb=_kill)

    restart = verbs.add_parser("restart", help="start a service or an agent again, with SIGKILL if it runs")
    restart.add_argument(
        "service", help="api, scheduler-1, scheduler-2, image-store, or a host for its agent"
    )
    restart.set_defaults(verb=_restart)

    facts = verbs.add_parser(
        "facts", help="let a host tell other facts, see remuda_agent.overrides; none: the truth again"
    )
    facts.add_argument("host")
    facts.add_argument("facts", nargs="*", metavar="KEY=VALUE", help="e.g. libvirt_version=8000000")
    facts.set_defaults(verb=_facts)

    verbs.add_parser("demo", help="the whole mesh from nothing to nothing; two guests move").set_defaults(
        verb=_demo
    )
    verbs.add_parser("guest-image", help="build the guest, print its path").set_defaults(verb=_guest_image)
    verbs.add_parser("probe-kvm", help="run a throw-away guest with KVM").set_defaults(verb=_probe_kvm)
    return parser


if __name__ == "__main__":
    sys.exit(main())
