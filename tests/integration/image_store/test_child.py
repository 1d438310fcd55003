"""A program on a file that nobody trusts stays within its limits."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from remuda_image_store.child import Limits, run

LIMITS = Limits(memory_bytes=1 << 30, cpu_seconds=20, file_bytes=1 << 20, seconds=20.0)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_its_output_is_kept_and_its_last_words_are_the_trouble() -> None:
    done = await run(python("import sys; print('out'); sys.exit('first\\nlast')"), LIMITS)
    assert (done.returncode, done.output, done.trouble) == (1, b"out\n", "last")


async def test_more_output_than_is_kept_does_not_block_it() -> None:
    done = await run(python("import sys; sys.stdout.write('x' * (3 << 20))"), LIMITS)
    assert (done.returncode, len(done.output)) == (0, 1 << 20)


@pytest.mark.parametrize(
    ("code", "limits", "trouble"),
    [
        ("x = bytearray(1 << 30)", replace(LIMITS, memory_bytes=256 << 20), "MemoryError"),
        ("while True: pass", replace(LIMITS, cpu_seconds=1), "too much CPU"),
        ("import time; time.sleep(60)", replace(LIMITS, seconds=0.3), "more than 0 s"),
    ],
    ids=["memory", "cpu", "time"],
)
async def test_a_limit_ends_it_and_is_named(code: str, limits: Limits, trouble: str) -> None:
    done = await run(python(code), limits)
    assert done.returncode != 0
    assert trouble in done.trouble


async def test_it_cannot_write_a_file_beyond_its_limit(tmp_path: Path) -> None:
    large = tmp_path / "large"
    done = await run(["dd", "if=/dev/zero", f"of={large}", "bs=64k", "count=64"], LIMITS)
    assert done.returncode != 0
    assert done.trouble == "it is larger than it says"
    assert large.stat().st_size <= 1 << 20


async def test_it_is_killed_for_the_reason_that_the_caller_finds() -> None:
    done = await run(python("import time; time.sleep(60)"), LIMITS, must_stop=lambda: "enough")
    assert done.trouble == "enough"


async def test_it_does_not_outlive_who_waits_for_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    task = asyncio.create_task(run(python(code), LIMITS))
    async with asyncio.timeout(60):
        while not (pid_file.exists() and pid_file.read_text()):
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
