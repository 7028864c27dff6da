"""The process both ways, guidance, and the noise schedule, from the pipeline's scheduler."""

from trilemma.eval.plots.curves import scheduled_schedules
from trilemma.eval.plots.guidance import guidance
from trilemma.eval.plots.process import scheduled_process
from trilemma.eval.plots.sheets import Pictures

PICTURES: Pictures = {
    "process.png": scheduled_process,
    "guidance.png": guidance,
    "schedules.png": scheduled_schedules,
}
