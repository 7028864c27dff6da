"""How far long work is: a bar on a terminal; elsewhere, as in a log file, a line every few seconds.

Work that takes less than FIRST seconds says nothing in a log. Of nested work the innermost speaks. Lines come
from a thread of their own, so that one slow batch is no silence. Needs no torch.
"""

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

FIRST = 4.0
"""Seconds before the first line in a log."""
LONGEST = 60.0
"""Seconds between two lines of a run of hours; of the first quarter of an hour, FIRST."""
SHARE = 1 / 200
"""In between they are this share of the time so far apart."""

_open: list["weakref.ref[Progress]"] = []
"""What is being done, innermost last; what nobody holds any more, of a run that failed, says nothing."""


class Progress:
    """Work in progress, inside a `with` block or until `close()`.

    what: as the user reads it. total: units, None for work that is not counted. initial: units of earlier
    runs. show: whether this process speaks.
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "", initial: int = 0, show: bool = True
    ):
        self.what, self.total, self.unit, self.initial, self.n = what, total, unit, initial, initial
        self.remark, self.paused, self.spoke = "", 0.0, False
        self.began = self.last = time.monotonic()
        self.show, self.bar, self.closed = show, None, threading.Event()
        if not show:
            return
        self.own = weakref.ref(self, _forget)
        _open.append(self.own)
        if sys.stderr.isatty():
            uncounted = {"bar_format": "{desc} [{elapsed}]{postfix}", "delay": 1, "leave": False}
            form = uncounted if total is None else {}
            self.bar = tqdm(desc=what, total=total, initial=initial, unit=unit, smoothing=0.05, **form)
        if self.bar is None or total is None:
            threading.Thread(target=_speak, args=(self.own, self.closed), daemon=True).start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *problem) -> None:
        self.close(whole=problem[0] is None)

    @property
    def seconds(self) -> float:
        """Seconds so far, without the pauses."""
        return time.monotonic() - self.began - self.paused

    def update(self, n: int = 1) -> None:
        """So many units more are done."""
        self.n += n
        if self.bar is not None:
            self.bar.update(n)

    def note(self, **values: str) -> None:
        """What to say beside the count."""
        self.remark = "".join(f", {name} {value}" for name, value in values.items())
        if self.bar is not None:
            self.bar.set_postfix(values)

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Other work inside the block: its time counts neither for the rate nor for the time that is left."""
        began = time.monotonic()
        try:
            with Progress(what, show=self.show):
                yield
        finally:
            seconds = time.monotonic() - began
            self.paused += seconds
            if self.bar is not None:
                self.bar.start_t += seconds
                self.bar.last_print_t += seconds

    def close(self, whole: bool = True) -> None:
        """The work is done, or given up if not `whole`."""
        if not self.show or self.closed.is_set():
            return
        self.closed.set()
        _forget(self.own)
        if self.bar is None:
            if self.spoke and whole and self.n >= (self.total or 0):
                say(f"{self.what}: done{self._count()} in {duration(self.seconds)}", sys.stderr)
        elif self.total is None:
            self.bar.clear()
        if self.bar is not None:
            self.bar.close()

    def line(self) -> str:
        """How far it is, for a log."""
        if self.total is None or self.n == self.initial:
            return f"{self.what}: {duration(self.seconds)} so far{self._count()}{self.remark}"
        left = self.seconds * (self.total - self.n) / (self.n - self.initial)
        share = f" ({100 * self.n / max(self.total, 1):.0f}%)"
        return f"{self.what}:{self._count()[1:]}{share}, {duration(left)} left{self.remark}"

    def _count(self) -> str:
        return "" if self.total is None else f", {self.unit} {self.n:,} of {self.total:,}"

    def speak(self) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if _open[-1:] != [self.own]:
            self.last = now  # what is inside speaks
        elif self.bar is not None:
            if now - self.began > 1:
                self.bar.refresh()
        elif now - self.last >= max(FIRST, min(LONGEST, SHARE * (now - self.began))):
            self.last, self.spoke = now, True
            say(self.line(), sys.stderr)


def _forget(work: "weakref.ref[Progress]") -> None:
    with suppress(ValueError):  # it was closed before
        _open.remove(work)


def _speak(work: "weakref.ref[Progress]", closed: threading.Event) -> None:
    """Let it speak while it lasts."""
    while not closed.wait(FIRST / 8) and (progress := work()) is not None:
        progress.speak()
        del progress


def each(items: Iterable[T], what: str, total: int, unit: str, show: bool = True) -> Iterator[T]:
    """The items, counted."""
    with Progress(what, total, unit, show=show) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Import of torch and its users, which takes seconds.

    In a log, their bars, which would rewrite a line, are left out. Threads of torch that wait for each other
    sleep: where other programs use the cores, threads that spin take many times as long (docs/speed.md).
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # is read when torch is imported
    if not sys.stderr.isatty():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    with Progress("loading libraries", show=int(os.environ.get("RANK", 0)) == 0):
        yield


def say(line: str, file=None) -> None:
    """Print a line, at once, above the bars if there are any."""
    file = file or sys.stdout
    if file.closed:  # a thread outlived the log
        return
    tqdm.write(line, file=file)
    file.flush()


def duration(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any: 1:05, 2:00:00."""
    return tqdm.format_interval(seconds)


def in_minutes(minutes: float) -> str:
    """As it is spoken: 1 minute, 2.5 minutes."""
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """As it is spoken: 1 step, 1,000 steps, 2 processes; many: a plural that ends otherwise."""
    many = many or one + ("es" if one.endswith("s") else "s")
    return f"{number:,} {one if number == 1 else many}"
