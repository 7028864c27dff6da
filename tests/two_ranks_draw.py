"""Run by `torchrun` in test_ranks.py: `eval/generate.py` on two processes; `kill` ends one of them while it
draws.
"""

import os
import signal
import sys

import torch

from trilemma.eval import generate
from trilemma.eval.scoring.image_output import Parts

BATCHES = 2
"""What the process that is killed has drawn."""


def killed(drawing):
    for number, batch in enumerate(drawing):
        if number == BATCHES:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, *flags = sys.argv[1:]
    if mode == "kill":
        write = Parts.write
        Parts.write = lambda self, drawing, rank: write(self, killed(drawing) if rank else drawing, rank)
    generate.main(flags)
