"""Numbers as people read them, shared by the page and the terminal."""

import math

from edgesmith.ledger import Measurement

NOT_MEASURED = "–"

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")
_COUNT_UNITS = ("", " k", " M", " G", " T")


def format_number(value: float, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, never in scientific notation for everyday sizes."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not a number"
    if value == 0:
        return "0"
    # Rounded first: 999.9 has the magnitude of 1000 once it is cut to three digits.
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if magnitude >= 9 or magnitude < -5:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}".replace("-", "−")


def format_bytes(value: float) -> str:
    """Return a size in decimal units, such as "22.9 MB"."""
    return _scaled(value, _BYTE_UNITS, " ")


def format_count(value: float) -> str:
    """Return a count such as "22.7 M"."""
    return _scaled(value, _COUNT_UNITS, "")


def format_milliseconds(value: float) -> str:
    """Return a time in milliseconds with three significant digits, such as "8.31 ms"."""
    return f"{format_number(value)} ms"


def format_factor(value: float) -> str:
    """Return a speed-up, such as "2.31×"."""
    return f"{format_number(value)}×"


def format_decibels(value: float) -> str:
    """Return a signal to noise ratio; infinite means that nothing changed."""
    return "equal" if value == math.inf else f"{value:.1f} dB".replace("-", "−")


def format_seconds(value: float) -> str:
    """Return a duration, such as "8.2 s" or "3 min 20 s"."""
    if value < 60:
        return f"{format_number(value, 2)} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def format_value(value: float, unit: str) -> str:
    """Return a metric with its unit. Percentages get two decimals, since tenths of a point are what is discussed."""
    if unit == "bytes":
        return format_bytes(value)
    if unit == "ms":
        return format_milliseconds(value)
    if unit == "%" and math.isfinite(value):
        return f"{value:.2f} %".replace("-", "−")
    text = format_number(value, 4)
    return f"{text} {unit}" if unit else text


def format_change(value: float, unit: str) -> str:
    """Return a difference with its sign. Differences of percentages are points."""
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    if unit in ("%", "points"):
        return f"{sign}{abs(value):.2f} points"
    return f"{sign}{format_value(abs(value), unit)}"


def format_spread(measurement: Measurement) -> str:
    """Return the low and high end of a measurement without unit, or nothing when it does not vary."""
    if measurement.low is None or measurement.high is None:
        return ""
    if measurement.unit == "bytes":
        return f"{format_bytes(measurement.low)} to {format_bytes(measurement.high)}"
    # Both ends get the decimals of the median, so that they can be read against it.
    magnitude = math.floor(math.log10(abs(measurement.value))) if measurement.value else 0
    decimals = max(0, 2 - magnitude)
    return f"{measurement.low:,.{decimals}f} to {measurement.high:,.{decimals}f}".replace("-", "−")


def capitalize(text: str) -> str:
    """Return `text` with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]


def shorten(text: str, length: int) -> str:
    """Return `text` cut in the middle to `length` characters, since names differ at both ends."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _scaled(value: float, units: tuple[str, ...], separator: str) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    text = f"{value:.0f}" if power == 0 else format_number(value)
    return f"{text}{separator}{units[power]}".strip()
