"""Numbers and foreign text as a person reads them: the same in the report, the live view and the log."""

import math

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def count(number: int) -> str:
    """`1,234,567`."""
    return f"{number:,}"


def size(number: float) -> str:
    """Bytes in decimal units with three significant digits: `12.3 MB`."""
    unit = 0
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number /= 1000
        unit += 1
    if unit == 0:
        return f"{number:.0f} B"
    return f"{number:.{max(0, 2 - int(math.log10(number)))}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 07 s`, `2 h 05 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def value(number: float) -> str:
    """A metric: three decimals where they say something, otherwise three significant digits."""
    if not math.isfinite(number):
        return "–" if math.isnan(number) else f"{number}"
    return f"{number:.3f}" if number == 0 or 0.01 <= abs(number) < 1000 else f"{number:.3g}"


def line(text: str, most: int = 200) -> str:
    """Text from outside as one printable line: it can neither forge a line of a log nor steer a terminal."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[: 10 * most])
    joined = " ".join(printable.split())
    return joined if len(joined) <= most else joined[: most - 1] + "…"
