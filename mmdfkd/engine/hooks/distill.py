"""What ties a distiller to the run it is trained in."""

import random
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import find_latest_checkpoint
from mmengine.runner.base_loop import BaseLoop

from mmdfkd.datasets import SyntheticDataset
from mmdfkd.distillers import DataFreeDistiller
from mmdfkd.registry import HOOKS
from mmdfkd.utils.label_order import check_label_order
from mmdfkd.utils.run_files import SYNTHETIC, refuse_foreign_checkpoints

from ..classes import check_classes, declared_classes, declared_metainfo, recorded_classes
from ..distributed import DistributedDistiller
from ..run_checks import check_channel_order, check_loop, check_start
from .banks import BankHook
from .overwrite import OverwriteHook

_STATE = 'dfkd_state'


def distiller_of(runner) -> DataFreeDistiller:
    """The distiller of a run, unwrapped.

    Raises:
        TypeError: If the run trains something else.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, DataFreeDistiller):
        raise TypeError(
            f'This hook serves a DataFreeDistiller; the run trains a {type(model).__name__}.'
        )
    return model


def unwrapped(dataset):
    """The dataset inside wrappers such as ``RepeatDataset``."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """A 32-bit seed that differs for every step and rank."""
    return int(np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0])


def seed_everything(seed: int, iteration: int, rank: int) -> None:
    """Seed every global generator for one step of one process."""
    value = step_seed(seed, iteration, rank)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def will_resume(runner) -> bool:
    """Whether the run goes on from a checkpoint.

    ``resume`` without ``load_from`` starts afresh where the work directory has none: mmengine's
    rule, by which one command serves every restart of a job.
    """
    if not runner._resume:
        return False
    if runner._load_from is not None or find_latest_checkpoint(runner.work_dir) is not None:
        return True
    runner.logger.warning(f'Nothing to resume from in {runner.work_dir}: the run starts afresh.')
    return False


@HOOKS.register_module()
class DistillHook(BankHook, OverwriteHook):
    """Checks a run before its first step, seeds every step, keeps the state beside the student.

    All global generators are seeded from ``(seed, iteration, rank)`` at the start of every step, so
    drop path and third-party code behave alike in a resumed run, and validation changes nothing.
    A checkpoint names the banks' images of all processes, and what no checkpoint needs is deleted
    (:class:`.banks.BankHook`).
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner) -> None:
        """Check what can be checked and tell the distiller what its start depends on.

        Raises:
            ValueError: For real images in a data-free run, other classes, an image size that a
                network cannot take, loops and schedules that do not fit, another channel order, or
                ``load_from`` without ``resume``.
            RuntimeError: For a work directory with another run's checkpoints, or a wrapper that
                never calls the distiller's step.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return  # testing
        distiller = distiller_of(runner)
        check_start(runner)
        check_loop(runner)
        check_channel_order(distiller, runner)
        resuming = will_resume(runner)
        if not (runner._resume or runner.cfg.get('overwrite')):
            refuse_foreign_checkpoints(runner.work_dir)
        dataset = unwrapped(runner.train_dataloader.dataset)
        self._check_wrapper(runner)
        self._check_dataset(distiller, dataset)
        self._check_source(distiller)
        self._check_classes(distiller, runner)
        distiller.seed = runner.seed
        distiller.image_size = self._image_size(distiller, dataset)
        distiller.resuming = resuming
        steps = runner.max_iters * get_world_size()
        distiller.samples = steps * (runner.train_dataloader.batch_size or 1)
        distiller.folder = Path(runner.work_dir) / SYNTHETIC
        self._check_size(distiller)
        # The start depends on the seed alone, not on what was built before.
        seed_everything(runner.seed, 0, 0)

    @staticmethod
    def _image_size(distiller: DataFreeDistiller, dataset) -> tuple[int, int]:
        """Height and width of the images that the student is trained on."""
        if isinstance(dataset, SyntheticDataset):
            return dataset.image_size
        first = dataset[0]
        if isinstance(first, dict) and torch.is_tensor(first.get('inputs')):
            return tuple(first['inputs'].shape[-2:])
        return distiller.default_image_size

    @staticmethod
    def _check_wrapper(runner) -> None:
        if is_model_wrapper(runner.model) and not isinstance(runner.model, DistributedDistiller):
            raise RuntimeError(
                f"A {type(runner.model).__name__} never calls the distiller's step. Set "
                "model_wrapper_cfg=dict(type='mmdfkd.DistributedDistiller'), as "
                'configs/_base_/dfkd_runtime.py does.'
            )

    @staticmethod
    def _check_dataset(distiller: DataFreeDistiller, dataset) -> None:
        if distiller.data_free and not isinstance(dataset, SyntheticDataset):
            raise ValueError(
                f'The training dataset is a {type(dataset).__name__}, which reads real images, and '
                'the run is data-free. Use mmdfkd.SyntheticDataset, or set model.data_free=False '
                'to measure a ceiling (the report will say so).'
            )

    @staticmethod
    def _check_source(distiller: DataFreeDistiller) -> None:
        parts = distiller.source.modules()
        readers = [type(part).__name__ for part in parts if getattr(part, 'reads_images', False)]
        if distiller.data_free and readers:
            raise ValueError(
                f'{readers[0]} trains on image files, and the run is data-free. Set '
                'model.data_free=False (the report will say so), or use a source that makes its '
                'own images.'
            )

    @staticmethod
    def _check_classes(distiller: DataFreeDistiller, runner) -> None:
        count = distiller.teacher.adapter.num_classes
        sets = {'training': runner.train_dataloader}
        if runner._val_loop is not None:
            check_label_order(runner.val_loop)
            sets['validation'] = runner.val_loop.dataloader
        teacher = distiller.teacher
        known = declared_classes(teacher.cfg, count)
        if known is None and not teacher.replayed:
            known = recorded_classes(str(teacher.checkpoint), count)
        for name, loader in sets.items():
            meta = getattr(loader.dataset, 'metainfo', None) or {}
            check_classes(f'the {name} dataset', meta.get('classes'), count, known)
        # Not built before it is tested.
        declared = declared_metainfo(runner.cfg, 'test').get('classes')
        check_classes('the test dataset', declared, count, known)
        own = declared_classes(distiller.student_cfg, count)
        check_classes("the student's config", own, count, known)

    @staticmethod
    def _check_size(distiller: DataFreeDistiller) -> None:
        device = next(distiller.student.parameters()).device
        image = torch.zeros(1, 3, *distiller.image_size, device=device)
        networks = dict(teacher=distiller.teacher.adapter, student=distiller.student.adapter)
        for name, adapter in networks.items():
            training = adapter.net.training
            adapter.net.eval()
            try:
                with torch.no_grad():
                    adapter.encode(image)
            except Exception as error:
                raise ValueError(
                    f'The {name} cannot take images of {distiller.image_size} px: {error}'
                ) from error
            finally:
                adapter.net.train(training)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Seed every global generator for this step."""
        super().before_train_iter(runner, batch_idx, data_batch)
        seed_everything(runner.seed, runner.iter + 1, get_rank())
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
            raise ValueError(
                "The checkpoint to resume from has no 'dfkd_state': it is a plain student. Use "
                'load_from, or init=<path>.'
            )
        if state['threads'] != torch.get_num_threads():
            runner.logger.warning(
                f'The run was started with {state["threads"]} threads and goes on with '
                f'{torch.get_num_threads()}: it will not be bit-equal.'
            )
        distiller = distiller_of(runner)
        # The Runner goes on with the checkpoint's seed, whatever the config says.
        distiller.seed = state['seed']
        distiller.resume(state)
