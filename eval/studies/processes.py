"""Processes that a sweep starts, one at a time: their output goes to a log, and signals reach them."""

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trilemma.training.loop.stop import CTRL_C, INTERRUPTED, NOTICES
from trilemma.training.progress import Progress

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""Windows has no SIGKILL."""

SHOWN_LOG_LINES = 10

READ, SHOWN = 4096, 72
"""Bytes at the end of a log that are read, and characters of its last line that are shown, while it grows."""

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Variables by which a launcher of this process would mislead the processes that it starts."""


def last_lines(log: Path) -> str:
    """The end of a log, a progress bar as it last was."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text if line.strip()]
    return "".join(f"  | {line}\n" for line in lines[-SHOWN_LOG_LINES:])


class Followed(Progress):
    """Progress of a process that writes to a log: its time, and the last line of the log."""

    def __init__(self, what: str, log: Path):
        self.log, self.start = log, log.stat().st_size
        super().__init__(what)

    def speak(self) -> None:
        """As any progress, with the last line of the log."""
        with open(self.log, "rb") as file:
            file.seek(max(self.start, self.log.stat().st_size - READ))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if last:
            self.note(now=last[:SHOWN])
        super().speak()


class Children:
    """Runs commands one at a time, each in a session of its own, and passes on the signals that end this one.

    So Ctrl-C reaches a training as the SIGTERM after which it writes a checkpoint, and not as an interrupt; a
    second Ctrl-C kills it. Signals are received inside the `with` block; stopped: the exit code that they ask
    for, 0 without any.
    """

    def __init__(self):
        self.stopped = 0
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Children":
        self.before = {number: signal.signal(number, self._pass_on) for number in NOTICES}
        return self

    def __exit__(self, *problem) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def run(self, command: Sequence[str], log: Path, what: str = "running") -> int:
        """Exit code of a command whose output is added to `log`; what: as progress calls it."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
        with open(log, "ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        if self.stopped:  # by a signal that came before there was anyone to pass it on to
            self._end(signal.SIGTERM)
        with Followed(what, log):
            return self.process.wait()

    def _pass_on(self, number: int, frame) -> None:
        again = number == signal.SIGINT and self.stopped == CTRL_C
        self.stopped = max(self.stopped, CTRL_C if number == signal.SIGINT else INTERRUPTED)
        self._end(KILL if again else signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        with suppress(ProcessLookupError):  # it has just ended
            to_group = getattr(os, "killpg", None)  # Windows has no process groups
            if to_group:
                to_group(self.process.pid, number)
            else:
                self.process.terminate()
