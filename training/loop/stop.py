"""SIGTERM and SIGUSR1: the notice that a scheduler gives before it ends a job."""

import signal

import torch
import torch.distributed
from accelerate import Accelerator

INTERRUPTED = 75
"""Exit code after SIGTERM or SIGUSR1: a checkpoint was written, unless the run shows a sign of failure; run
the same command again (EX_TEMPFAIL, which not every system has in `os`)."""

NOTICES = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
"""Windows has no SIGUSR1."""


class StopSignal:
    """SIGTERM or SIGUSR1, noticed on any rank and agreed on by all at the same step."""

    def __init__(self, accelerator: Accelerator):
        received: list[int] = []
        self.received = received
        # A group of its own on the CPU, so that asking does not wait for the GPU.
        alone = accelerator.num_processes == 1
        self.group = None if alone else torch.distributed.new_group(backend="gloo")
        for number in NOTICES:
            # Not a method: handlers stay to the interpreter's end, and would keep the group's threads alive.
            signal.signal(number, lambda number, frame: received.append(number))

    def seen(self) -> bool:
        """Whether any rank received a signal; collective."""
        if self.group is None:
            return bool(self.received)
        flag = torch.tensor([int(bool(self.received))])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(flag)
