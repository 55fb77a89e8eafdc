"""What a bug report needs: ``python -m mmdfkd.utils.collect_env``."""

import os
import subprocess
from pathlib import Path

import mmdfkd

from .compatibility import installed_toolboxes, untested_message
from .torchvision_ops import ensure_nms_schema


def collect_env() -> dict[str, str]:
    """Collect what is known of the environment.

    Whatever cannot be found out is said so in its place: a broken environment is what this is for.

    Returns:
        dict[str, str]: mmengine's own report, then the toolboxes, mmcv's operators, threads and the
        state of this project, in the order in which they are to be printed.
    """
    info = {'mmdfkd': mmdfkd.__version__, 'mmdfkd commit': git_commit()}
    info.update(_mmengine_report())
    toolboxes = installed_toolboxes()
    info.update(toolboxes or {'toolboxes': 'none installed'})
    info['tested with these versions'] = untested_message(toolboxes) or 'yes'
    info['mmcv operators'] = mmcv_operators()
    info['torchvision operators'] = (
        'absent; their schemas are declared by mmdfkd' if ensure_nms_schema() else 'left alone'
    )
    info['threads'] = _threads()
    return {key: str(value) for key, value in info.items()}


def git_commit() -> str:
    """Commit of the working tree that the package is run from, marked if tracked files differ."""
    root = Path(mmdfkd.__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ('git', '-C', str(root), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        if Path(git('rev-parse', '--show-toplevel')).resolve() != root:
            return 'not run from a git working tree'
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + (' with local changes' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return 'not run from a git working tree'


def mmcv_operators() -> str:
    """Whether mmcv's compiled operators can be loaded, and what for they were built."""
    try:
        from mmcv.ops import get_compiler_version, get_compiling_cuda_version
    except Exception as error:  # A broken extension raises more than ImportError.
        return f'not available ({type(error).__name__}: {error})'
    return f'compiler {get_compiler_version()}, CUDA {get_compiling_cuda_version()}'


def _mmengine_report() -> dict:
    try:
        from mmengine.utils.dl_utils import collect_env as report

        return report()
    except Exception as error:  # It asks compilers and drivers, any of which may be broken.
        return {'mmengine report': f'not available ({type(error).__name__}: {error})'}


def _threads() -> str:
    parts = [f'{os.cpu_count()} processors']
    try:
        import torch

        parts.append(f'torch uses {torch.get_num_threads()}')
    except ImportError:
        parts.append('torch is not installed')
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        parts.append(f'{name}={os.environ.get(name, "unset")}')
    return ', '.join(parts)


def main() -> None:
    """Print the report, one field a line."""
    for key, value in collect_env().items():
        print(f'{key}: {value}')


if __name__ == '__main__':
    main()
