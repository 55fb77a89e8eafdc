"""Train any config: a teacher with labels, or a student without data."""

import argparse
import sys
from pathlib import Path

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import (
    Options,
    fail_clearly,
    init_cpu_group,
    read_config,
    set_amp,
    use_all_cores,
)
from mmdfkd.utils.run_files import refuse_foreign_checkpoints
from mmdfkd.utils.set_files import check_set_files


def parse_args() -> argparse.Namespace:
    """Read the command line: as in the mm toolboxes, and ``--overwrite``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--work-dir', help='where logs and checkpoints go; ./work_dirs/<config> by default'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        type=str,
        const='auto',
        help='go on from the given checkpoint, or from the latest in the work directory',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help="replace another run's checkpoints"
    )
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision, for every optimiser of the run'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='override settings: key=value'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Build the Runner and train."""
    args = parse_args()
    use_all_cores()
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if args.overwrite:
        cfg.overwrite = True
    if args.resume == 'auto':
        cfg.resume, cfg.load_from = True, None
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    if args.amp:
        set_amp(cfg.get('optim_wrapper') or {})
    if args.auto_scale_lr:
        if not cfg.get('auto_scale_lr'):
            raise KeyError(
                f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {args.config}.'
            )
        cfg.auto_scale_lr['enable'] = True
    check_set_files(cfg, 'train', 'val')
    # Before the Runner writes its config over the other run's.
    if cfg.get('overwrite') and not cfg.get('resume'):
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='mmdfkd.OverwriteHook')]
    elif not cfg.get('resume'):
        refuse_foreign_checkpoints(cfg.work_dir)
    init_cpu_group(cfg)

    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    runner.train()


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
