"""Builds the project's environment from its pinned requirements, or finds that it stands.

Run by ``make``; it needs nothing but Python's standard library. The environment belongs to a hash
of the requirement files, the Python version and its own place. A stamp ``.lock-<hash>`` inside it
says that it is complete; without the stamp it is built from nothing.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / 'requirements'
PINNED = ('build.txt', 'torch.txt', 'lock.txt', 'mmcv.txt', 'overlay.txt')
FILES = (*PINNED, 'cuda.txt', 'peers.txt')
OLDEST, NEWEST = (3, 10), (3, 13)
REPORT_EVERY = 20.0
"""Seconds between two progress lines."""

JOB_MEMORY = 1.5e9
"""Bytes that one compiler process on torch's headers may take."""

COMPILER_FLAGS = '-O3 -g0 -DNDEBUG -fwrapv'

LISTING = """
import sys
from importlib.metadata import distributions
from pathlib import Path
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name as canonical

installed = {canonical(d.metadata['Name']): d.version.split('+')[0] for d in distributions()}
wanted = {}
for path in sys.argv[1:]:
    for line in Path(path).read_text().splitlines():
        line = line.split('#')[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            wanted[canonical(requirement.name)] = str(requirement.specifier).lstrip('=')
free = {'mmdfkd', 'triton'}
kept = {}
for name, version in installed.items():
    if name not in free and not name.startswith(('nvidia-', 'cuda-')):
        kept[name] = version
sys.exit(kept != wanted)
"""
"""Exits with 0 if exactly the pinned set is installed."""

CHECK = """
import torch
import mmdfkd
import mmdet, mmengine, mmpretrain
from mmcv.ops import get_compiling_cuda_version, nms, roi_align
import mmdet.models

boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0], [9.0, 9.0, 12.0, 12.0]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
assert kept == [0, 2], kept
pooled = roi_align(torch.ones(1, 1, 16, 16), torch.tensor([[0.0, 1.0, 1.0, 9.0, 9.0]]), (2, 2))
assert torch.allclose(pooled, torch.ones(1, 1, 2, 2))
print(f'torch {torch.__version__}, mmcv ops for CUDA {get_compiling_cuda_version()}')
"""

OPS_CHECK = """
import sys
from mmcv.ops import get_compiling_cuda_version, nms
cuda = get_compiling_cuda_version() != 'not available'
sys.exit(cuda != (sys.argv[1] == 'cuda'))
"""
"""Exits with 0 if mmcv has operators, of the kind asked for."""


class SetupError(Exception):
    """A step that failed, with the words for the user."""


class Environment:
    """The virtual environment at one place.

    Args:
        path (Path): Directory of the environment.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log_path = path.with_name(path.name + '.log')
        self.lock_path = path.with_name(path.name + '.lock')
        self.python = path / 'bin' / 'python'
        self.started = time.monotonic()

    @property
    def stamp(self) -> Path:
        """The file that says that this very environment is complete."""
        digest = hashlib.sha256()
        for name in FILES:
            digest.update((REQUIREMENTS / name).read_bytes())
        place = (platform.python_implementation(), platform.machine(), str(self.path))
        digest.update(repr((sys.version_info[:2], place)).encode())
        return self.path / f'.lock-{digest.hexdigest()[:16]}'

    @property
    def stands(self) -> bool:
        """Whether the environment is complete and of the present lock."""
        return self.stamp.is_file() and self.python.exists()

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        print(f'[set-up {_clock(time.monotonic() - self.started)}] {text}', flush=True)

    def run(self, title: str, usual: str, command: list, **variables: str) -> None:
        """Run one step, its output in the log, with a line now and then on how far it is.

        Args:
            title (str): What is being done.
            usual (str): How long it usually takes.
            command (list): The command and its arguments.
            variables (str): Environment variables to add.

        Raises:
            SetupError: If the command fails.
        """
        self.say(f'{title} (usually {usual})')
        env = {**_surroundings(), 'PIP_DISABLE_PIP_VERSION_CHECK': '1', **variables}
        with open(self.log_path, 'ab') as log:
            log.write(f'\n=== {title}: {" ".join(map(str, command))}\n'.encode())
            log.flush()
            # An exception out of a signal handler, inside Popen.wait, can leave its lock held for
            # ever; so the handlers only take note.
            caught = []
            handlers = {
                number: signal.signal(number, lambda *_: caught.append(True))
                for number in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                code = self._follow(title, command, env, log, caught)
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if caught:
            raise KeyboardInterrupt
        if code:
            raise SetupError(f'"{title}" failed with exit code {code}')

    def _follow(self, title: str, command: list, env: dict, log, caught: list) -> int:
        """Run a command to its end, or end it once ``caught`` is filled; its exit code."""
        position = log.tell()
        began = shown = time.monotonic()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None:
            if caught:
                # The whole group: compilers that pip has started would go on for minutes.
                os.killpg(process.pid, signal.SIGTERM)
                break
            time.sleep(0.1)
            now = time.monotonic()
            if now - shown >= REPORT_EVERY:
                shown = now
                self.say(f'  ... {title}: {_clock(now - began)}{self._files(position)}')
        return process.wait()

    def _files(self, position: int) -> str:
        """The compiler's own count of files, if the step compiles."""
        with open(self.log_path, 'rb') as log:
            log.seek(position)
            counts = re.findall(rb'^\s*\[(\d+)/(\d+)\] ', log.read(), re.MULTILINE)
        return f', file {int(counts[-1][0])} of {int(counts[-1][1])}' if counts else ''

    def passes(self, code: str, *arguments: str, log: bool = False) -> bool:
        """Whether a snippet exits with 0 under the environment's Python."""
        command = [str(self.python), '-W', 'ignore', '-c', code, *arguments]
        with open(self.log_path if log else os.devnull, 'ab') as sink:
            result = subprocess.run(
                command, cwd=ROOT, stdout=sink, stderr=sink, env=_surroundings()
            )
        return not result.returncode

    def ask(self, code: str) -> str:
        """What a snippet prints under the environment's Python."""
        command = [str(self.python), '-W', 'ignore', '-c', code]
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=_surroundings()
        )
        return result.stdout.strip()

    def pip(self, title: str, usual: str, *arguments, **variables: str) -> None:
        """Run one ``pip install``."""
        command = [self.python, '-m', 'pip', 'install', '--no-input', *arguments]
        self.run(title, usual, command, **variables)

    def holds_the_lock(self) -> bool:
        """Whether the environment holds exactly the pinned packages, made by hand or by us."""
        files = [str(REQUIREMENTS / name) for name in PINNED]
        return self.python.exists() and self.passes(LISTING, *files)

    def build(self) -> None:
        """Build the environment from nothing.

        Raises:
            SetupError: If a step fails.
        """
        lock = REQUIREMENTS / 'lock.txt'
        constraints = []
        for name in ('build.txt', 'lock.txt', 'cuda.txt'):
            constraints += ['-c', REQUIREMENTS / name]
        self.run(
            'an empty environment', '10 s', [_base_python(), '-m', 'venv', '--clear', self.path]
        )
        self.pip('build tools', '10 s', '--upgrade', '-r', REQUIREMENTS / 'build.txt')
        torch = ('-r', REQUIREMENTS / 'torch.txt', *constraints)
        self.pip('torch and torchvision', '1 min; some GB with CUDA', *torch)
        packages = ('--no-deps', '--no-build-isolation', '-r', lock)
        self.pip('the pinned packages', '2 min', *packages)
        self.build_ops()
        overlay = ('--no-deps', '-r', REQUIREMENTS / 'overlay.txt')
        self.pip('OpenCV without a display', '10 s', *overlay)

    def build_peers(self) -> None:
        """Install what only tests compare with, out of the way of every import."""
        peers = self.path / 'peers'
        shutil.rmtree(peers, ignore_errors=True)
        listed = ('--no-deps', '--target', peers, '-r', REQUIREMENTS / 'peers.txt')
        self.pip('networks for the tests to compare with', '20 s', *listed)

    def build_ops(self) -> None:
        """Install mmcv with its operators, built now or kept by pip from an earlier build.

        pip's cache does not know which torch or CUDA its wheel was built for, so what it gives is
        tried out, and built again if it does not run.
        """
        cuda, reason = self.wants_cuda()
        self.say(f'mmcv operators for {"CUDA and CPU" if cuda else "CPU"}: {reason}')
        variables = {
            'MMCV_WITH_OPS': '1',
            'FORCE_CUDA': str(int(cuda)),
            'MAX_JOBS': os.environ.get('MAX_JOBS') or str(_jobs()),
            # These replace Python's own flags, which ask for debug information: without it the same
            # code compiles in two thirds of the time.
            'CFLAGS': os.environ.get('CFLAGS', COMPILER_FLAGS),
            'CXXFLAGS': os.environ.get('CXXFLAGS', COMPILER_FLAGS),
        }
        if not cuda:
            variables['CUDA_VISIBLE_DEVICES'] = ''
        title = "mmcv's operators"
        usual = '7 min on 2 cores, once; seconds if pip has kept them'
        options = ('-v', '--no-deps', '--no-build-isolation', '-r', REQUIREMENTS / 'mmcv.txt')
        self.pip(title, usual, *options, **variables)
        kind = 'cuda' if cuda else 'cpu'
        if not self.passes(OPS_CHECK, kind, log=True):
            self.say("  the wheel in pip's cache is of another torch: building it anew")
            again = ('--force-reinstall', '--no-cache-dir', *options)
            self.pip(title, '7 min on 2 cores', *again, **variables)
            if not self.passes(OPS_CHECK, kind, log=True):
                raise SetupError(f'mmcv was built, but without working {kind} operators')

    def wants_cuda(self) -> tuple[bool, str]:
        """Whether mmcv's CUDA operators are to be built, and why.

        ``FORCE_CUDA`` in the environment decides; otherwise a CUDA build of torch, a GPU and a
        matching ``nvcc`` are needed.
        """
        forced = os.environ.get('FORCE_CUDA')
        if forced in ('0', '1'):
            return forced == '1', f'FORCE_CUDA={forced}'
        version, _, gpu = self.ask(
            'import torch; print(torch.version.cuda, torch.cuda.is_available())'
        ).partition(' ')
        if version in ('', 'None'):
            return False, 'this torch is built without CUDA'
        if gpu != 'True':
            return False, 'no GPU is visible (FORCE_CUDA=1 builds for CUDA all the same)'
        home = os.environ.get('CUDA_HOME')
        nvcc = os.path.join(home, 'bin', 'nvcc') if home else shutil.which('nvcc')
        if not nvcc or not os.path.exists(nvcc):
            return False, f'no nvcc found: install the CUDA {version} toolkit or set CUDA_HOME'
        output = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
        release = re.search(r'release (\d+)\.', output)
        if release is None or release.group(1) != version.split('.')[0]:
            return False, f'{nvcc} is not of CUDA {version.split(".")[0]}, for which torch is built'
        return True, f'torch for CUDA {version}, {nvcc}'

    def finish(self) -> None:
        """Install the project itself, try everything out and set the stamp.

        Raises:
            SetupError: If what was installed does not run.
        """
        self.build_peers()
        self.pip('mmdfkd itself', '5 s', '--no-deps', '--no-build-isolation', '-e', ROOT)
        self.run(
            'a trial of what was installed', '20 s', [self.python, '-W', 'ignore', '-c', CHECK]
        )
        for old in self.path.glob('.lock-*'):
            old.unlink()
        self.stamp.touch()


def _clock(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def _surroundings() -> dict[str, str]:
    """Environment variables for a step.

    No foreign packages, and one thread: the trials are tiny, and on a busy machine the threads of
    two processes wait for each other for minutes.
    """
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    env.pop('PYTHONPATH', None)
    return env


def _base_python() -> str:
    """The interpreter itself: one that lives in the environment cannot rebuild it."""
    return getattr(sys, '_base_executable', None) or sys.executable


def _jobs() -> int:
    """Compiler processes that processors and memory allow."""
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    )
    try:
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (ValueError, OSError, AttributeError):
        return processors or 1
    return max(1, min(processors or 1, int(memory / JOB_MEMORY)))


def _check_machine() -> None:
    """Name at once what the machine lacks.

    Raises:
        SetupError: If the interpreter is not served by the lock or there is no C++ compiler.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        served = f'{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}'
        raise SetupError(
            f'Python {platform.python_version()} is outside the pinned set (Python {served}): name '
            'another interpreter, for example "make setup PYTHON=python3.11"'
        )
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if not (shutil.which(compiler) or shutil.which('g++')):
        raise SetupError("no C++ compiler found: mmcv's operators need one (package g++ or clang)")


def _locked(environment: Environment):
    """An exclusive lock that the system drops when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = open(environment.lock_path, 'w')  # noqa: SIM115
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        environment.say('another set-up of this environment is at work: waiting for it')
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _interrupted(*_) -> None:
    raise KeyboardInterrupt


def set_up(path: Path) -> None:
    """Make the environment at ``path`` stand.

    Args:
        path (Path): Directory of the environment.

    Raises:
        SetupError: If the machine lacks something or a step fails.
    """
    environment = Environment(path)
    if environment.stands:
        return
    _check_machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(environment)
    try:
        if environment.stands:
            return
        environment.log_path.write_text('')
        try:
            if environment.holds_the_lock():
                environment.say('the environment there holds the pinned packages: kept')
            else:
                environment.say(
                    f'building {path.name} from requirements/, 5 to 12 minutes the first time; '
                    f'log: {environment.log_path.name}'
                )
                environment.build()
            environment.finish()
        except SetupError as error:
            tail = environment.log_path.read_text(errors='replace').splitlines()[-15:]
            raise SetupError(
                '\n'.join(('the log ends with', *(f'    {line}' for line in tail)))
                + f'\n{error}. Read {environment.log_path}, then run the same command again.'
            ) from error
        environment.say('done')
    finally:
        if handle is not None:
            handle.close()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where it stands')
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        set_up(Path(os.path.abspath(parser.parse_args().venv)))
    except SetupError as error:
        print(f'set-up: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('set-up: interrupted; run the same command again', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
