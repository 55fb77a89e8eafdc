"""What the command-line tools share."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config, DictAction

# Errors that are about the user's input: one clear message, the trace only on demand.
_CLEAR = (
    OSError,
    SyntaxError,
    ImportError,
    AssertionError,
    TypeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    LookupError,
)


def core_count() -> int:
    """Cores this process may run on; the machine's where the system does not tell."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_all_cores() -> None:
    """Use the cores this process may run on, unless ``OMP_NUM_THREADS`` says how many."""
    if not os.environ.get('OMP_NUM_THREADS'):
        torch.set_num_threads(core_count())


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process like an error, so that clean-ups run.

    They end Python on the spot otherwise, and its own processes go on. Outside the main thread, and
    where a signal is ignored (``nohup``), nothing changes.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_config(path: str) -> Config:
    """Read a config file.

    Raises:
        FileNotFoundError: If there is none.
        SyntaxError: If it, or one of its bases, is no Python; names it.
        ValueError: If running it fails; names it.
    """
    where = f'{path}, or one of its _base_ files'
    try:
        return Config.fromfile(path)
    except SyntaxError as error:
        raise SyntaxError(f'{where}: {error}') from error
    except (ArithmeticError, AttributeError, LookupError, NameError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f'{where}: {type(error).__name__}: {said}') from error


class Options(DictAction):
    """``--cfg-options KEY=VALUE ...``; a word without ``=`` is named."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Take the words."""
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string}: {word!r} is not KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def set_amp(optim_wrapper: dict) -> None:
    """Turn mixed precision on in an optimiser wrapper, or in each of several by name.

    Raises:
        RuntimeError: Where no accelerator is.
        ValueError: If a wrapper is of a type that cannot be replaced.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            '--amp needs a GPU: mixed precision gains nothing on a CPU. Leave --amp out.'
        )
    inner = [v for v in optim_wrapper.values() if isinstance(v, dict) and 'optimizer' in v]
    for wrapper in [optim_wrapper] if 'optimizer' in optim_wrapper else inner:
        kind = wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(f"--amp replaces the type 'OptimWrapper', not {kind!r}.")
        wrapper['type'] = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def init_cpu_group(cfg) -> None:
    """Join the process group over gloo when several processes are launched on CPUs.

    mmengine's own launcher calls ``torch.cuda.set_device``; a group that exists already is used as
    it is.
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
        if not os.environ.get('MMDFKD_TRACE'):
            print('(MMDFKD_TRACE=1 shows where.)', file=sys.stderr)
        return 1
    return 0
