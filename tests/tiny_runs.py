"""Runs of seconds: shipped configs with random teachers and a handful of images."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

import mmdfkd  # noqa: F401
from mmdfkd.distillers import build_network
from mmdfkd.utils.checkpoint import save_tensors

ROOT = Path(__file__).resolve().parents[1]

#: Two steps on next to nothing.
TWO_STEPS = (
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'train_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
    'model.inheritance.images=9',
    # The hooks that look at images ask the teacher about a few.
    'custom_hooks.4.images=2',
    'custom_hooks.4.old=1',
    'custom_hooks.5.images=1',
)
#: The same for a run's images: a pool, or a pool and scenes with objects.
FEW_IMAGES = dict(
    pool=('model.source.pool_size=8', 'model.source.num_workers=0'),
    scenes=(
        'model.source.source.pool_size=8',
        'model.source.source.num_workers=0',
        'model.source.images=2',
        'model.source.batch=2',
        'model.source.starts=8',
    ),
)
NO_VALIDATION = ('val_cfg=None', 'val_dataloader=None', 'val_evaluator=None')


def random_checkpoint(config: str | Path, path: Path) -> Path:
    """Random weights of a config's model, as a published file has them."""
    torch.manual_seed(0)
    net = build_network(Config.fromfile(config))
    net.init_weights()
    for name, parameter in net.named_parameters():
        # Classification heads start at zero: a teacher that says nothing at all.
        if name.startswith('head.') and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    save_tensors(net.state_dict(), path)
    return path


def run_tool(tool: Path, *arguments: str, cwd: Path, options: Sequence[str] = ()) -> str:
    """Run a command-line tool from another folder, on one core; what it printed.

    Raises:
        AssertionError: If it fails.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get('PYTHONPATH')) if p)
    command = [sys.executable, str(tool), *map(str, arguments)]
    if options:
        command += ['--cfg-options', *options]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (
        f'{" ".join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    )
    return done.stdout + done.stderr
