"""The compatibility check compares with the right commit and refuses what old replicas cannot read."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

OLD = 'syntax = "proto3";\npackage remuda.sample.v1;\nmessage Thing {\n  string a = 1;\n  string b = 2;\n}\n'
GROWN = OLD.replace("}", "  string c = 3;\n}")
SHRUNK = OLD.replace("  string b = 2;\n", "")

Git = Callable[..., None]


@pytest.fixture
def repository(root: Path, tmp_path: Path) -> Path:
    (tmp_path / "protos").mkdir()
    for name in ("generate.py", "breaking.py"):
        shutil.copy(root / "protos" / name, tmp_path / "protos")
    shutil.copy(root / "buf.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def git(repository: Path) -> Git:
    def run(*arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)

    run("init", "--initial-branch=main")
    return run


def write(repository: Path, text: str) -> None:
    source = repository / "protos/remuda/sample/v1/sample.proto"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text(text)


def check(repository: Path, base: str | None = None) -> subprocess.CompletedProcess[str]:
    image = repository / "image.binpb"
    subprocess.run([sys.executable, "protos/generate.py", "--image", str(image)], cwd=repository, check=True)
    inherited = {name: value for name, value in os.environ.items() if name != "REMUDA_BREAKING_BASE"}
    return subprocess.run(
        [sys.executable, "protos/breaking.py", str(image)],
        cwd=repository,
        env=inherited | ({"REMUDA_BREAKING_BASE": base} if base else {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_repository_without_a_commit_passes_and_says_so(repository: Path, git: Git) -> None:
    write(repository, OLD)
    done = check(repository)
    assert done.returncode == 0
    assert "nothing to compare with" in done.stderr


def publish(git: Git) -> None:
    """What `git push` leaves behind in the pushing repository."""
    git("update-ref", "refs/remotes/origin/main", "HEAD")


def save(repository: Path, git: Git, text: str) -> None:
    write(repository, text)
    git("add", "protos")
    git("commit", "-m", "sample")


def test_commits_that_were_never_published_bind_nobody(repository: Path, git: Git) -> None:
    save(repository, git, OLD)
    write(repository, SHRUNK)
    assert check(repository).returncode == 0


def test_an_added_field_passes_and_a_removed_one_does_not(repository: Path, git: Git) -> None:
    save(repository, git, OLD)
    publish(git)
    write(repository, GROWN)
    assert check(repository).returncode == 0
    write(repository, SHRUNK)
    done = check(repository)
    assert done.returncode != 0
    assert '"2" with name "b" on message "Thing" was deleted' in done.stdout
    assert "add instead of changing" in done.stderr


def test_a_committed_break_is_found_against_what_is_published(repository: Path, git: Git) -> None:
    save(repository, git, OLD)
    publish(git)
    save(repository, git, SHRUNK)
    assert check(repository).returncode != 0


def test_a_clone_of_main_is_compared_with_the_newest_release(repository: Path, git: Git) -> None:
    save(repository, git, OLD)
    git("tag", "v1.0.0")
    save(repository, git, SHRUNK)
    publish(git)
    assert check(repository).returncode != 0


def test_a_named_base_is_used_and_a_wrong_one_refused(repository: Path, git: Git) -> None:
    save(repository, git, OLD)
    save(repository, git, SHRUNK)
    assert check(repository, "HEAD").returncode == 0
    assert check(repository, "HEAD^").returncode != 0
    done = check(repository, "nowhere")
    assert done.returncode == 1
    assert "nowhere is no commit" in done.stderr
