from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmdfkd.adapters import Observation, Targets
from mmdfkd.losses import feature_recalibration
from mmdfkd.models import SlimmedViT
from mmdfkd.models.layers import TokenRecovery
from mmdfkd.registry import MODELS

from .alignment import output_widths
from .base import DistillHead, Needs


@MODELS.register_module()
class RecalibrationHead(DistillHead):
    """A slimmed ViT follows its unslimmed self (SiT, Zong et al., ECCV 2022).

    For students with :class:`mmdfkd.models.SlimmedViT`. Behind every layer with merged patches a
    :class:`~mmdfkd.models.layers.TokenRecovery`, trained with the student and dropped after, gives
    them their number back; they are to be the teacher's at the same layer. Layers before the first
    merging are compared as they are. Patches only. See
    :func:`~mmdfkd.losses.feature_recalibration`; SiT's loss has :class:`LogitHead` beside it, and a
    CNN's decisions at a distillation token, which are not here.

    Args:
        layers (Sequence[int], optional): Which layers. Defaults to all, as published.
        normalize (bool): In units of the teacher's energy. Defaults to True; published without.
        ratio (float): Of the hidden widths of the recovery. Defaults to 4, as released.
        **kwargs: ``loss_weight``, ``schedule``, ``name`` and ``init_cfg`` of :class:`DistillHead`.

    Raises:
        ValueError: If no layer is named.
    """

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        normalize: bool = True,
        ratio: float = 4.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if layers is not None and not len(layers):
            raise ValueError('RecalibrationHead: layers must name at least one, or be None.')
        self.layers = layers
        self.normalize = normalize
        self.ratio = ratio
        self.recoveries: nn.ModuleList | None = None
        # Patches of each layer and at first; the student's and the teacher's tokens before them.
        self._patches: tuple[int, ...] = ()
        self._whole = 0
        self._prefix = (1, 1)

    def bind(self, student: nn.Module, teacher: nn.Module) -> None:
        """See where the student merges its patches.

        Raises:
            ValueError: If it has no backbone that does, or not these layers.
        """
        backbone = getattr(student, 'backbone', None)
        if not isinstance(backbone, SlimmedViT):
            raise ValueError(
                'RecalibrationHead needs a student with mmdfkd.SlimmedViT, not with a '
                f'{type(backbone).__name__}: FeatureHead compares blocks of equally many tokens.'
            )
        count = backbone.num_layers
        layers = range(count) if self.layers is None else self.layers
        if any(not 0 <= i < count for i in layers):
            raise ValueError(f'RecalibrationHead: layers={tuple(layers)}, the student has {count}.')
        taps = tuple(f'backbone.layers.{i}' for i in layers)
        self.needs = Needs(taps_student=taps, taps_teacher=taps)
        self._patches = tuple(backbone.patches[i] for i in layers)
        own = backbone.num_extra_tokens
        whole = getattr(teacher, 'backbone', None)
        self._prefix = (own, getattr(whole, 'num_extra_tokens', own))
        self._whole = backbone.grid[0] * backbone.grid[1]

    def build_aligners(self, student_widths: Mapping, teacher_widths: Mapping) -> None:
        """A recovery for each layer with merged patches.

        Raises:
            ValueError: If the networks differ in width: the teacher is the unslimmed student.
        """
        self.recoveries = nn.ModuleList()
        for tap, count in zip(self.needs.taps_student, self._patches, strict=True):
            own, other = (output_widths(w, tap)[-1] for w in (student_widths, teacher_widths))
            if own != other:
                raise ValueError(
                    f"RecalibrationHead: '{tap}' has {own} channels in the student and {other} in "
                    'the teacher, which is to be the same network unslimmed.'
                )
            merged = count < self._whole
            self.recoveries.append(
                TokenRecovery(own, count, self._whole, self.ratio) if merged else nn.Identity()
            )

    def losses(
        self, student: Observation, teacher: Observation, targets: Targets, images: Tensor
    ) -> dict[str, Tensor]:
        """``loss_recalibration``.

        Raises:
            ValueError: If the teacher has other patches than the student before merging.
        """
        if self.recoveries is None:
            raise RuntimeError(
                'RecalibrationHead: bind and build_aligners have to be called before the first '
                'forward.'
            )
        own, other = [], []
        for tap, count, recovery in zip(
            self.needs.taps_student, self._patches, self.recoveries, strict=True
        ):
            mine = student.memory.taps[tap][:, self._prefix[0] :]
            theirs = teacher.memory.taps[tap].detach()[:, self._prefix[1] :]
            if theirs.shape[1] != self._whole or mine.shape[1] != count:
                raise ValueError(
                    f"RecalibrationHead: behind '{tap}' the student has {mine.shape[1]} patches "
                    f'and the teacher {theirs.shape[1]}, not {count} and {self._whole}: both need '
                    "images of the student's img_size, also model.image_size."
                )
            own.append(recovery(mine))
            other.append(theirs)
        return {'loss_recalibration': feature_recalibration(own, other, self.normalize)}
