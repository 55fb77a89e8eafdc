"""The distiller: one training step, and nothing else."""

import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmdfkd.adapters import Normalizer
from mmdfkd.inheritance import InheritanceReport, inherit
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import SyntheticSource
from mmdfkd.utils.checkpoint import unwrap_state_dict
from mmdfkd.utils.data_audit import DataAudit
from mmdfkd.utils.key_report import check_keys, load_strict

from .networks import build_network
from .student import Student
from .student_spec import STARTS, student_config
from .teacher import Teacher

_NET = 'student.net.'


class NonFiniteLossError(FloatingPointError):
    """A loss term is not a finite number; nothing was updated with it."""


@MODELS.register_module()
class DataFreeDistiller(BaseModel):
    """Distils a frozen teacher into a student on synthetic images.

    To the toolbox it is the student: its ``state_dict`` holds the plain student's keys, and testing runs the plain
    student on ordinary data. ``mmdfkd.DistillHook`` gives it seed, iteration and image size.

    Args:
        teacher (Mapping): ``config`` (path, ``'mmdet::...'``, or inline), ``checkpoint``, optionally ``input_order``.
        student (Mapping): ``type='mmdfkd.Shrunk'`` with ``width`` and ``depth``, or ``config``; and ``init``: ``'inherit'``
            (from the teacher, the default), ``'random'``, ``'config'`` (its own ``init_cfg``; reported as using external
            weights) or the path of a checkpoint.
        heads (Sequence[Mapping]): Distill heads.
        source (Mapping): Where the images come from.
        inheritance (Mapping, optional): ``method`` (``'slice'`` or ``'select'``), ``images`` (how many synthetic images
            the statistics are taken on, 512) and ``renderer`` (the procedural renderer).
        data_free (bool): False allows a training dataset with real images, which the report then states. It is how
            the ceiling is measured. Defaults to True.
        image_size (int | Sequence[int]): Size of the blank image with which the widths of aligners are
            found; any size both networks take. Defaults to 64.
        data_preprocessor (Mapping, optional): Overrides the student's own.

    Raises:
        ValueError: If teacher and student have different classes or are of different families.
    """

    def __init__(
        self,
        teacher: Mapping,
        student: Mapping,
        heads: Sequence[Mapping],
        source: Mapping,
        inheritance: Mapping | None = None,
        data_free: bool = True,
        image_size: int | Sequence[int] = 64,
        data_preprocessor: Mapping | nn.Module | None = None,
    ) -> None:
        # From here on, whatever is read is counted.
        self_audit = DataAudit.install()
        self_teacher = Teacher(**teacher)
        spec = dict(student)
        init = spec.pop('init', 'inherit')
        cfg = student_config(spec, self_teacher.cfg)
        net = build_network(cfg, keep_init=init == 'config')
        super().__init__(data_preprocessor=data_preprocessor or net.data_preprocessor)
        self.audit = self_audit
        self.teacher = self_teacher
        self.student_cfg = cfg
        self.init = init
        self.data_free = data_free
        self.default_image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.inheritance_cfg = dict(method='slice', images=512, renderer=dict(type='mmdfkd.ProceduralRenderer'))
        self.inheritance_cfg.update(inheritance or {})
        self.student = Student(net, Normalizer.from_config(cfg), [MODELS.build(head) for head in heads])
        self._check_pair()

        self.student.build_aligners(self.teacher.adapter, self.default_image_size)
        self.frozen = self.student.freeze_unused()
        self.source: SyntheticSource = MODELS.build(source)

        # Set by DistillHook before the weights are initialised and before each step.
        self.seed: int | None = None
        self.image_size: tuple[int, int] | None = None
        self.iteration: int | None = None
        self.resuming = False
        self.inheritance_report: InheritanceReport | None = None

        self._register_state_dict_hook(_plain_student)
        self._register_load_state_dict_pre_hook(self._read_plain_student)

    def _check_pair(self) -> None:
        teacher, student = self.teacher.adapter, self.student.adapter
        if teacher.family != student.family:
            raise ValueError(
                f'The teacher is a {teacher.family} network and the student a {student.family} one; both must be of one family.'
            )
        if teacher.num_classes != student.num_classes:
            raise ValueError(
                f'The teacher has {teacher.num_classes} classes and the student {student.num_classes}: set num_classes '
                "of the student's head(s) to the teacher's."
            )

    # What is saved and loaded is the plain student ---------------------------------------------------------------

    def _read_plain_student(self, state_dict, prefix, *args) -> None:
        own = self.student.net.state_dict()
        plain = {k[len(prefix) :]: state_dict.pop(k) for k in list(state_dict) if k.startswith(prefix)}
        # A whole-model dict of this class in memory (an EMA's, say) has the student's keys only, too.
        check_keys(own, plain, what='student')
        state_dict.update({prefix + _NET + k: v for k, v in plain.items()})
        # Heads and source are restored from dfkd_state; here they keep what they have.
        for name, child in self.named_children():
            for key, value in child.state_dict().items():
                state_dict.setdefault(f'{prefix}{name}.{key}', value)

    def distill_state(self) -> dict:
        """State of what is trained or collected beside the student, for ``dfkd_state`` in the checkpoint."""
        return dict(heads=self.student.heads.state_dict(), source=self.source.state_dict())

    def load_distill_state(self, state: Mapping) -> None:
        """Restore :meth:`distill_state`."""
        self.student.heads.load_state_dict(state['heads'])
        self.source.load_state_dict(state['source'])

    def _apply(self, fn, recurse=True):
        # .to(), .cuda(), .half() and .double() all come here; the teacher is no child and must follow.
        super()._apply(fn, recurse)
        self.teacher.net._apply(fn)
        return self

    # Start ---------------------------------------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Load the teacher, start the student, prepare the source. Runs in training only.

        Raises:
            RuntimeError: If ``mmdfkd.DistillHook`` is not among the run's hooks.
        """
        if self.seed is None or self.image_size is None:
            raise RuntimeError(
                "DataFreeDistiller needs custom_hooks=[dict(type='mmdfkd.DistillHook'), ...]; take configs/_base_/dfkd_runtime.py."
            )
        self.teacher.load()
        self.student.adapter.normalizer.describe('Student')
        for head in self.student.heads:
            head.init_weights()
        if not self.resuming:
            self._start_student()
        if self.frozen:
            print_log(f'No head reaches {", ".join(self.frozen)}: kept as at the start, not trained.', 'current')
        device = next(self.student.parameters()).device
        with torch.no_grad():
            self.source.prepare(self.teacher.adapter, seed=self.seed, image_size=self.image_size, device=device)

    def _start_student(self) -> None:
        net = self.student.net
        if self.init == 'inherit':
            self.inheritance_report = inherit(
                self.teacher.adapter, self.student.adapter, self._inheritance_images(), method=self.inheritance_cfg['method']
            )
            print_log(str(self.inheritance_report), 'current')
        elif self.init in STARTS:
            net.init_weights()
        else:
            state = unwrap_state_dict(CheckpointLoader.load_checkpoint(self.init, map_location='cpu'))
            load_strict(net, state, what=f'student {self.init}')
        print_log(f"Student: starts '{self.init}'.", 'current')

    def _inheritance_images(self) -> Tensor:
        from mmdfkd.registry import TASK_UTILS

        renderer = TASK_UTILS.build(dict(self.inheritance_cfg['renderer']))
        # Indices of their own, so that statistics and training do not share images.
        first = 1 << 40
        count = self.inheritance_cfg['images']
        images = [torch.as_tensor(renderer(self.seed, first + i, self.image_size)) for i in range(count)]
        return torch.stack(images).float().div_(255)

    # The step ------------------------------------------------------------------------------------------------------

    def train_step(self, data: Mapping, optim_wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, Tensor]:
        """One step: refresh the source, draw, ask the teacher, train the student.

        Args:
            data (Mapping): A collated batch of :class:`mmdfkd.datasets.SyntheticDataset`: lists by field.
            optim_wrapper (OptimWrapper | OptimWrapperDict): The student's, or one that has ``student``.

        Returns:
            dict[str, Tensor]: For the log.

        Raises:
            NonFiniteLossError: If a term is not finite, before anything is updated.
        """
        if self.iteration is None:
            raise RuntimeError("DataFreeDistiller needs mmdfkd.DistillHook among the run's custom_hooks.")
        wrapper = optim_wrapper['student'] if isinstance(optim_wrapper, OptimWrapperDict) else optim_wrapper
        fresh = self.source.refresh(self.teacher.adapter, self.student.adapter, self.iteration)
        items = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
        device = next(self.student.parameters()).device
        images, targets = self.source.draw(items)
        images = images.to(device)
        observation = self.teacher.observe(images, self.student.teacher_taps, self.student.needs_response)
        for head in self.student.heads:
            head.set_iteration(self.iteration)
        with wrapper.optim_context(self.student):
            losses = self.student(images, observation, targets)
            total, log = self.parse_losses(losses)
        self._check_finite(losses)
        wrapper.update_params(total)
        log.update({name: torch.as_tensor(value) for name, value in (fresh or {}).items()})
        return log

    def _check_finite(self, losses: Mapping[str, Tensor]) -> None:
        values = {name: float(value.detach()) for name, value in losses.items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise NonFiniteLossError(
                f'{", ".join(f"{k} = {v}" for k, v in bad.items())} at iteration {self.iteration}. The weights were not '
                'updated and the last checkpoint is good: lower the learning rate or that loss_weight, then --resume.'
            )

    # Testing: the plain student on ordinary data -------------------------------------------------------------------

    def val_step(self, data):
        """Predict with the plain student."""
        return self.test_step(data)

    def test_step(self, data):
        """Predict with the plain student."""
        data = self.data_preprocessor(data, False)
        return self.student.net._run_forward(data, mode='predict')

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """Run the plain student on preprocessed ``inputs`` ``[B, 3, H, W]``, as its own class does."""
        return self.student.net(inputs, data_samples, mode=mode)


def _plain_student(module: nn.Module, destination: dict, prefix: str, local_metadata) -> dict:
    """State-dict hook: keep the student's network only, under its plain names.

    A hook, not an overridden ``state_dict``: the Runner saves through mmengine's own recursion.
    """
    for key in [k for k in destination if k.startswith(prefix)]:
        value = destination.pop(key)
        if key.startswith(prefix + _NET):
            destination[prefix + key[len(prefix + _NET) :]] = value
    return destination
