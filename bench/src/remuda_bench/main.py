"""The ``remuda-bench`` command."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
from remuda_lab.cluster import Cluster
from remuda_lab.errors import LabError
from remuda_lab.guest import ensure_guest_image
from remuda_lab.lab import Lab
from remuda_lab.layout import lab_paths
from remuda_lab.mesh import Mesh
from remuda_lab.tether import tether

from remuda_bench.images.figures import from_json as images_from_json
from remuda_bench.images.figures import to_json as images_to_json
from remuda_bench.images.report import report as images_report
from remuda_bench.images.rounds import run_bench as run_images
from remuda_bench.images.transfers import MIB, Content
from remuda_bench.migration.figures import Figures, from_json, to_json
from remuda_bench.migration.plan import Kind
from remuda_bench.migration.report import report
from remuda_bench.migration.rounds import REST_SECONDS, Settings, run_bench

LAB = "bench"


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
    taken = to_json(_on_a_lab(settings))
    if arguments.json:
        arguments.json.write_text(taken)
    # Of the rounded figures, so that the same tables come of the file.
    print(report(from_json(taken)))


def _images(arguments: argparse.Namespace) -> None:
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", file=sys.stderr, flush=True)

    contents = tuple(Content(name) for name in arguments.contents.split(","))
    taken = images_to_json(run_images(arguments.runs, arguments.mib * MIB, contents, tell=tell))
    if arguments.json:
        arguments.json.write_text(taken)
    print(images_report(images_from_json(taken)))


def _report(arguments: argparse.Namespace) -> None:
    print(report(from_json(arguments.json.read_text())))


def _on_a_lab(settings: Settings) -> Figures:
    """A lab of its own, from nothing to nothing."""
    lab = Lab(lab_paths(LAB))
    if lab.is_up():
        raise LabError(f"lab {LAB} is up: another bench runs, or `remuda-lab --name {LAB} down` ends it")
    cluster, began = Cluster(lab), time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        end = stack.enter_context(tether())
        stack.callback(lambda: lab.down() if lab.is_up() else None)
        tell("the mesh: etcd, api, two schedulers, image-store, three hosts")
        cluster.up(tether=end, tell=tell)
        # It asks every service for its metrics each second, which is no part of what a migration costs.
        lab.fabric().units.stop("prometheus")
        channel = stack.enter_context(cluster.client.channel())
        mesh = Mesh(cluster=cluster, image=ensure_guest_image(), channel=channel)
        mesh.upload_image()
        return run_bench(mesh, settings, tell=tell)


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

    images = verbs.add_parser("images", help="image transfers beside a plain stream and cp")
    images.add_argument("--runs", type=_positive, default=6, help="counted ones, of each content")
    images.add_argument("--mib", type=_positive, default=1024, help="size of the disk")
    images.add_argument("--contents", default=",".join(Content), help="which, and in which order")
    images.add_argument("--json", type=Path, help="where the raw figures go")
    images.set_defaults(verb=_images)

    again = verbs.add_parser("report", help="the tables of figures that were taken before")
    again.add_argument("json", type=Path)
    again.set_defaults(verb=_report)
    return parser


if __name__ == "__main__":
    sys.exit(main())
