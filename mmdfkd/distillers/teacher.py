from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor

from mmdfkd.adapters import Normalizer, Observation, build_adapter, delivered_order
from mmdfkd.utils.key_report import load_strict
from mmdfkd.utils.load_weights import read_weights
from mmdfkd.utils.recompute import stop_recomputing

from .networks import build_network, load_config
from .stored_labels import StoredLabels


class Teacher:
    """The frozen network that is distilled.

    Not an ``nn.Module``: as a child of the distiller it would be saved, averaged, re-initialised
    and
    switched to train mode with it. Deep copies (an EMA's) share it.

    Args:
        config (str | dict): Its whole config.
        checkpoint (str, optional): Its weights; a plain ViT's may have the names of timm or Hugging
            Face. Read only by :meth:`load`, so a test run needs no file.
        input_order (str): Channel order of the images its own pipeline loads: ``'rgb'``, ``'bgr'``,
            or ``'auto'`` to read it from the config. Defaults to ``'auto'``.
        labels (str, optional): Stored answers, in the place of a checkpoint: what
            ``tools/store_labels.py`` wrote. The network is never run then.

    Raises:
        ValueError: If neither a checkpoint nor labels are given, or both.
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str | None = None,
        input_order: str = 'auto',
        labels: str | None = None,
    ) -> None:
        if (checkpoint is None) == (labels is None):
            raise ValueError(
                'A teacher has either a checkpoint, its weights, or labels, its stored answers.'
            )
        self.cfg: Config = load_config(config)
        self.checkpoint = checkpoint if labels is None else labels
        self.replayed = labels is not None
        self.input_order = input_order
        self.stored: StoredLabels | None = None
        net = build_network(self.cfg)
        net.eval().requires_grad_(False)
        # It is never trained, and gradients to its pixels alone cannot be had otherwise.
        stop_recomputing(net)
        self.adapter = build_adapter(net, Normalizer.from_config(self.cfg, input_order))
        self.loaded = False

    @property
    def net(self):
        """The teacher's network."""
        return self.adapter.net

    @property
    def delivered_order(self) -> str:
        """Channel order of the images that it was written for, before its preprocessor."""
        told = self.input_order if self.input_order != 'auto' else delivered_order(self.cfg)
        return told or 'bgr'

    def load(self) -> None:
        """Load the weights; any missing, unexpected or mismatched key stops the run and is named.

        Raises:
            FileNotFoundError: If there is no such file.
            CheckpointMismatchError: If the file holds other weights than the network needs.
            ValueError: If stored labels are of other classes.
        """
        if self.replayed:
            self.stored = StoredLabels.read(self.checkpoint)
            if self.stored.num_classes != self.adapter.num_classes:
                raise ValueError(
                    f'The labels in {self.checkpoint} are of {self.stored.num_classes} classes, '
                    f'the teacher has {self.adapter.num_classes}.'
                )
            print_log(f'Teacher: {len(self.stored)} stored labels, not run itself', 'current')
            return
        what = f'teacher {self.checkpoint}'
        state_dict = read_weights(self.checkpoint, self.net, what)
        load_strict(self.net, state_dict, what=what)
        self.net.eval().requires_grad_(False)
        self.loaded = True
        self.adapter.normalizer.describe('Teacher')
        print_log(f'Teacher: {len(state_dict)} tensors from {self.checkpoint}', 'current')

    def observe(
        self, images: Tensor, taps: Sequence[str], respond: bool, **settings
    ) -> Observation:
        """What the teacher says about ``images`` ``[B, 3, H, W]``, without gradient.

        Args:
            images (Tensor): RGB in [0, 1].
            taps (Sequence[str]): Modules whose outputs are wanted.
            respond (bool): Whether to propose and answer, too.
            **settings: ``fresh``, ``seed`` and ``serials`` of :meth:`Adapter.observe`.

        Raises:
            RuntimeError: If its weights were never loaded: nothing is learned from random weights.
        """
        if self.stored is not None:
            return self.stored.observe(images, settings['serials'])
        if not self.loaded:
            raise RuntimeError(
                "The teacher's weights are not loaded: Teacher.load() runs in init_weights()."
            )
        return self.adapter.observe(images, taps, respond, **settings)

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self
