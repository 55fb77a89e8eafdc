"""What ties a distiller to the run it is trained in."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.datasets import SyntheticDataset
from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.registry import HOOKS
from mmdfkd.utils.run_files import refuse_foreign_checkpoints

_STATE = 'dfkd_state'


def distiller_of(runner) -> DataFreeDistiller:
    """The distiller of a run, unwrapped.

    Raises:
        TypeError: If the run trains something else.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, DataFreeDistiller):
        raise TypeError(f'This hook serves a DataFreeDistiller; the run trains a {type(model).__name__}.')
    return model


def unwrapped(dataset):
    """The dataset inside wrappers such as ``RepeatDataset``."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """A 32-bit seed that differs for every step and rank."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0])


@HOOKS.register_module()
class DistillHook(Hook):
    """Checks a run before its first step, seeds every step, and keeps the state beside the student.

    All global generators are seeded from ``(seed, iteration, rank)`` at the start of every step, so drop path and
    third-party code behave alike in a resumed run, and validation changes nothing.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Check what can be checked and tell the distiller what its start depends on.

        Raises:
            ValueError: For a training set with real images, other classes, or an image size that a network cannot take.
            RuntimeError: For a work directory with another run's checkpoints.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        distiller = distiller_of(runner)
        resume = bool(runner._resume)
        refuse_foreign_checkpoints(runner.work_dir, resume=resume, overwrite=bool(runner.cfg.get('overwrite', False)))
        dataset = unwrapped(runner.train_dataloader.dataset)
        self._check_dataset(distiller, dataset)
        self._check_classes(distiller, runner)
        distiller.seed = runner.seed
        distiller.image_size = getattr(dataset, 'image_size', None) or distiller.default_image_size
        distiller.resuming = resume
        self._check_size(distiller)

    @staticmethod
    def _check_dataset(distiller: DataFreeDistiller, dataset) -> None:
        if distiller.data_free and not isinstance(dataset, SyntheticDataset):
            raise ValueError(
                f'The training dataset is a {type(dataset).__name__}, which reads real images, and the run is data-free. Use '
                'mmdfkd.SyntheticDataset, or set model.data_free=False to measure a ceiling (the report will say so).'
            )

    @staticmethod
    def _check_classes(distiller: DataFreeDistiller, runner) -> None:
        loop = runner.val_loop if runner._val_loop is not None else None
        meta = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        classes = (getattr(meta, 'metainfo', None) or {}).get('classes')
        count = distiller.teacher.adapter.num_classes
        if classes is not None and len(classes) != count:
            raise ValueError(f'The teacher has {count} classes and the validation dataset {len(classes)}: {tuple(classes)[:12]}.')

    @staticmethod
    def _check_size(distiller: DataFreeDistiller) -> None:
        image = torch.zeros(1, 3, *distiller.image_size, device=next(distiller.student.parameters()).device)
        for name, adapter in (('teacher', distiller.teacher.adapter), ('student', distiller.student.adapter)):
            training = adapter.net.training
            adapter.net.eval()
            try:
                with torch.no_grad():
                    adapter.encode(image)
            except Exception as error:
                raise ValueError(f'The {name} cannot take images of {distiller.image_size} px: {error}') from error
            finally:
                adapter.net.train(training)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Seed every global generator for this step."""
        seed = step_seed(runner.seed, runner.iter, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        distiller_of(runner).iteration = runner.iter

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Put heads, source and thread count beside the plain student."""
        state = checkpoint.setdefault(_STATE, {})
        state.update(distiller_of(runner).distill_state())
        # Bits differ between thread counts.
        state['threads'] = torch.get_num_threads()
        state['seed'] = runner.seed

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """On resume, restore heads and source.

        Raises:
            ValueError: If the file is no checkpoint of a distillation run.
        """
        if not runner._resume:
            return
        state = checkpoint.get(_STATE)
        if state is None:
            raise ValueError("The checkpoint to resume from has no 'dfkd_state': it is a plain student. Use load_from, or init=<path>.")
        if state['threads'] != torch.get_num_threads():
            runner.logger.warning(
                f'The run was started with {state["threads"]} threads and goes on with {torch.get_num_threads()}: it will not be bit-equal.'
            )
        distiller_of(runner).load_distill_state(state)
