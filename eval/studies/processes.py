"""Processes that a sweep starts, one at a time: their output goes to a log, and signals reach them."""

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SHOWN_LOG_LINES = 10

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Variables by which a launcher of this process would mislead the processes that it starts."""


NOTICES = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Windows has no SIGUSR1."""


def last_lines(log: Path) -> str:
    """The end of a log, a progress bar as it last was."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text if line.strip()]
    return "".join(f"  | {line}\n" for line in lines[-SHOWN_LOG_LINES:])


class Children:
    """Runs commands one at a time, each in a session of its own, and passes on the signals that end this one.

    So Ctrl-C reaches a training as the SIGTERM after which it writes a checkpoint, and not as an interrupt.
    """

    def __init__(self):
        self.stopped = False
        self.process: subprocess.Popen | None = None
        for number in NOTICES:
            signal.signal(number, self._pass_on)

    def run(self, command: Sequence[str], log: Path) -> int:
        """Exit code of a command whose output is added to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
        with open(log, "ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        if self.stopped:  # by a signal that came before there was anyone to pass it on to
            self._pass_on()
        return self.process.wait()

    def _pass_on(self, *_) -> None:
        self.stopped = True
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                to_group = getattr(os, "killpg", None)  # Windows has no process groups
                if to_group:
                    to_group(self.process.pid, signal.SIGTERM)
                else:
                    self.process.terminate()
