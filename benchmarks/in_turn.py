"""Run a pre-training script whose iterations wait for their turn: several start side by side and train one by one.

    BENCHMARK_TURN=FILE python -m megatron_growth.backend.start benchmarks/in_turn.py SCRIPT WORDS...

A process holds an exclusive lock on FILE (flock) from its first iteration to its last.  Starting, building the model
and growing come before that and overlap.
"""

import fcntl
import functools
import os
import runpy
import sys

from megatron.training import training

_train = training.train


@functools.wraps(_train)
def train(*args, **kwargs):
    with open(os.environ["BENCHMARK_TURN"], "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _train(*args, **kwargs)


if __name__ == "__main__":
    training.train = train
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
