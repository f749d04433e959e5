"""The worker of post-training, whose first process kills itself after a step, once: KILLED_AFTER, KILLED_MARK."""

import os
import signal
import sys
from pathlib import Path

from megatron_growth.posttrain import callbacks, worker

step, mark = int(os.environ["KILLED_AFTER"]), Path(os.environ["KILLED_MARK"])
on_log = callbacks.Recorder.on_log


def killing(self, args, state, control, **kwargs):
    on_log(self, args, state, control, **kwargs)
    if state.global_step == step and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


callbacks.Recorder.on_log = killing

if __name__ == "__main__":
    sys.exit(worker.main())
