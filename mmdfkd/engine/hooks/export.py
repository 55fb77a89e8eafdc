import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_world_size, master_only
from mmengine.hooks import Hook

from mmdfkd.distillers import DataFreeDistiller, model_config, scope_of
from mmdfkd.registry import HOOKS
from mmdfkd.utils.checkpoint import save_tensors
from mmdfkd.utils.data_audit import DataAudit
from mmdfkd.utils.run_files import (
    RUN,
    SAMPLES,
    STUDENT,
    STUDENT_CONFIG,
    STUDENT_START,
    TEACHER_CONFIG,
    project_commit,
    write_json,
)

from .distill import distiller_of, unwrapped
from .image_quality import QUALITY
from .student_ema import averaged_student

_SAMPLES = 36


def _plain(value):
    """Config values without a Config's own types, for a file that is read back."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    return value


def _uses_own_models(value) -> bool:
    if isinstance(value, dict):
        return any(_uses_own_models(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(_uses_own_models(v) for v in value)
    return isinstance(value, str) and value.startswith('mmdfkd.')


def ordinary_config(own: Config, run: Config) -> Config:
    """A config with which mmdet or mmpretrain alone runs a network on the run's own test set.

    ``mmdfkd.models`` is imported only where the architecture is ours.

    Args:
        own (Config): The network's whole config.
        run (Config): The run's.
    """
    cfg = dict(model=_plain(model_config(own)), default_scope=scope_of(own))
    imports = (own.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    imports = [name for name in imports if name.split('.')[0] != 'mmdfkd']
    if _uses_own_models(cfg['model']):
        imports.append('mmdfkd.models')
    if imports:
        cfg['custom_imports'] = dict(imports=imports, allow_failed_imports=False)
    for key in ('test_dataloader', 'test_evaluator', 'test_pipeline', 'env_cfg'):
        if run.get(key) is not None:
            cfg[key] = _plain(run[key])
    if 'test_dataloader' in cfg:
        cfg['test_cfg'] = dict(type='TestLoop')
        # mm's demos and inferencers read the pipeline here.
        cfg.setdefault('test_pipeline', cfg['test_dataloader']['dataset'].get('pipeline', []))
    # Without one mmdet's inferencer does not start.
    kind = {'mmpretrain': 'UniversalVisualizer'}.get(cfg['default_scope'], 'DetLocalVisualizer')
    cfg['visualizer'] = dict(
        type=kind, vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
    )
    cfg['load_from'] = None
    cfg['work_dir'] = None
    return Config(cfg)


def class_names(runner) -> list[str]:
    """Class names of the validation or else the training set; empty where neither says."""
    loops = [runner.val_loop] if runner._val_loop is not None else []
    for loop in (*loops, runner.train_loop):
        meta = getattr(unwrapped(loop.dataloader.dataset), 'metainfo', None) or {}
        if meta.get('classes'):
            return list(meta['classes'])
    return []


def _teacher_facts(distiller: DataFreeDistiller) -> dict:
    """Where the teacher's weights or stored labels are, and what both networks are fed."""
    teacher = distiller.teacher
    kind = 'teacher_labels' if teacher.replayed else 'teacher_checkpoint'
    return {
        kind: str(teacher.checkpoint),
        'input_order': teacher.input_order,
        'student_input_order': distiller.student_input_order,
    }


@HOOKS.register_module()
class StudentExportHook(Hook):
    """Leaves an ordinary student, and what the report needs, in the work directory.

    ``student.pth`` (tensors only; the moving average where the run has an EMA hook) with
    ``student_config.py``; ``student_start.pth``, the student
    before any step; ``teacher_config.py``; a few synthetic images; ``run.json``.
    """

    # After the last checkpoint is written.
    priority = 'LOWEST'

    def before_run(self, runner) -> None:
        """The clock of the whole run: inheriting and preparing the source count."""
        self._began = time.time()
        self._before = 0.0
        self._synthesised_before = 0.0

    @master_only
    def before_train(self, runner) -> None:
        """Keep the student as it starts."""
        self._export_configs(runner)
        if not distiller_of(runner).resuming:
            self._export(runner, STUDENT_START)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Seconds so far, all and those of the synthesis: a resumed run adds to them."""
        checkpoint.setdefault('dfkd_state', {})['seconds'] = self._seconds()
        checkpoint['dfkd_state']['synthesis_seconds'] = self._synthesis_seconds(runner)
        checkpoint['dfkd_state']['inheritance'] = self._inheritance(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Go on from the seconds and the inheritance of the interrupted run."""
        if runner._resume:
            state = checkpoint.get('dfkd_state', {})
            self._before = state.get('seconds', 0.0)
            self._synthesised_before = state.get('synthesis_seconds', 0.0)
            self._inherited = state.get('inheritance')

    _inherited: dict | None = None

    def _inheritance(self, runner) -> dict | None:
        """What was inherited, by this process or before an interruption."""
        report = distiller_of(runner).inheritance_report
        return self._inherited if report is None else report.to_dict()

    def _seconds(self) -> float:
        return self._before + time.time() - self._began

    def _synthesis_seconds(self, runner) -> float:
        """Seconds of preparing and refreshing the source; a resumed run prepares it again."""
        return self._synthesised_before + distiller_of(runner).synthesis_seconds

    def after_train(self, runner) -> None:
        """Write the student and the facts of the run."""
        read = torch.tensor(DataAudit.install_once().images_read)
        if get_world_size() > 1:
            read = read.to(next(runner.model.parameters()).device)
            all_reduce(read)
        self._finish(runner, int(read))

    @master_only
    def _finish(self, runner, images_read: int) -> None:
        seconds = self._seconds()
        distiller = distiller_of(runner)
        # What was validated, where the weights are averaged.
        self._export(runner, STUDENT, averaged_student(runner))
        self._export_samples(runner)
        cfg = runner.cfg
        quality = runner.message_hub.get_info(QUALITY)
        write_json(
            Path(runner.work_dir) / RUN,
            dict(
                **_teacher_facts(distiller),
                seed=runner.seed,
                steps=runner.iter,
                seconds=round(seconds, 1),
                synthesis_seconds=round(self._synthesis_seconds(runner), 1),
                threads=torch.get_num_threads(),
                train_images_read=images_read,
                data_free=distiller.data_free,
                init=distiller.init,
                uses_external_weights=distiller.init not in ('inherit', 'random'),
                source=_plain(cfg.model['source']),
                commit=project_commit(),
                config=Path(cfg.filename or '').name,
                command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                inheritance=self._inheritance(runner),
                dataset_classes=class_names(runner),
                **({} if quality is None else {QUALITY: quality}),
                finished=True,
            ),
        )
        runner.logger.info(f'Student exported to {Path(runner.work_dir) / STUDENT}')

    def _export(self, runner, name: str, weights: Mapping | None = None) -> None:
        weights = distiller_of(runner).student.net.state_dict() if weights is None else weights
        state = {k: v.detach().cpu().clone() for k, v in weights.items()}
        meta = dict(seed=runner.seed, iter=runner.iter)
        classes = class_names(runner)
        if classes:
            meta['dataset_meta'] = dict(classes=classes)
        save_tensors(state, Path(runner.work_dir) / name, meta)

    def _export_configs(self, runner) -> None:
        distiller = distiller_of(runner)
        for cfg, name in (
            (distiller.student_cfg, STUDENT_CONFIG),
            (distiller.teacher.cfg, TEACHER_CONFIG),
        ):
            ordinary_config(cfg, runner.cfg).dump(Path(runner.work_dir) / name)

    def _export_samples(self, runner) -> None:
        distiller = distiller_of(runner)
        if not distiller.data_free:
            return
        dataset = runner.train_loop.dataloader.dataset
        # Indices after the last step: what the source would draw next.
        first = runner.iter * runner.train_loop.dataloader.batch_size * get_world_size()
        images, _ = distiller.source.draw([dataset[first + i] for i in range(_SAMPLES)])
        images = (images.cpu() * 255).round().to(torch.uint8)
        save_tensors(dict(images=images), Path(runner.work_dir) / SAMPLES, {})
