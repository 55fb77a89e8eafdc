"""Test a network as mm users do, with mmengine's Runner, but quietly and without clutter."""

import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmdfkd.utils.key_report import load_strict
from mmdfkd.utils.label_order import check_label_order
from mmdfkd.utils.load_weights import read_weights
from mmdfkd.utils.set_files import check_set_files, only_formats


@dataclass
class Tested:
    """A network that was tested, and on what.

    Attributes:
        cfg: Its whole config.
        net: The network with its weights, in eval mode.
        dataset: Its test set.
        metrics: What the evaluator returned; empty where it was only loaded.
    """

    cfg: Config
    net: nn.Module
    dataset: Any
    metrics: dict[str, float]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the test set's classes; empty where it has none."""
        return tuple((getattr(self.dataset, 'metainfo', None) or {}).get('classes') or ())


@contextlib.contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what is printed and logged meanwhile to a file.

    mmengine's loggers outlive their runner and keep the stream they were made with: those are
    closed or sent to the terminal afterwards.
    """
    from mmengine.logging import MMLogger

    log.parent.mkdir(parents=True, exist_ok=True)
    before = set(MMLogger._instance_dict)
    with (
        log.open('w', encoding='utf-8') as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        try:
            yield
        finally:
            for name, logger in MMLogger._instance_dict.items():
                for handler in list(logger.handlers) if name not in before else ():
                    if isinstance(handler, logging.FileHandler):
                        handler.close()
                        logger.handlers.remove(handler)
                    elif getattr(handler, 'stream', None) is stream:
                        handler.setStream(sys.__stdout__)


def _test_only(cfg: Config, work_dir: str, options: Mapping[str, Any] | None) -> Config:
    cfg = cfg.copy()
    if options:
        cfg.merge_from_dict(dict(options))
    for split in ('train', 'val'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{split}_{part}', None)
    for key in (
        'optim_wrapper',
        'param_scheduler',
        'auto_scale_lr',
        'custom_hooks',
        'default_hooks',
    ):
        cfg.pop(key, None)
    cfg.work_dir = work_dir
    cfg.launcher = 'none'
    cfg.load_from = None
    cfg.resume = False
    cfg.test_cfg = cfg.get('test_cfg') or dict(type='TestLoop')
    # Neither files nor a user's remote experiment trackers.
    cfg.visualizer = dict(type='Visualizer', vis_backends=[])
    if 'persistent_workers' in cfg.get('test_dataloader', {}):
        cfg.test_dataloader.persistent_workers = False
    # mmengine keeps loggers and scopes by this name, for the life of the process.
    cfg.experiment_name = f'report_{time.time_ns()}'
    return cfg


def load_network(
    config: str | Path | Config,
    checkpoint: str | Path,
    log: Path,
    options: Mapping[str, Any] | None = None,
) -> Tested:
    """Build a network with its weights and its test set, as :func:`test_network`, without testing.

    Its arguments and errors are those.
    """
    return _load(config, checkpoint, log, options, test=False)


def test_network(
    config: str | Path | Config,
    checkpoint: str | Path,
    log: Path,
    options: Mapping[str, Any] | None = None,
) -> Tested:
    """Run ``Runner.test()`` on a whole config and a checkpoint.

    Args:
        config (str | Path | Config): The network's whole config, with ``test_dataloader`` and
            ``test_evaluator``.
        checkpoint (str | Path): Its weights; every key must match.
        log (Path): File for everything that is printed meanwhile; nothing else is left on disk.
        options (Mapping, optional): Dotted keys to change in the config, as ``--cfg-options`` does.

    Raises:
        KeyError: If the config has no test set.
        FileNotFoundError: If a file or folder of that set is missing.
        ValueError: If it numbers its labels in another order than the classes have, or scores
            nothing.
        CheckpointMismatchError: If the weights are not the network's.
    """
    return _load(config, checkpoint, log, options, test=True)


def _load(
    config: str | Path | Config,
    checkpoint: str | Path,
    log: Path,
    options: Mapping[str, Any] | None,
    test: bool,
) -> Tested:
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise KeyError(f'{cfg.filename or "The config"} has no test_dataloader and test_evaluator.')
    tested = _test_only(cfg, '', options)
    if test and only_formats(tested.test_evaluator):
        raise ValueError(
            'The test evaluator has format_only=True: it writes files and scores nothing. Take one '
            'with annotations, such as that of the validation set.'
        )
    check_set_files(tested, 'test')
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=log.parent, prefix='.test_') as folder, output_to(log):
        runner = Runner.from_cfg(_test_only(cfg, folder, options))
        weights = read_weights(checkpoint, runner.model)
        load_strict(runner.model, weights, what=str(checkpoint))
        check_label_order(runner.test_loop)
        metrics = runner.test() if test else None
        runner.model.eval()
        return Tested(cfg, runner.model, runner.test_loop.dataloader.dataset, dict(metrics or {}))


# pytest collects names that start with `test` wherever they are imported.
test_network.__test__ = False
