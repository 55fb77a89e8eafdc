"""What can be told of a run before its first image is made, and would be wrong silently."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler

from mmdfkd.adapters import delivered_order
from mmdfkd.datasets import GlobalIndexSampler
from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.synthesis.sources import DatasetSource


def check_loop(runner) -> None:
    """Loop, sampler, schedules and checkpoints have to count the same things.

    Raises:
        ValueError: For epochs of images that never end, a schedule that never steps, or batches
            that are grouped by what synthetic images do not have.
    """
    loader = runner.train_dataloader
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    if by_epoch and isinstance(loader.sampler, GlobalIndexSampler):
        raise ValueError(
            'The training loop counts epochs, and synthetic images have none: the first would '
            "never end. Set train_cfg=dict(type='IterBasedTrainLoop', max_iters=..., "
            'val_interval=...).'
        )
    grouped = type(loader.batch_sampler)
    if grouped is not BatchSampler and not hasattr(loader.dataset, 'get_data_info'):
        raise ValueError(
            f'train_dataloader.batch_sampler is a {grouped.__name__}, which asks for the sizes of '
            "real images: set it to None (or give the train_dataloader with '_delete_=True')."
        )
    if not isinstance(runner.train_loop, IterBasedTrainLoop):
        return
    for scheduler in _schedulers(runner.param_schedulers):
        if scheduler.by_epoch:
            raise ValueError(
                f'A {type(scheduler).__name__} of param_scheduler counts epochs, and the run '
                'counts iterations: it would never step. Set by_epoch=False, with begin, end and '
                'milestones in iterations.'
            )
    savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    if savers and all(hook.by_epoch for hook in savers):
        runner.logger.warning(
            'The CheckpointHook counts epochs, and the run counts iterations: nothing is saved '
            'before its end, so that it cannot be resumed. Set '
            "default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, "
            'interval=...)).'
        )


def check_start(runner) -> None:
    """The student's start is the distiller's, which says in the report what it is.

    Raises:
        ValueError: If ``load_from`` would replace it.
    """
    if runner._load_from and not runner._resume:
        raise ValueError(
            f'load_from={runner._load_from!r} would replace the start that the run has made and '
            'reported. To start a student from a file, set model.student.init to it; to go on with '
            'a run, --resume.'
        )


def check_channel_order(distiller: DataFreeDistiller, runner) -> None:
    """Networks are distilled in the channel order that they are tested in.

    An ``input_order`` that is given is taken as it is.

    Raises:
        ValueError: If a network's own config loads images in another order than the run's sets, or
            the training set in another than its source is told.
    """
    found = delivered_order(dict(train_dataloader=runner.cfg.get('train_dataloader')))
    for part in distiller.source.modules():
        if isinstance(part, DatasetSource) and found not in (None, part.order):
            raise ValueError(
                f'train_dataloader delivers {found.upper()} images, and the DatasetSource takes '
                f"them for {part.order.upper()}: set its order to '{found}'."
            )
    networks = dict(
        teacher=(distiller.teacher.input_order, distiller.teacher.cfg),
        student=(distiller.student_input_order, distiller.student_cfg),
    )
    for name, (given, cfg) in networks.items():
        own = delivered_order(cfg)
        for split in ('val', 'test'):
            key = f'{split}_dataloader'
            found = delivered_order({key: runner.cfg.get(key)})
            if given == 'auto' and own is not None and found not in (None, own):
                raise ValueError(
                    f"{key} delivers {found.upper()} images and those of the {name}'s own config "
                    f'are {own.upper()}: it would be distilled in one channel order and tested in '
                    f'the other. Let both deliver one order, or set model.{name}.input_order.'
                )


def _schedulers(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = value.values()
    for item in value or ():
        if isinstance(item, list | tuple):
            yield from item
        else:
            yield item
