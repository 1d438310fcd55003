#!/usr/bin/env python3
"""Fills the generated parts of the documents from the code that they describe.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`, where NAME is a key of RENDERERS.
`--check` changes nothing and fails when a part is not what the code says.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from remuda_bench.images import figures as images_figures
from remuda_bench.images.report import report as images_report
from remuda_bench.migration import figures as migration_figures
from remuda_bench.migration.report import report as migration_report
from remuda_cli.exit_codes import MEANINGS
from remuda_cli.main import build as command_line
from remuda_cli.verb import COMMON_OPTIONS
from remuda_core import lifecycle
from remuda_core.errors import REASONS
from remuda_lab.faults.table import read as read_faults
from remuda_lab.faults.table import render as render_faults

ROOT = Path(__file__).resolve().parents[1]
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# Field numbers in descriptor.proto, of which the paths in SourceCodeInfo consist.
FILE_SERVICE, SERVICE_METHOD = 6, 2


def first_sentence(comment: str) -> str:
    """A comment's first sentence on one line, safe inside a Markdown table."""
    text = " ".join(comment.split()).replace("|", "\\|")
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def signature(method: MethodDescriptorProto) -> str:
    request, response = (name.rpartition(".")[2] for name in (method.input_type, method.output_type))
    incoming = "stream " if method.client_streaming else ""
    outgoing = "stream " if method.server_streaming else ""
    return f"{incoming}{request} → {outgoing}{response}"


def services(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(location.path): location.leading_comments for location in file.source_code_info.location
    }
    for index, service in enumerate(file.service):
        yield f"\n### {file.package}.{service.name}\n"
        yield f"{' '.join(comments.get((FILE_SERVICE, index), '').split())}\n"
        yield "| rpc | messages | what it does |"
        yield "|---|---|---|"
        for number, method in enumerate(service.method):
            comment = comments.get((FILE_SERVICE, index, SERVICE_METHOD, number), "")
            yield f"| `{method.name}` | {signature(method)} | {first_sentence(comment)} |"


def api() -> str:
    """Every rpc of our own services, from the comments in the .proto files."""
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.binpb"
        subprocess.run([sys.executable, str(ROOT / "protos/generate.py"), "--image", str(image)], check=True)
        files = FileDescriptorSet.FromString(image.read_bytes()).file
    public = ("remuda.compute.", "remuda.image.")
    own = sorted(
        (file for file in files if file.package.startswith("remuda.")),
        key=lambda file: (not file.package.startswith(public), file.name),
    )
    lines = [line for file in own for line in services(file)]
    return "\n".join(lines) + "\n"


def errors() -> str:
    """Every reason with its status code and meaning."""
    rows = [
        f"| `{reason.value}` | {meaning.code.name} | {meaning.text} |"
        for reason, meaning in sorted(REASONS.items(), key=lambda row: row[0].value)
    ]
    return "\n".join(["| reason | code | meaning |", "|---|---|---|", *rows]) + "\n"


def states() -> str:
    """The table of actions and states."""
    rows = []
    for action, row in lifecycle.TABLE.items():
        rpc, _, kind = action.value.partition(":")
        allowed = [
            lifecycle.state_name(state) + ("*" if state in row.discard_memory else "")
            for state in lifecycle.STATES
            if state in row.allowed_from
        ]
        start = "every state" if len(allowed) == len(lifecycle.STATES) else ", ".join(allowed) or "none"
        already = ", ".join(lifecycle.state_name(s) for s in lifecycle.STATES if s in row.already_in)
        locked = row.while_locked.name.lower()
        rows.append(
            f"| `{rpc}` {kind}".rstrip() + f" | {start} | {row.afterwards} | {already or 'none'} | {locked} |"
        )
    head = [
        "| action | allowed from | afterwards | success without effect in | while locked |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def cli() -> str:
    """The options that every command takes, then every command with its own, from the parsers."""
    root: Any = typer.main.get_command(command_line())
    common = {parameter.name: parameter for parameter in root.params if parameter.name in COMMON_OPTIONS}
    lines = ["### Options of every command", "", *parameter_rows(list(common.values()))]
    for noun, group in root.commands.items():
        lines += ["", f"### remuda {noun}", "", f"{group.help or ''}".strip()]
        for verb, command in group.commands.items():
            arguments = [p for p in command.params if p.param_type_name == "argument"]
            words = " ".join(p.metavar or p.name.upper() for p in arguments)
            lines += [
                "",
                f"#### `remuda {noun} {verb} {words}".rstrip() + "`",
                "",
                first_paragraph(command.help),
            ]
            own = [p for p in command.params if p.name not in common and p.name != "help"]
            lines += ["", *parameter_rows(own)] if own else []
    codes = [
        "| code | meaning |",
        "|---|---|",
        *(f"| {int(code)} | {text} |" for code, text in MEANINGS.items()),
    ]
    return "\n".join([*lines, "", "### Exit codes", "", *codes]) + "\n"


def first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def parameter_rows(parameters: Sequence[Any]) -> list[str]:
    """A Markdown table of options and arguments."""
    rows = ["| option | what |", "|---|---|"]
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            name = f"`{parameter.metavar or parameter.name.upper()}`"
        else:
            name = ", ".join(f"`{one}`" for one in (*parameter.opts, *parameter.secondary_opts))
        needed = " Required." if parameter.required and parameter.param_type_name == "option" else ""
        rows.append(f"| {name} | {(parameter.help or '').replace('|', chr(92) + '|')}{needed} |")
    return rows


def images() -> str:
    """What the last `make bench-images` measured."""
    taken = (ROOT / "docs/performance/images.json").read_text()
    return images_report(images_figures.from_json(taken))


def migration() -> str:
    """What the last `make bench-migration` measured."""
    taken = (ROOT / "docs/performance/migration.json").read_text()
    return migration_report(migration_figures.from_json(taken))


def reliability() -> str:
    """The fault table, from what `make reliability` recorded."""
    return render_faults(read_faults(ROOT / "docs/reliability.jsonl"))


RENDERERS: Mapping[str, Callable[[], str]] = {
    "api": api,
    "cli": cli,
    "errors": errors,
    "images": images,
    "migration": migration,
    "reliability": reliability,
    "states": states,
}


def rendered(text: str) -> str:
    """The document with its generated parts as they should be."""
    return PART.sub(lambda part: f"{part[1]}{RENDERERS[part[2]]()}{part[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail when a part is out of date"
    )
    check: bool = parser.parse_args().check
    stale = []
    for document in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        text = document.read_text()
        wanted = rendered(text)
        if wanted != text:
            stale.append(str(document.relative_to(ROOT)))
            if not check:
                document.write_text(wanted)
    if stale and check:
        sys.exit(f"out of date: {', '.join(stale)}: run `make docs` and commit the result")
    print(f"documents written: {', '.join(stale) or 'none, all up to date'}", file=sys.stderr)


if __name__ == "__main__":
    main()
