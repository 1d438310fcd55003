"""remuda instance: what reads and follows."""

import sys
from typing import Annotated

import typer

from remuda_cli import completion
from remuda_cli.commands.arguments import InstanceArg, WatchOption
from remuda_cli.failure import usage
from remuda_cli.session import Session
from remuda_cli.verb import verb


def register(app: typer.Typer) -> None:
    verb(app, "list")(list_)
    verb(app, "watch")(watch)
    verb(app, "actions")(actions)
    verb(app, "events")(events)
    verb(app, "console-log")(console_log)


def list_(
    session: Session,
    state: Annotated[str, typer.Option("--state", help="Only these, e.g. running.")] = "",
    host: Annotated[
        str, typer.Option("--host", help="Only those that live there.", autocompletion=completion.hosts)
    ] = "",
    wanted: Annotated[
        str, typer.Option("--filter", help="""e.g. 'state = RUNNING AND labels.tier = "web"'""")
    ] = "",
    all_projects: Annotated[bool, typer.Option("--all-projects", help="All that you may see.")] = False,
    watch: WatchOption = False,
) -> None:
    """List instances."""
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve
    from remuda_cli.watching import watch_instances

    parent = "projects/-" if all_projects else session.gateway.project
    terms = [wanted] if wanted else []
    terms += [f"state = {state.upper()}"] if state else []
    terms += [f'host = "{resolve.host(session.gateway, host).name}"'] if host else []
    if watch:
        if terms:
            raise usage(
                "--watch shows every instance of the project: it takes no --state, --host or --filter"
            )
        watch_instances(session, parent=parent)
        return
    found = session.gateway.list_instances(parent=parent, wanted=" AND ".join(terms))
    session.show_all(instance_pb2.Instance, list(found))


def watch(
    session: Session,
    instance: Annotated[
        str,
        typer.Argument(metavar="[INSTANCE]", help="Only this one.", autocompletion=completion.instances),
    ] = "",
) -> None:
    """Print instances now, then every change as it happens, until Ctrl-C."""
    from remuda_cli import resolve
    from remuda_cli.watching import watch_instances

    only = resolve.instance(session.gateway, instance).uid if instance else ""
    watch_instances(session, parent=session.gateway.project, only=only)


def actions(session: Session, instance: InstanceArg) -> None:
    """Say what may be done with an instance now, and why not the rest."""
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    name = resolve.instance(gateway, instance).name
    answer = gateway.call(
        gateway.instances.ListAllowedActions, instance_pb2.ListAllowedActionsRequest(name=name)
    )
    session.show_all(instance_pb2.AllowedAction, list(answer.actions))


def events(
    session: Session,
    instance: InstanceArg,
    last: Annotated[int, typer.Option("--last", min=0, help="Only so many, the newest; 0: all.")] = 0,
) -> None:
    """Show the timeline of an instance, oldest first."""
    from remuda.compute.v1 import event_pb2, instance_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    parent = resolve.instance(gateway, instance).name
    answer = gateway.call(
        gateway.instances.ListInstanceEvents,
        instance_pb2.ListInstanceEventsRequest(parent=parent, page_size=last),
    )
    session.show_all(event_pb2.InstanceEvent, list(answer.events))


def console_log(
    session: Session,
    instance: InstanceArg,
    max_bytes: Annotated[int, typer.Option("--bytes", min=1, max=1 << 20, help="From the end.")] = 65536,
) -> None:
    """Print the tail of the serial console, byte for byte."""
    from remuda.compute.v1 import instance_pb2

    from remuda_cli import resolve

    gateway = session.gateway
    name = resolve.instance(gateway, instance).name
    answer = gateway.call(
        gateway.instances.GetConsoleOutput,
        instance_pb2.GetConsoleOutputRequest(name=name, max_bytes=max_bytes),
    )
    if not session.format.for_people:
        session.show(answer)
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(answer.output)
    sys.stdout.buffer.flush()
    if answer.truncated:
        session.note(f"only the last {len(answer.output)} bytes; --bytes for more")
