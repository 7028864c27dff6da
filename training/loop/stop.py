"""Signals that end a program: a scheduler's notice (SIGTERM, SIGUSR1) and Ctrl-C (SIGINT). Needs no torch.

Where there is nothing to keep they end it at once, with one line (`ending_quietly`). While a model trains
they are noted, and all processes stop together where the run can be taken up again (`StopSignal`).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

INTERRUPTED = 75
"""Exit code after SIGTERM or SIGUSR1: run the same command again (EX_TEMPFAIL, which not every system has in
`os`). A training has written a checkpoint, unless it shows a sign of failure."""

CTRL_C = 130
"""Exit code after SIGINT, as shells write it; otherwise the same."""

NOTICES = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Windows has no SIGUSR1."""

MOST_STEPS = 10
"""Steps between two questions whether to stop, of several processes whose steps are quick: asking costs them
0.25 to 0.67 ms (two processes on one machine)."""

END = object()


class Stopped(BaseException):
    """A signal ended the work; the program shall end with this exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Notice:
    """The exit code of what was received, 0 without any; at_once: whether a signal raises Stopped.

    again: what the next Ctrl-C does after one.
    """

    def __init__(self, at_once: bool = False):
        self.code, self.at_once, self.again = 0, at_once, signal.SIG_DFL

    def receive(self, number: int, frame=None) -> None:
        """Note a signal. After a Ctrl-C the next one ends the process at once, unless `again` is changed."""
        self.code = max(self.code, CTRL_C if number == signal.SIGINT else INTERRUPTED)
        if number == signal.SIGINT:
            signal.signal(number, self.again)
        if self.at_once:
            raise Stopped(self.code)

    @contextmanager
    def listening(self, numbers: Iterable[int]) -> Iterator[None]:
        """Receive these signals inside the block; none outside the main thread, where Python has none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) == self.receive:  # not after a Ctrl-C
                    signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def ending_quietly(
    numbers: Iterable[int] = (signal.SIGINT,), line: str = "Interrupted."
) -> Iterator[None]:
    """These signals end the program inside the block: one line, no traceback, the exit code of the signal."""
    if int(os.environ.get("RANK", 0)):
        # The main process speaks for all. This one may be waiting for it, where a handler would not run.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        yield
        return
    try:
        with Notice(at_once=True).listening(numbers):
            yield
    except Stopped as stopped:
        print(line, file=sys.stderr, flush=True)
        raise SystemExit(stopped.code) from None


def of_one_process(*numbers: int) -> list[int]:
    """`agree` of a program that runs alone."""
    return list(numbers)


class StopSignal:
    """The signals that any process receives inside the `with` block, agreed on by all.

    agree(a, b, ...): the largest a, the largest b, ... of all processes; collective (see `ranks.agreement`).
    """

    def __init__(self, agree: Callable[..., list[int]] = of_one_process):
        # The handlers know the notice alone: they may outlive the group of processes that `agree` holds.
        self.agree, self.notice = agree, Notice()
        self.alone = agree is of_one_process
        self.steps, self.period, self.asked = 0, 1, time.monotonic()

    def __enter__(self) -> "StopSignal":
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.notice.again = signal.default_int_handler  # called by a script, whose process goes on
        self.listening = self.notice.listening(NOTICES)
        self.listening.__enter__()
        return self

    def __exit__(self, *problem) -> None:
        self.listening.__exit__(*problem)

    def check(self) -> None:
        """Stopped, on every process, if any has received a signal; collective."""
        (code,) = self.agree(self.notice.code)
        if code:
            raise Stopped(code)

    def check_after_step(self, due: bool) -> None:
        """`check`; of several processes only once in a second or `MOST_STEPS` steps, and where `due`.

        Collective; `due` must be the same on all.
        """
        self.steps += 1
        if not (self.alone or due or self.steps >= self.period):
            return
        now = time.monotonic()
        in_a_second = int(self.steps / max(now - self.asked, 1e-3))
        code, self.period = self.agree(self.notice.code, min(MOST_STEPS, in_a_second))
        self.steps, self.asked = 0, now
        if code:
            raise Stopped(code)

    def at_once(self, work: Callable[[], T]) -> T:
        """`work()`; Stopped as soon as this process receives a signal, or has received one."""
        self.notice.at_once = True
        try:
            if self.notice.code:
                raise Stopped(self.notice.code)
            return work()
        finally:
            self.notice.at_once = False

    def attempt(self, work: Callable[[], T]) -> T:
        """`work()` on every process; Stopped on all if any receives a signal, which ends its work at once.

        Collective, and `work` must not be.
        """
        result = None
        with suppress(Stopped):
            result = self.at_once(work)
        self.check()
        return result

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items of this process; Stopped on all between two of them if any receives a signal.

        Collective, and making an item must not be. Processes may have different numbers of items. A process
        that receives a signal while it makes one does not finish it.
        """
        iterator, item = iter(items), None
        while True:
            if item is not END:
                with suppress(Stopped):
                    item = self.at_once(lambda: next(iterator, END))
            code, more = self.agree(self.notice.code, int(item is not END))
            if code:
                raise Stopped(code)
            if not more:
                return
            if item is not END:
                yield item
