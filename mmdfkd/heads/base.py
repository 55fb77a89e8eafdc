from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdfkd.adapters import Observation, Response, Targets
from mmdfkd.inheritance import InheritanceReport

from .schedule import read_schedule


class Needs(NamedTuple):
    """What a head must be given.

    Attributes:
        response: Whether it reads ``response`` of both observations.
        taps_student: Modules of the student whose outputs it reads; ``<name>:input`` for what
            enters one.
        taps_teacher: Likewise of the teacher.
        teacher_response: Whether it reads ``response`` of the teacher's observation, if not of
            both.
        own: Of a DETR-like student: whether it reads its answers at its own queries,
            ``response.own``, and those at the teacher's are not needed.
        fresh: Of DETR-like networks: whether it reads ``response.fresh``, at random queries.
        extra_teachers: How many of the run's extra teachers it reads: ``response`` of each of the
            teacher's ``others``.
    """

    response: bool = False
    taps_student: tuple[str, ...] = ()
    taps_teacher: tuple[str, ...] = ()
    teacher_response: bool = False
    own: bool = False
    fresh: bool = False
    extra_teachers: int = 0

    @classmethod
    def together(cls, needs: Iterable['Needs']) -> 'Needs':
        """What several heads need, each thing once."""
        needs = list(needs)
        return cls(
            response=any(n.response for n in needs),
            taps_student=tuple(dict.fromkeys(tap for n in needs for tap in n.taps_student)),
            taps_teacher=tuple(dict.fromkeys(tap for n in needs for tap in n.taps_teacher)),
            teacher_response=any(n.response or n.teacher_response for n in needs),
            own=any(n.own for n in needs),
            fresh=any(n.fresh for n in needs),
            extra_teachers=max((n.extra_teachers for n in needs), default=0),
        )


class DistillHead(BaseModule):
    """One reason for the student to follow its teacher.

    A head is trained with the student (its aligners) and dropped when the student is exported. It
    declares in :attr:`needs` what it reads, and computes named losses from two observations of the
    same images.

    Attributes:
        needs (Needs): What it must be given; nothing beside the memories unless a subclass says so.
        any_family (bool): Whether teacher and student may be detectors of different families.
        resting (bool): Set from outside while the head is to cost nothing, whatever its schedule.

    Args:
        loss_weight (float): Factor of all its losses. Defaults to 1.
        schedule (dict, optional): A further factor over the iterations: ``begin``, ``end``, and
            ``start`` (0) and ``stop`` (1), its values there, or ``points`` that it goes through;
            ``shape`` is ``'linear'`` or ``'cosine'``. See :mod:`mmdfkd.heads.schedule`. None keeps
            1.
        name (str, optional): Tells the losses of two heads of one kind apart: ``loss_feature``
            becomes ``loss_<name>_feature``.
        init_cfg (dict, optional): mmengine's initialisation.

    Raises:
        ValueError: If the schedule has an unknown or a missing key, or its iterations do not
            ascend.
    """

    needs = Needs()
    any_family = False

    def __init__(
        self,
        loss_weight: float = 1.0,
        schedule: Mapping | None = None,
        name: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.loss_weight = loss_weight
        self.name = name
        self.iteration = 0
        self.resting = False
        self.schedule = None
        if schedule is not None:
            self.schedule = read_schedule(schedule, type(self).__name__)

    def set_iteration(self, iteration: int) -> None:
        """Tell the head which iteration comes; its schedule depends on nothing else."""
        self.iteration = iteration

    @property
    def factor(self) -> float:
        """Factor of the losses at this iteration."""
        ramp = 1.0 if self.schedule is None else self.schedule.at(self.iteration)
        return self.loss_weight * ramp

    @property
    def active(self) -> bool:
        """Whether it has a say at this iteration; if not, it is not run and needs nothing."""
        return not self.resting and self.factor != 0

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """See both networks, once, before :meth:`build_aligners`.

        For a head that runs parts of the student by itself. It must not register them as its own
        children: what a head holds is trained, saved and dropped as a head's.

        Args:
            student (nn.Module): The plain student, not yet started.
            teacher (nn.Module): The teacher; its weights are not loaded yet.
        """

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """Create the layers between both networks' widths; once, before optimisers are built.

        Args:
            student_widths (Mapping): Channels by place: ``'neck'`` to one number per feature of the
                memory, a tap's name to one number.
            teacher_widths (Mapping): Likewise for the teacher.
        """

    def start_from(self, report: InheritanceReport) -> None:
        """Learn what the student kept of its teacher; once, before :meth:`fit_aligners`.

        Called for inherited students only, and not where a run is resumed: what follows from it
        belongs into the head's ``state_dict``.
        """

    def fit_aligners(self, student: Observation, teacher: Observation) -> None:
        """Start the aligners from both networks' features; once, before the first step.

        Args:
            student (Observation): The student as it starts, without gradient.
            teacher (Observation): The teacher's view of the same images.
        """

    @abstractmethod
    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """The losses before weight and schedule; arguments as in :meth:`forward`."""

    def forward(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """Compare two views of the same images.

        Args:
            student (Observation): With gradient; its response is at the teacher's probe.
            teacher (Observation): Constant: nothing flows back into it.
            targets (Targets): What the images are meant to show.
            images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``.

        Returns:
            dict[str, Tensor]: Scalars, keys ``loss_*``. Without anything to compare (no proposals
            in the whole batch) they are 0 times the student's outputs, so that every parameter
            still gets a gradient.
        """
        factor = self.factor
        return {
            self._key(key): factor * value
            for key, value in self.losses(student, teacher, targets, images).items()
        }

    def _key(self, key: str) -> str:
        return key if self.name is None else key.replace('loss_', f'loss_{self.name}_', 1)

    def responses(self, student: Observation, teacher: Observation) -> tuple[Response, Response]:
        """Both responses.

        Raises:
            ValueError: If an observation has none.
        """
        for name, observation in (('student', student), ('teacher', teacher)):
            if observation.response is None:
                raise ValueError(
                    f"{type(self).__name__} needs the {name}'s response: observe with respond=True "
                    'where a '
                    'head says so.'
                )
        return student.response, teacher.response
