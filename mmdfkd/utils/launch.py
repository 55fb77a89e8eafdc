"""What the command-line tools share."""

import os
import sys
import traceback
from collections.abc import Callable

import torch

# Errors that are about the user's input: one clear message, the trace only on demand.
_CLEAR = (FileNotFoundError, KeyError, TypeError, ValueError, RuntimeError, FloatingPointError)


def use_all_cores() -> None:
    """Let idle OpenMP threads sleep rather than spin, and use the cores this process may run on."""
    threads = os.environ.get('OMP_NUM_THREADS')
    torch.set_num_threads(int(threads) if threads else len(os.sched_getaffinity(0)))


def init_cpu_group(cfg) -> None:
    """Join the process group over gloo when several processes are launched on CPUs.

    mmengine's own launcher calls ``torch.cuda.set_device``; a group that exists already is used as it is.
    """
    if cfg.get('launcher', 'none') != 'pytorch' or torch.cuda.is_available():
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group('gloo')


def fail_clearly(main: Callable[[], None]) -> int:
    """Run a tool; an error about its input ends in one message on stderr and status 1.

    ``MMDFKD_TRACE=1`` shows the trace.
    """
    try:
        main()
    except _CLEAR as error:
        if os.environ.get('MMDFKD_TRACE'):
            traceback.print_exc()
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f'\n{type(error).__name__}: {message}', file=sys.stderr)
        return 1
    return 0
