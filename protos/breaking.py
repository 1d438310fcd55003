#!/usr/bin/env python3
"""Asks buf whether the .proto files still understand those of an earlier commit.

The earlier commit is $REMUDA_BREAKING_BASE, else the newest commit that this work shares with origin/main
and that is not the very tree being checked. A wanted break (before a release) is written down in buf.yaml
under `breaking.ignore_only`, with its reason.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from generate import PROTOS, SOURCES, build_image

ROOT = PROTOS.parent


def git(*arguments: str) -> bytes | None:
    """Output of a git command, or None when it fails (no repository, no such commit)."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def commit(name: str) -> str | None:
    found = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return found.decode().strip() if found else None


def baseline() -> str | None:
    """The commit to compare with, None when there is none."""
    if wanted := os.environ.get("REMUDA_BREAKING_BASE"):
        return commit(wanted) or sys.exit(f"REMUDA_BREAKING_BASE={wanted} is no commit of this repository")
    head = commit("HEAD")
    if head is None:
        return None
    shared = git("merge-base", "HEAD", "origin/main")
    base = shared.decode().strip() if shared else head
    # On main itself, or in a clone of it, HEAD is what is being checked: look one commit back, unless
    # the work tree differs from HEAD.
    if base == head and git("diff", "--quiet", "HEAD", "--", f"protos/{SOURCES}") is not None:
        return commit("HEAD^")
    return base


def main() -> None:
    image = Path(sys.argv[1])
    base = baseline()
    archive = git("archive", base, f"protos/{SOURCES}") if base else None
    if archive is None:
        print("buf breaking: no earlier commit with .proto files, nothing to compare with", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["tar", "-x", "-C", scratch], input=archive, check=True)
        against = Path(scratch) / "base.binpb"
        build_image(Path(scratch) / "protos", against)
        buf = str(Path(sys.executable).with_name("buf"))
        options = ["--against", str(against), "--config", str(ROOT / "buf.yaml"), "--exclude-imports"]
        code = subprocess.run([buf, "breaking", str(image), *options], check=False).returncode
    if code:
        sys.exit(f"the .proto files break those of {base}: add instead of changing (see above)")
    print(f"buf breaking: compatible with {base}", file=sys.stderr)


if __name__ == "__main__":
    main()
