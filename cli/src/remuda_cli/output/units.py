"""Numbers for people. Binary units for bytes, the smallest honest unit for time."""

from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_bytes(count: int) -> str:
    """1536 -> `1.5 KiB`."""
    value = float(count)
    for unit in _UNITS[:-1]:
        # 1023.96 KiB would be rounded to 1024.0 KiB, which is 1.0 MiB.
        if abs(value) < 1023.95:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def human_rate(bytes_per_second: int) -> str:
    return f"{human_bytes(bytes_per_second)}/s"


def human_ms(milliseconds: float) -> str:
    """41 -> `41 ms`, 1400 -> `1.4 s`, 75000 -> `1 min 15 s`."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    return human_seconds(milliseconds / 1000)


def human_seconds(seconds: float) -> str:
    """1.44 -> `1.4 s`, 75 -> `1 min 15 s`, 90000 -> `1 d 1 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{seconds:.1f} s"


def human_age(moment: datetime, *, now: datetime | None = None) -> str:
    """How long ago, in one unit: `5s`, `3m`, `2h`, `4d`. A clock that is ahead of ours gives `0s`."""
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `1h30m`, `500ms` in seconds. Raises ValueError."""
    import re

    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d))+", text):
        raise ValueError(f"{text!r} is no duration; like 90s, 5m, 1h30m")
    sizes = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(n) * sizes[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text))


def parse_bytes(text: str) -> int:
    """`4096`, `512MiB`, `1.5 TiB`, `10G` (binary, as everywhere here). Raises ValueError."""
    import re

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(?:i?B)?|B)?", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is no size; like 500GiB, 1.5TiB, 4096")
    power: int = "KMGTP".index(found[2].upper()) + 1 if found[2] else 0
    return round(float(found[1]) * float(1024**power))
