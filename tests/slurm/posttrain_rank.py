"""A rank of a post-training that waits after its third step, in its first start, until it is asked to stop."""

import os
import time

from megatron_growth.backend.processes import leave
from megatron_growth.posttrain import callbacks, slurm_rank

STEP = 3
stops = []
begin, on_log = callbacks.GentleStop.__init__, callbacks.Recorder.on_log


def beginning(self):
    begin(self)
    stops.append(self)


def holding(self, args, state, control, **kwargs):
    on_log(self, args, state, control, **kwargs)
    if state.global_step == STEP and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        while not stops[-1]._asked:
            time.sleep(0.02)


callbacks.GentleStop.__init__, callbacks.Recorder.on_log = beginning, holding

if __name__ == "__main__":
    leave(slurm_rank.main())
