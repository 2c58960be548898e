"""SIGTERM and Ctrl-C as a stop request that the training loop checks between steps."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Inside the context, the first SIGTERM or SIGINT is stored in `signal`; another Ctrl-C interrupts at once."""

    default = signal.SIGTERM  # for ranks that stop because another rank received a signal

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    @staticmethod
    def name(number: int) -> str:
        return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
