"""The ``remuda-bench`` command."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from remuda_lab.cluster import Cluster
from remuda_lab.errors import LabError
from remuda_lab.guest import ensure_guest_image
from remuda_lab.lab import Lab
from remuda_lab.layout import lab_paths
from remuda_lab.mesh import Mesh
from remuda_lab.tether import tether

from remuda_bench.images import figures as images_figures
from remuda_bench.images.figures import Section
from remuda_bench.images.launches import run_launches
from remuda_bench.images.report import report as images_report
from remuda_bench.images.rounds import run_transfers
from remuda_bench.images.snapshots import run_snapshots
from remuda_bench.images.transfers import MIB, Content
from remuda_bench.migration.figures import from_json, to_json
from remuda_bench.migration.plan import Kind
from remuda_bench.migration.report import report
from remuda_bench.migration.rounds import REST_SECONDS, Settings, run_bench

LAB = "bench"
RUNS = {Section.TRANSFERS: 6, Section.SNAPSHOTS: 5, Section.LAUNCHES: 5}

Tell = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run one verb, return the exit code: 0 done, 1 it could not, 2 usage."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.verb(arguments)
    except (LabError, OSError, ValueError) as error:
        print(f"remuda-bench: {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"remuda-bench: the api answered {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("remuda-bench: interrupted", file=sys.stderr)
        return 130
    return 0


def _migration(arguments: argparse.Namespace) -> None:
    kinds = tuple(Kind(name) for name in arguments.kinds.split(","))
    settings = Settings(runs=arguments.runs, kinds=kinds, rest_seconds=arguments.rest)
    tell = _teller()
    with _mesh(tell) as mesh:
        taken = to_json(run_bench(mesh, settings, tell=tell))
    if arguments.json:
        arguments.json.write_text(taken)
    # Of the rounded figures, so that the same tables come of the file.
    print(report(from_json(taken)))


def _images(arguments: argparse.Namespace) -> None:
    contents = tuple(Content(name) for name in arguments.contents.split(","))
    wanted = [Section(name) for name in arguments.only.split(",")]
    tell = _teller()
    kept = _kept(arguments.json)
    runs = {section: arguments.runs or RUNS[section] for section in Section}

    def keep(taken: images_figures.Figures) -> None:
        """At once, so that what fails later loses nothing."""
        nonlocal kept
        # Rounded, so that the same tables come of the file.
        kept = images_figures.from_json(images_figures.to_json(kept.updated(taken)))
        if arguments.json:
            arguments.json.write_text(images_figures.to_json(kept))

    if Section.TRANSFERS in wanted:
        transfers = run_transfers(runs[Section.TRANSFERS], arguments.mib * MIB, contents, tell=tell)
        keep(images_figures.Figures(transfers=transfers))
    if set(wanted) - {Section.TRANSFERS}:
        with _mesh(tell) as mesh:
            if Section.SNAPSHOTS in wanted:
                snapshots = run_snapshots(mesh, runs[Section.SNAPSHOTS], tell=tell)
                keep(images_figures.Figures(snapshots=snapshots))
            if Section.LAUNCHES in wanted:
                launches = run_launches(mesh, runs[Section.LAUNCHES], tell=tell)
                keep(images_figures.Figures(launches=launches))
    print(images_report(kept))


def _kept(file: Path | None) -> images_figures.Figures:
    """What was measured before. Raises ValueError for a file of another kind."""
    if file is None or not file.exists():
        return images_figures.Figures()
    return images_figures.from_json(file.read_text())


def _report(arguments: argparse.Namespace) -> None:
    text = arguments.json.read_text()
    try:
        print(report(from_json(text)))
    except ValueError:
        print(images_report(images_figures.from_json(text)))


def _teller() -> Tell:
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", file=sys.stderr, flush=True)

    return tell


@contextmanager
def _mesh(tell: Tell) -> Iterator[Mesh]:
    """A lab of its own, from nothing to nothing."""
    lab = Lab(lab_paths(LAB))
    if lab.is_up():
        raise LabError(f"lab {LAB} is up: another bench runs, or `remuda-lab --name {LAB} down` ends it")
    cluster = Cluster(lab)
    with ExitStack() as stack:
        end = stack.enter_context(tether())
        stack.callback(lambda: lab.down() if lab.is_up() else None)
        tell("the mesh: etcd, api, two schedulers, image-store, three hosts")
        cluster.up(tether=end, tell=tell)
        # It asks every service for its metrics each second, which is no part of what is measured.
        lab.fabric().units.stop("prometheus")
        channel = stack.enter_context(cluster.client.channel())
        mesh = Mesh(cluster=cluster, image=ensure_guest_image(), channel=channel)
        mesh.upload_image()
        yield mesh


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="remuda-bench", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    migration = verbs.add_parser("migration", help="live migration beside plain virsh migrate (as root)")
    migration.add_argument("--runs", type=_positive, default=7, help="counted ones, of each kind")
    migration.add_argument("--kinds", default="block,shared", help="which, and in which order")
    migration.add_argument(
        "--rest",
        type=float,
        default=REST_SECONDS,
        help="seconds from a round's end to the next in its direction",
    )
    migration.add_argument("--json", type=Path, help="where the raw figures go")
    migration.set_defaults(verb=_migration)

    images = verbs.add_parser("images", help="transfers, snapshots and launches beside the raw tools")
    images.add_argument(
        "--only", default=",".join(Section), help="which; all but transfers bring up a lab (as root)"
    )
    images.add_argument("--runs", type=_positive, help="counted ones; else as many as a section is worth")
    images.add_argument("--mib", type=_positive, default=1024, help="size of the disk that is transferred")
    images.add_argument("--contents", default=",".join(Content), help="of transfers, in which order")
    images.add_argument("--json", type=Path, help="where the raw figures go, into their sections of it")
    images.set_defaults(verb=_images)

    again = verbs.add_parser("report", help="the tables of figures that were taken before")
    again.add_argument("json", type=Path)
    again.set_defaults(verb=_report)
    return parser


if __name__ == "__main__":
    sys.exit(main())
