"""Test a checkpoint: a student with its run's config or with its own, or any other model."""

import argparse
import sys
from pathlib import Path

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import Options, fail_clearly, init_cpu_group, read_config, use_all_cores
from mmdfkd.utils.set_files import check_set_files


def parse_args() -> argparse.Namespace:
    """Read the command line, as in the mm toolboxes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help="a run's checkpoint, student.pth, or any other")
    parser.add_argument(
        '--work-dir', help='where the log goes; ./work_dirs/<config>/test by default'
    )
    parser.add_argument('--out', help='dump predictions to this pickle')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, help='override settings: key=value'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Build the Runner and test."""
    args = parse_args()
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise FileNotFoundError(f'There is no checkpoint {args.checkpoint}.')
    use_all_cores()
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = args.work_dir or str(
        Path(cfg.get('work_dir') or Path('work_dirs') / Path(args.config).stem) / 'test'
    )
    cfg.load_from, cfg.resume = None, False
    if args.out:
        if not args.out.endswith(('.pkl', '.pickle')):
            raise ValueError('--out must end in .pkl or .pickle.')
        if cfg.get('test_evaluator') is None:
            raise ValueError(f'--out: {args.config} has no test_evaluator to dump predictions by.')
        evaluators = (
            cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        )
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.out)]
    check_set_files(cfg, 'test')
    init_cpu_group(cfg)

    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    from mmdfkd.utils.label_order import check_label_order
    from mmdfkd.utils.load_weights import load_to_test

    runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    if load_to_test(runner.model, args.checkpoint):
        # Again by mmengine, whose hooks (of averaged weights, say) have their part in it.
        runner._load_from = args.checkpoint
    check_label_order(runner.test_loop)
    runner.test()


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
