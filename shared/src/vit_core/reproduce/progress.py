"""Progress display of the whole run: paper, step, progress and remaining time."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm


@dataclass(frozen=True, eq=False)
class Part:
    """A step of a paper and its expected duration."""

    paper: str
    step: str
    seconds: float  # expected; 0 if already done


class Display:
    """A live progress bar on a terminal; otherwise one line per finished part.

    The bar counts expected seconds, so the remaining time is the expected time of the remaining parts, scaled by the
    ratio of actual to expected time so far.
    """

    def __init__(self, parts: Sequence[Part], stream: TextIO) -> None:
        self.parts, self.stream, live = list(parts), stream, stream.isatty()
        self.bar = tqdm(
            total=sum(part.seconds for part in parts),
            file=stream if live else io.StringIO(),
            mininterval=0.5 if live else math.inf,
            miniters=0,
            smoothing=0,  # average since the start: recent steps say little about the other parts
            bar_format="{desc}{postfix} |{bar}| {remaining} left",
            dynamic_ncols=True,
            leave=False,
            disable=False,
        )

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, part: Part) -> None:
        self.part, self.first = part, True
        self.before, self.began = self.bar.n, self.bar.format_dict["elapsed"]
        self.bar.set_postfix_str("", refresh=False)
        self.bar.set_description_str(f"[{self.parts.index(part) + 1}/{len(self.parts)}] {part.paper}: {part.step}")

    def at(self, share: float, detail: str = "") -> None:
        """Update the completed fraction of the current part (0 to 1) and its current item."""
        done = share * self.part.seconds
        if self.first:  # a resumed part: this much was done by an earlier process
            self.bar.initial, self.first = self.bar.initial + done, False
        self.bar.set_postfix_str(f"{detail}, {share:.0%}".lstrip(", "), refresh=False)
        self.bar.update(self.before + done - self.bar.n)

    def end(self, outcome: str) -> None:
        """Finish the current part; outcome: short summary of its result."""
        self.bar.update(self.before + self.part.seconds - self.bar.n)
        state = self.bar.format_dict
        left = tqdm.format_meter(**{**state, "bar_format": "[{remaining} left]", "ncols": None})
        taken = state["elapsed"] - self.began
        tqdm.write(f"{self.bar.desc}, {taken:.0f} s. {outcome}".rstrip() + f"  {left}", file=self.stream)


def clock(seconds: float) -> str:
    """ "4:05"; from one hour on "3 h 20 min", from two days on "12 days"."""
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole / 86400:.0f} days"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60}:{whole % 60:02d}"
