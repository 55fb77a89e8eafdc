"""The distiller: one training step, and nothing else."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.dist import broadcast
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmdfkd.adapters import Adapter, Normalizer, Observation, Targets, delivered_order
from mmdfkd.datasets.synthetic import check_size
from mmdfkd.inheritance import (
    InheritanceReport,
    check_image_count,
    heir_of,
    inherit,
    recipe_of,
)
from mmdfkd.registry import MODELS, TASK_UTILS
from mmdfkd.synthesis import SyntheticSource, inspect_teacher
from mmdfkd.utils.arguments import accepted_arguments, check_arguments
from mmdfkd.utils.data_audit import DataAudit
from mmdfkd.utils.image_count import images_at_once
from mmdfkd.utils.key_report import check_keys, load_strict
from mmdfkd.utils.load_weights import read_weights

from .balance import GradientBalance
from .networks import build_network, silent_norms
from .stored_labels import answered
from .student import Student, evaluating
from .student_spec import STARTS, student_config
from .teacher import Teacher

_NET = 'student.net.'
# How many of the inheritance's images the aligners are fitted on.
_FIT_IMAGES = 64


class NonFiniteLossError(FloatingPointError):
    """A loss term is not a finite number; nothing was updated with it."""


@MODELS.register_module()
class DataFreeDistiller(BaseModel):
    """Distils a frozen teacher into a student on synthetic images.

    To the toolbox it is the student: its ``state_dict`` holds the plain student's keys, and testing
    runs the plain student on ordinary data. ``mmdfkd.DistillHook`` gives it seed, iteration and
    image size.

    Args:
        teacher (Mapping): ``config`` (path, ``'mmdet::...'``, or inline), ``checkpoint``,
            optionally ``input_order``; see :class:`Teacher`.
        student (Mapping): ``type='mmdfkd.Shrunk'`` with ``width`` and ``depth``, or ``config``; and
            ``init``: ``'inherit'`` (from the teacher, the default), ``'random'``, ``'config'`` (its
            own ``init_cfg``; reported as using external weights) or the path of a checkpoint. With
            ``config`` also ``input_order``, as of the teacher, whose images' order it has where its
            own config names none.
        heads (Sequence[Mapping]): Distill heads.
        source (Mapping): Where the images come from.
        inheritance (Mapping, optional): ``method`` (``'slice'`` or ``'select'``) and its parts
            (:func:`~mmdfkd.inheritance.recipe.recipe_of`), ``images`` (how many synthetic images
            the statistics are taken on, 512) and ``renderer`` (of these images; by default they are
            the run's own, or procedural ones where the run's come from its dataset).
        extra_teachers (Sequence[Mapping]): More teachers, each as ``teacher``, for heads that hear
            several, such as ``mmdfkd.CoAdviseHead``; of the teacher's family and classes. They are
            run only where a head at work asks for them. The source and the student's start know
            the first teacher alone.
        balance (Mapping, optional): Weighs the heads by their gradients: ``layer``, ``every`` and
            ``momentum`` of :class:`~mmdfkd.distillers.balance.GradientBalance`; ``{}`` takes its
            defaults. None leaves the weights as they are.
        data_free (bool): False allows a training dataset with real images, which the report then
            states. It is how the ceiling is measured. Defaults to True.
        image_size (int | Sequence[int]): Size of the blank image with which widths and gradients
            are traced when it is built; any size both networks take. Defaults to 64.
        data_preprocessor (Mapping, optional): Replaces the student's own; the Runner puts a
            config's top-level one here.

    Raises:
        ValueError: If teacher and student have different classes, or are of different families and
            a head compares what only one family has, or the student cannot inherit.
        TypeError: If a setting is unknown.
    """

    def __init__(
        self,
        teacher: Mapping,
        student: Mapping,
        heads: Sequence[Mapping],
        source: Mapping,
        inheritance: Mapping | None = None,
        extra_teachers: Sequence[Mapping] = (),
        balance: Mapping | None = None,
        data_free: bool = True,
        image_size: int | Sequence[int] = 64,
        data_preprocessor: Mapping | None = None,
    ) -> None:
        # From here on, whatever is read is counted.
        DataAudit.install()
        for name, value in dict(teacher=teacher, student=student).items():
            if not isinstance(value, Mapping):
                raise TypeError(f'model.{name} is a dict(config=..., ...), not {value!r}.')
        check_arguments('model.teacher', teacher, accepted_arguments(Teacher))
        parts = ('method', 'layers', 'channels', 'units', 'refit')
        check_arguments('model.inheritance', inheritance or (), (*parts, 'images', 'renderer'))
        # A part that is unknown is refused before anything is read.
        recipe = {k: v for k, v in (inheritance or {}).items() if k in parts}
        recipe_of(**recipe)
        frozen_teacher = Teacher(**teacher)
        init = student.get('init', 'inherit')
        # One that is derived from the teacher is fed as the teacher is.
        derived = student.get('config') is None
        own = ('init',) if derived else ('init', 'input_order')
        spec = {k: v for k, v in student.items() if k not in own}
        cfg = student_config(spec, frozen_teacher.cfg)
        if data_preprocessor is not None:
            cfg.model.data_preprocessor = data_preprocessor
        net = build_network(cfg, keep_init=init == 'config')
        super().__init__(data_preprocessor=net.data_preprocessor)
        self.teacher = frozen_teacher
        self.student_cfg = cfg
        self.init = init
        self.data_free = data_free
        self.default_image_size = check_size(image_size)
        self.inheritance_cfg = dict(recipe=recipe, images=512, renderer=None)
        self.inheritance_cfg.update(
            (k, v) for k, v in (inheritance or {}).items() if k not in recipe
        )
        check_image_count(self.inheritance_cfg['images'], init == 'inherit')
        order = frozen_teacher.input_order if derived else student.get('input_order', 'auto')
        if order == 'auto' and delivered_order(cfg) is None:
            # An inline config has no images of its own: those of the teacher's.
            order = frozen_teacher.delivered_order
        self.student_input_order = order
        normalizer = Normalizer.from_config(cfg, self.student_input_order)
        if balance is not None:
            check_arguments('model.balance', balance, ('layer', 'every', 'momentum'))
            balance = GradientBalance(**balance)
        self.extra_teachers = []
        for i, extra in enumerate(extra_teachers):
            check_arguments(f'model.extra_teachers[{i}]', extra, accepted_arguments(Teacher))
            self.extra_teachers.append(Teacher(**extra))
        heads = [MODELS.build(head) for head in heads]
        self.student = Student(net, normalizer, heads, balance, self.extra_teachers)
        self._check_pair()

        # Before the optimiser is built: what is trained, and what is not.
        if self.init == 'inherit' and not self.teacher.replayed:
            # Before any image is made.
            heir_of(self.teacher.adapter, self.student.adapter)
        self.student.build_aligners(self.teacher.adapter, self.default_image_size)
        self.frozen = self.student.freeze_unused(self.teacher.adapter, self.default_image_size)
        self.student.bind_balance(self.teacher.adapter, self.default_image_size)
        self.source: SyntheticSource = MODELS.build(source)
        if self.teacher.replayed:
            self._check_replay()
        # Whether kept answers may stand for the teacher, head by head.
        parts = self.source.modules()
        kept = any(getattr(part, 'gives_answers', False) for part in parts)
        self._content = [kept and self._wants_answers_alone(h) for h in self.student.heads]

        # Set by DistillHook before the weights are initialised and before each step.
        self.seed: int | None = None
        self.image_size: tuple[int, int] | None = None
        self.iteration: int | None = None
        # Of all steps and processes.
        self.samples: int | None = None
        self.resuming = False
        # Where the source may keep images.
        self.folder: Path | None = None
        self.inheritance_report: InheritanceReport | None = None
        # What the source took to prepare and refresh, in this process.
        self.synthesis_seconds = 0.0
        # Whether the source had something to tell at the last step: it has made something.
        self.refreshed = False

        self._register_state_dict_hook(_plain_student)
        self._register_load_state_dict_pre_hook(_read_plain_student, with_module=True)

    def _check_pair(self) -> None:
        teacher, student = self.teacher.adapter, self.student.adapter
        if teacher.family != student.family:
            self._check_families(teacher, student)
        if teacher.num_classes != student.num_classes:
            raise ValueError(
                f'The teacher has {teacher.num_classes} classes and the student '
                f"{student.num_classes}: set num_classes of the student's head(s) to the teacher's."
            )
        for i, extra in enumerate(self.extra_teachers):
            other = extra.adapter
            if (other.family, other.num_classes) != (teacher.family, teacher.num_classes):
                raise ValueError(
                    f'extra_teachers[{i}] is a {other.family} network of {other.num_classes} '
                    f'classes, the teacher a {teacher.family} one of {teacher.num_classes}: all '
                    'teachers must be of one family and know the same classes.'
                )
        wanted = self.student.needs.extra_teachers
        if wanted > len(self.extra_teachers):
            names = [type(h).__name__ for h in self.student.heads if h.needs.extra_teachers]
            raise ValueError(
                f'{", ".join(names)} needs {wanted} more teacher(s): give model.extra_teachers=['
                'dict(config=..., checkpoint=...)].'
            )

    def _check_families(self, teacher: Adapter, student: Adapter) -> None:
        """Detectors of two families share what every head of the run can compare."""
        pair = f'The teacher is a {teacher.family} network and the student a {student.family} one'
        if not (teacher.detects and student.detects):
            raise ValueError(f'{pair}; both must be detectors, or of one family.')
        strict = [type(h).__name__ for h in self.student.heads if not h.any_family]
        if strict:
            raise ValueError(
                f'{pair}, but {", ".join(strict)} compares networks of one family. Of detectors of '
                'two families: PseudoLabelHead, BoxResponseHead, PyramidHead, FGDHead and the '
                'heads of features and relations with levels or taps.'
            )
        if self.init == 'inherit':
            raise ValueError(
                f'{pair}: a student inherits from its own family only. Set model.student.init to '
                "'random', 'config' or a checkpoint."
            )

    def _check_replay(self) -> None:
        """Stored answers stand for the teacher: nothing else of it may be asked for."""
        if self.init == 'inherit':
            raise ValueError(
                'A teacher with stored labels has no weights to inherit: set model.student.init to '
                "'random', 'config' or a checkpoint."
            )
        if not self.source.self_contained:
            raise ValueError(
                f'{type(self.source).__name__} makes or chooses its images with the teacher, which '
                'is not run where its labels are stored: take mmdfkd.RenderedSource, '
                'mmdfkd.PooledSource with balance=False and one renderer, or mmdfkd.DatasetSource '
                'with mmdfkd.SeededDataset.'
            )
        for head in self.student.heads:
            if not self._wants_answers_alone(head):
                raise ValueError(
                    f'{type(head).__name__} reads more of the teacher than its class '
                    'probabilities, which is all that is stored.'
                )

    @torch.no_grad()
    def _wants_answers_alone(self, head: nn.Module) -> bool:
        """Whether a head reads nothing of a classifying teacher but its logits: it is tried."""
        needs = head.needs
        if self.teacher.adapter.detects or not needs.teacher_response and not needs.response:
            return False
        if needs.taps_teacher or needs.fresh or needs.extra_teachers:
            return False
        adapter = self.student.adapter
        image = torch.zeros(1, 3, *self.default_image_size)
        image = image.to(next(self.student.parameters()).device)
        with evaluating(self.student):
            memory = adapter.encode(image, needs.taps_student)
            mine = Observation(memory, response=adapter.answer(memory, None))
            theirs = answered(image, mine.response.logits)
            # Nothing of a teacher that is not run can be read.
            theirs.memory = None
            targets = Targets(labels=torch.zeros(1, dtype=torch.long, device=image.device))
            try:
                head(mine, theirs, targets, image)
            except (IndexError, KeyError, AttributeError):
                return False
        return True

    # What is saved beside the plain student ---------------------------------------------------

    def distill_state(self) -> dict:
        """What is trained or collected beside the student, for the checkpoint."""
        state = dict(heads=self.student.heads.state_dict(), source=self.source.state_dict())
        if self.student.balance is not None:
            state['balance'] = self.student.balance.state_dict()
        return state

    def resume(self, state: Mapping) -> None:
        """Prepare the source and restore :meth:`distill_state`; the Runner restores the student.

        Raises:
            ValueError: If the state is of other heads, another student or another source.
        """
        # Heads first: what another run saved is refused before images are made.
        _resume(self.student.heads, state['heads'], 'other heads, or another student,')
        if self.student.balance is not None and 'balance' in state:
            self.student.balance.load_state_dict(state['balance'])
        self._prepare_source()
        _resume(self.source, state['source'], 'another source')

    def _apply(self, fn, recurse=True):
        # .to(), .cuda(), .half() and .double() all come here; the teacher is no child and must
        # follow.
        super()._apply(fn, recurse)
        for teacher in (self.teacher, *self.extra_teachers):
            teacher.net._apply(fn)
        return self

    # Start --------------------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Load the teacher, start the student, prepare the source. Runs in training only.

        Raises:
            RuntimeError: If ``mmdfkd.DistillHook`` is not among the run's hooks.
        """
        if self.seed is None or self.image_size is None:
            raise RuntimeError(
                "DataFreeDistiller needs custom_hooks=[dict(type='mmdfkd.DistillHook'), ...]; take "
                'configs/_base_/dfkd_runtime.py.'
            )
        for teacher in (self.teacher, *self.extra_teachers):
            teacher.load()
        if self.teacher.stored is None:
            print_log(
                "What the teacher offers, and what sources with priors='auto' take:\n"
                f'{inspect_teacher(self.teacher.adapter)}',
                'current',
            )
        else:
            if self.teacher.stored.seed != self.seed:
                raise ValueError(
                    f'The labels in {self.teacher.checkpoint} were stored for the seed '
                    f"{self.teacher.stored.seed}, the run's is {self.seed}: its samples are others."
                )
            if self.samples is not None:
                self.teacher.stored.check_count(self.samples)
        self.student.adapter.normalizer.describe('Student')
        for head in self.student.heads:
            head.init_weights()
        if self.frozen:
            print_log(
                f'No head reaches {", ".join(self.frozen)}: kept as at the start, not trained.',
                'current',
            )
        # A resumed run gets both from its checkpoint, with the seed they were made of.
        if not self.resuming:
            self._prepare_source()
            with self._synthesis():
                self.source.fill(self.teacher.adapter)
            if self.teacher.stored is not None:
                # Nothing to inherit, and no features to fit.
                self._start_student(None)
            else:
                images = self._inheritance_images()
                self._start_student(images)
                self._fit_aligners(images[: images_at_once(_FIT_IMAGES, self.image_size)])
        self._share_start()

    def _share_start(self) -> None:
        """Give every process the first one's heads and source; the Runner shares the student."""
        heads = self.student.heads
        for tensor in (*heads.parameters(), *heads.buffers(), *self.source.parameters()):
            broadcast(tensor.data)

    def _prepare_source(self) -> None:
        device = next(self.student.parameters()).device
        self.source.folder = self.folder
        with torch.no_grad(), self._synthesis():
            self.source.prepare(
                self.teacher.adapter, seed=self.seed, image_size=self.image_size, device=device
            )

    @contextmanager
    def _synthesis(self) -> Iterator[None]:
        """Count the seconds spent on images that are not simply drawn."""
        began = time.perf_counter()
        yield
        self.synthesis_seconds += time.perf_counter() - began

    @torch.no_grad()
    def _fit_aligners(self, images: Tensor) -> None:
        """Start the heads' aligners at the least-squares map between both networks' features."""
        images = images.to(next(self.student.parameters()).device)
        with evaluating(self.student):
            needs = self.student.needs
            mine = Observation(self.student.adapter.encode(images, needs.taps_student))
            theirs = self.teacher.observe(images, needs.taps_teacher, respond=False)
            for head in self.student.heads:
                head.fit_aligners(mine, theirs)

    def _start_student(self, images: Tensor | None) -> None:
        net = self.student.net
        if self.init == 'inherit':
            self.inheritance_report = inherit(
                self.teacher.adapter,
                self.student.adapter,
                images,
                **self.inheritance_cfg['recipe'],
            )
            print_log(str(self.inheritance_report), 'current')
            for head in self.student.heads:
                head.start_from(self.inheritance_report)
        elif self.init in STARTS:
            net.init_weights()
        else:
            what = f'student {self.init}'
            load_strict(net, read_weights(self.init, net, what), what=what)
        silent = silent_norms(net)
        if silent:
            print_log(
                f'{len(silent)} norms of the student are fixed at a weight of zero ({silent[0]}, '
                '...): the branches behind them never say anything. Start it from pretrained '
                "weights (init='config' or a checkpoint), or let them be trained (norm_cfg with "
                'requires_grad=True).',
                'current',
                30,
            )
        print_log(f"Student: starts '{self.init}'.", 'current')

    def _inheritance_images(self) -> Tensor:
        """What the start is taken on: the run's own images, where they come without a dataset."""
        # Indices of their own, so that statistics and training do not share images.
        indices = [(1 << 40) + i for i in range(self.inheritance_cfg['images'])]
        renderer = self.inheritance_cfg['renderer']
        if renderer is None and not self.source.needs_items:
            parts = [
                self.source.draw([dict(g=g) for g in indices[i : i + 32]])[0].cpu()
                for i in range(0, len(indices), 32)
            ]
            return torch.cat(parts)
        render = TASK_UTILS.build(dict(renderer or dict(type='mmdfkd.ProceduralRenderer')))
        images = [torch.as_tensor(render(self.seed, g, self.image_size)) for g in indices]
        return torch.stack(images).float().div_(255)

    # The step -----------------------------------------------------------------------------------

    def train_step(
        self,
        data: Mapping,
        optim_wrapper: OptimWrapper | OptimWrapperDict,
        wrapped: nn.Module | None = None,
    ) -> dict[str, Tensor]:
        """One step: refresh the source, draw, ask the teacher, train the student.

        Args:
            data (Mapping): A collated batch of :class:`mmdfkd.datasets.SyntheticDataset`: lists by
                field.
            optim_wrapper (OptimWrapper | OptimWrapperDict): The student's, or one that has
                ``student``.
            wrapped (nn.Module, optional): This distiller in a wrapper that averages gradients over
                processes; the student is run through it then.

        Returns:
            dict[str, Tensor]: For the log.

        Raises:
            NonFiniteLossError: If a term is not finite, before anything is updated.
        """
        if self.iteration is None:
            raise RuntimeError(
                "DataFreeDistiller needs mmdfkd.DistillHook among the run's custom_hooks."
            )
        several = isinstance(optim_wrapper, OptimWrapperDict)
        wrapper = optim_wrapper['student'] if several else optim_wrapper
        with self._synthesis():
            fresh = self.source.refresh(self.teacher.adapter, self.student.adapter, self.iteration)
        self.refreshed = bool(fresh)
        items = [
            dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)
        ]
        device = next(self.student.parameters()).device
        images, targets = self.source.draw(items)
        images = images.to(device)
        for head in self.student.heads:
            head.set_iteration(self.iteration)

        # The teacher too: under mixed precision it is the larger part of a step.
        with wrapper.optim_context(self.student if wrapped is None else wrapped):
            needs = self.student.active_needs
            # Of an ordinary dataset the place in the run.
            serials = [
                item.get('g', self.iteration * len(items) + i) for i, item in enumerate(items)
            ]
            observation = self._observe(images, targets, serials)
            observation.others = tuple(
                extra.observe(images, (), True)
                for extra in self.extra_teachers[: needs.extra_teachers]
            )
            compared = dict(teacher=observation, targets=targets)
            if wrapped is None:
                losses = self.student(images, **compared)
            else:
                losses = wrapped(images, mode='distill', **compared)
            total, log = self.parse_losses(losses)
        self._check_finite(losses)
        wrapper.update_params(total)
        log.update({name: torch.as_tensor(value) for name, value in (fresh or {}).items()})
        if self.student.balance is not None:
            log.update(self.student.balance.log())
        return log

    def _observe(self, images: Tensor, targets: Targets, serials: list[int]) -> Observation:
        """Ask the teacher what the heads at work want; not about images of known answers."""
        needs = self.student.active_needs

        def ask(images: Tensor, serials: list[int]) -> Observation:
            return self.teacher.observe(
                images,
                needs.taps_teacher,
                needs.teacher_response,
                fresh=needs.fresh,
                seed=self.seed,
                serials=serials,
            )

        heads = zip(self.student.heads, self._content, strict=True)
        if targets.answers is None or not all(fine for head, fine in heads if head.active):
            return ask(images, serials)
        logits = targets.answers.to(images.device)
        unknown = logits.isnan().any(1).nonzero().flatten().tolist()
        if unknown:
            seen = ask(images[unknown], [serials[i] for i in unknown]).response.logits
            logits = logits.clone()
            logits[unknown] = seen.to(logits.dtype)
        return answered(images, logits)

    def _check_finite(self, losses: Mapping[str, Tensor]) -> None:
        values = {name: float(value.detach()) for name, value in losses.items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise NonFiniteLossError(
                f'{", ".join(f"{k} = {v}" for k, v in bad.items())} at iteration {self.iteration}. '
                'The weights were not updated and the last checkpoint is good: lower the learning '
                'rate or that loss_weight, then --resume.'
            )

    # Testing: the plain student on ordinary data --------------------------------------------------

    def val_step(self, data):
        """Predict with the plain student."""
        return self.test_step(data)

    def test_step(self, data):
        """Predict with the plain student."""
        data = self.data_preprocessor(data, False)
        return self.student.net._run_forward(data, mode='predict')

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor', **compared
    ):
        """Run the plain student on preprocessed ``inputs`` ``[B, 3, H, W]``, as its class does.

        In mode ``'distill'``, which a wrapper needs, the inputs are images, and the losses of the
        student's heads are returned; ``compared`` is what :meth:`Student.forward` takes.
        """
        if mode == 'distill':
            return self.student(inputs, **compared)
        return self.student.net(inputs, data_samples, mode=mode)


def _resume(module: nn.Module, state: Mapping, what: str) -> None:
    """Load what a checkpoint holds of a run's own parts.

    Raises:
        ValueError: If it is of other ones.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first, *differences = str(error).splitlines()
        if not first.startswith('Error(s) in loading state_dict'):
            raise
        raise ValueError(
            f'The checkpoint was made with {what} than the config names: resume with the config of '
            'its run, or start anew (--overwrite, or another --work-dir). The first difference: '
            f'{differences[0].strip()}'
        ) from error


def _plain_student(module: nn.Module, destination: dict, prefix: str, local_metadata) -> dict:
    """State-dict hook: keep the student's network only, under its plain names.

    A hook, not an overridden ``state_dict``: the Runner saves through mmengine's own recursion.
    """
    for key in [k for k in destination if k.startswith(prefix)]:
        value = destination.pop(key)
        if key.startswith(prefix + _NET):
            destination[prefix + key[len(prefix + _NET) :]] = value
    return destination


def _read_plain_student(distiller: DataFreeDistiller, state_dict: dict, prefix: str, *_) -> None:
    """Load hook: take plain student keys, all of them; heads and source keep what they have."""
    own = distiller.student.net.state_dict()
    plain = {k[len(prefix) :]: state_dict.pop(k) for k in list(state_dict) if k.startswith(prefix)}
    check_keys(own, plain, what='student')
    state_dict.update({prefix + _NET + k: v for k, v in plain.items()})
    for name, child in distiller.named_children():
        for key, value in child.state_dict().items():
            state_dict.setdefault(f'{prefix}{name}.{key}', value)
