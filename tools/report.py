"""Test a run's teacher and student and write its report: table, pictures, report.json."""

import argparse
import sys
from pathlib import Path

import mmdfkd  # noqa: F401  (first: it makes torchvision importable)
from mmdfkd.utils.launch import Options, fail_clearly, read_config, use_all_cores

# What of --cfg-options concerns the tests; the rest was the training's.
_OF_THE_TESTS = ('test_dataloader', 'test_evaluator', 'test_cfg', 'env_cfg')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, as in the mm toolboxes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="path of the run's config")
    parser.add_argument(
        '--work-dir', help="the run's work directory; ./work_dirs/<config> by default"
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        help='override settings: key=value; those the run was trained with may be given again',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Write the report; its table is the last thing printed."""
    args = parse_args(argv)
    use_all_cores()
    options = args.cfg_options or {}
    cfg = read_config(args.config)
    cfg.merge_from_dict(options)
    work_dir = args.work_dir or cfg.get('work_dir') or Path('work_dirs') / Path(args.config).stem

    from mmdfkd.evaluation import FinishedRun
    from mmdfkd.visualization import write_report

    tests = {key: value for key, value in options.items() if key.split('.')[0] in _OF_THE_TESTS}
    write_report(FinishedRun(Path(work_dir), args.config), tests)


if __name__ == '__main__':
    sys.exit(fail_clearly(main))
