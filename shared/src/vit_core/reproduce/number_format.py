"""Formatting of numbers, claims and durations: the filters of the page's template."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

MINUS, THIN, DASH = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}", "\N{EM DASH}"
SIGNS = {"about": "", "at least": "≥", "at most": "≤", "above": ">", "below": "<", "between": ""}
SYMBOLS = ("%", "M", "s", "ms", "min", "h", "kB", "MB", "GB")  # units written directly after the number
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers_of(value: object) -> list[float]:
    """The number, or the numbers of a list; [] if it is or contains anything else."""
    several = value if isinstance(value, list | tuple) else [value]
    numbers = [one for one in several if is_number(one)]
    return numbers if len(numbers) == len(several) else []


def number(value: object, decimals: int | None = None) -> str:
    """13054564 -> "13,054,564"; 0.012345 -> "0.0123"; 2.1e-7 -> "2.1×10⁻⁷"; True -> "yes"; None -> "—"; text unchanged.

    Without `decimals`, a float is shown with three significant digits, or two decimals if it is at least 1.
    """
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return str(value)
    if not math.isfinite(value):
        return {"inf": "∞", "-inf": f"{MINUS}∞"}.get(str(value), "not a number")
    size = abs(value)
    if isinstance(value, float) and size and not 1e-4 <= size < 1e15:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}×10{str(int(exponent)).translate(SUPERSCRIPT)}"
    else:
        text = f"{value:,.{_decimals(value) if decimals is None else decimals}f}"
    return text.replace("-", MINUS)


def _decimals(value: float) -> int:
    """Number of decimals to show, without trailing zeros."""
    size = abs(value)
    if isinstance(value, int) or not math.isfinite(size) or not size or size >= 1000:
        return 0
    most = 2 if size >= 1 else 2 - math.floor(math.log10(size))
    return len(f"{value:.{most}f}".rstrip("0").partition(".")[2])


def columns(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    """The cells of a table as text; numbers of one column have the same number of decimals, so that they align."""
    shown = []
    for cells in itertools.zip_longest(*rows):
        decimals = min(4, max((_decimals(c) for c in cells if _aligns(c)), default=0))
        shown.append([number(c, decimals if _aligns(c) else None) for c in cells])
    return [list(row) for row in zip(*shown, strict=True)]


def _aligns(value: object) -> TypeGuard[float]:
    """Whether a number has the decimals of its column; tiny ones need digits of their own."""
    return isinstance(value, float) and (not value or abs(value) >= 0.001)


def is_number_column(rows: Sequence[Sequence[object]], place: int) -> bool:
    return any(is_number(row[place]) for row in rows if place < len(row))


def percent(value: float | Sequence[float] | None) -> str:
    """93.0556 -> "93.06 %"; for several values, mean and standard deviation."""
    if value is None or value == []:
        return DASH
    return f"{mean_and_spread([value] if isinstance(value, int | float) else value, 2)}{THIN}%"


def mean_and_spread(values: Sequence[float], decimals: int | None = None) -> str:
    """ "62.10 ± 0.40": mean and, for several values, standard deviation."""
    mean = statistics.fmean(values)
    decimals = _decimals(mean) if decimals is None else decimals
    spread = f" ± {number(statistics.stdev(values), decimals)}" if len(values) > 1 else ""
    return number(mean, decimals) + spread


def duration(seconds: float | None) -> str:
    """312.4 -> "5 min 12 s"."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    return " ".join([f"{n}{THIN}{unit}" for n, unit in parts if n][:2])


def claimed(claim: Mapping[str, Any]) -> str:
    """ "≥ 2.5 ×": the number with exactly the paper's digits, because the tolerance depends on them."""
    value = claim["claimed"]
    if claim["comparison"] == "between":
        return _with_unit("–".join(map(as_written, value)), claim["unit"])
    sign = SIGNS.get(claim["comparison"], claim["comparison"])
    return f"{sign} {_with_unit(as_written(value), claim['unit'])}".strip()


def as_written(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value) and 1e-4 <= abs(value) < 1e15:
        return f"{value:,}".replace("-", MINUS)
    return number(value)


def cell(value: object) -> str:
    """A cell of a table of claims: a number, or mean and standard deviation over several seeds."""
    several = numbers_of(value) if isinstance(value, list | tuple) else []
    return mean_and_spread(several) if several else number(value)


def measured(value: object, claim: Mapping[str, Any], found: Mapping[str, Any] | None) -> str:
    """A measured value, or the mean of several, with at least as many decimals as the claim. found: the measurement."""
    given = as_written(claim["claimed"]).partition(".")[2] if is_number(claim["claimed"]) else ""
    numbers = numbers_of(value)
    if not numbers:
        return number(value)
    mean = statistics.fmean(numbers)
    if len(numbers) > 1 and not isinstance((found or {}).get("seed"), list | tuple):  # for example one per block
        ends = dict.fromkeys(number(v, _at_least(v, given)) for v in (min(numbers), max(numbers)))
        return _with_unit("–".join(ends), claim["unit"])
    if len(numbers) > 1:
        return _with_unit(mean_and_spread(numbers, max(_decimals(mean), len(given))), claim["unit"])
    text = number(numbers[0]) if isinstance(numbers[0], int) else number(mean, _at_least(mean, given))
    return _with_unit(text, claim["unit"])


def _at_least(value: float, given: str) -> int | None:
    return max(_decimals(value), len(given)) if given.isdigit() and math.isfinite(value) else None


def allowance(claim: Mapping[str, Any]) -> str:
    """ "± 0.05": the tolerance around the claimed value; "" if there is none."""
    value = claim["allowance"]
    return f"± {_with_unit(number(value), claim['unit'])}" if value else ""


def _with_unit(text: str, unit: str) -> str:
    return text + _split_unit(unit)[0]


def unit_words(claim: Mapping[str, Any]) -> str:
    """The part of a unit that is not a symbol: "top-1" in "% top-1"."""
    return _split_unit(claim["unit"])[1]


def _split_unit(unit: str) -> tuple[str, str]:
    """ "% top-1" -> (" %", "top-1"); "10^6 parameters" -> ("×10⁶", "parameters"); "pixels" -> ("", "pixels")."""
    symbol, _, words = unit.partition(" ")
    if symbol in ("×", "x"):
        return "×", words
    if symbol.startswith("10") and len(symbol) > 2:
        return f"×10{symbol[2:].lstrip('^').translate(SUPERSCRIPT)}", words
    return (THIN + symbol, words) if symbol in SYMBOLS else ("", unit)


def sort_value(value: object) -> str:
    """The sort key of a cell: its number, or the mean of a list; "" to sort by its text."""
    if isinstance(value, bool):
        return str(int(value))
    numbers = numbers_of(value)
    if not numbers:
        return ""
    mean = statistics.fmean(numbers)
    return repr(mean) if math.isfinite(mean) else ""
