"""One display for the whole run: which paper, which step, how far, and the time left."""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO


@dataclass
class Part:
    """A piece of the work, and how long it is expected to take."""

    paper: str
    step: str
    seconds: float  # expected; what it took, once it is done
    done: bool = False


class Display:
    """On a terminal one line that is kept up to date; elsewhere a line for each part that ends.

    The time left is that of the parts to come, as expected, times how much slower than expected the finished ones were.
    """

    PRIOR = 20.0  # seconds: as if so much had taken as long as expected, so that the first part does not decide alone

    def __init__(self, parts: Sequence[Part], stream: TextIO) -> None:
        self.parts, self.stream = list(parts), stream
        self.live = stream.isatty()
        self.current: Part | None = None
        self.first_share: float | None = None  # where the current part began: a resumed one is partly done
        self.detail, self.share, self.began = "", 0.0, time.monotonic()
        self._pace_expected = self._pace_taken = self.PRIOR
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> "Display":
        if self.live:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._closing.set()
        if self.live:
            self._thread.join()
            self._clear()

    def start(self, part: Part) -> None:
        with self._lock:
            self.current, self.detail, self.share, self.began = part, "", 0.0, time.monotonic()
            self.first_share = None

    def at(self, share: float, detail: str | None = None) -> None:
        """How much of the current part is done (0 to 1), and what it is at."""
        with self._lock:
            self.share = share
            self.first_share = share if self.first_share is None else self.first_share
            if detail is not None:
                self.detail = detail

    def end(self, outcome: str) -> None:
        """The current part came to its end; outcome: a few words with its result."""
        part = self.current
        assert part is not None
        with self._lock:
            taken = time.monotonic() - self.began
            self._pace_expected += part.seconds
            self._pace_taken += taken
            part.seconds, part.done, self.current = taken, True, None
        self.say(f"{self._place(part)} {part.paper}: {part.step}, {taken:.0f} s. {outcome}".rstrip())

    def skip(self, part: Part) -> None:
        """It was done before, or cannot be done."""
        part.done = True

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        left = self.left()
        print(f"{text}  [{clock(left)} left]" if left > 0 else text, file=self.stream, flush=True)

    def left(self) -> float:
        """Seconds until everything is done, as far as can be told."""
        pace = self._pace_taken / self._pace_expected
        to_come = sum(p.seconds for p in self.parts if not p.done and p is not self.current) * pace
        if self.current is None:
            return to_come
        taken = time.monotonic() - self.began
        done = self.share - (self.first_share or 0.0)  # by this process
        if done > 0.1:
            return to_come + taken * (1 - self.share) / done
        return to_come + max(0.0, self.current.seconds * (1 - (self.first_share or 0.0)) * pace - taken)

    def line(self) -> str:
        """What the terminal shows now."""
        part = self.current
        if part is None:
            return ""
        detail = f" · {self.detail}" if self.detail else ""
        share = f" {100 * self.share:3.0f}%" if self.share else ""
        return f"{self._place(part)} {part.paper} · {part.step}{detail}{share} · {clock(self.left())} left"

    def _place(self, part: Part) -> str:
        return f"[{self.parts.index(part) + 1}/{len(self.parts)}]"

    def _refresh(self) -> None:
        while not self._closing.wait(0.5):
            with self._lock:
                text = self.line()
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r\x1b[2K{text[:width]}")
            self.stream.flush()

    def _clear(self) -> None:
        if self.live:
            self.stream.write("\r\x1b[2K")


def clock(seconds: float) -> str:
    """ "4:05"; of more than an hour "3 h 20 min", of more than two days "12 days"."""
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole / 86400:.0f} days"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60}:{whole % 60:02d}"
