#!/usr/bin/env python3
"""Asks buf whether the .proto files still understand those of an earlier commit.

The earlier commit is $REMUDA_BREAKING_BASE, else what this work shares with origin/main, else (on main
itself, where that would be the tree being checked) the newest release's tag. Commits that were never
published bind nobody. A wanted break is written down in buf.yaml under `breaking.ignore_only`, with its
reason, until the commit that it breaks is no longer the baseline.
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
    shared = git("merge-base", "HEAD", "origin/main")
    if shared:
        published = shared.decode().strip()
        unchanged = git("diff", "--quiet", published, "--", f"protos/{SOURCES}") is not None
        if published != commit("HEAD") or not unchanged:
            return published
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*")
    return commit(tag.decode().strip()) if tag else None


def main() -> None:
    image = Path(sys.argv[1])
    base = baseline()
    archive = git("archive", base, f"protos/{SOURCES}") if base else None
    if archive is None:
        print("buf breaking: no published commit with .proto files, nothing to compare with", file=sys.stderr)
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
