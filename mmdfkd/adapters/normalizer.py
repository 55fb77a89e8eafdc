from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

_RGB_DATASETS = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def pipelines(cfg: Mapping) -> Iterator[tuple[Mapping, Sequence[Mapping]]]:
    """Datasets of a config with their transforms, those of tests first and wrappers outside in."""
    for split in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (cfg.get(split) or {}).get('dataset')
        while isinstance(dataset, Mapping):
            yield dataset, dataset.get('pipeline') or ()
            dataset = dataset.get('dataset')


def delivered_order(cfg: Mapping) -> str | None:
    """Channel order of the images that a config's own pipeline delivers, ``'bgr'`` or ``'rgb'``.

    mmcv's loader gives BGR unless told otherwise; mmpretrain's CIFAR and MNIST datasets give RGB
    and have no loader. The preprocessor alone cannot tell: ``to_rgb=False`` may mean either. None
    where the config does not say.
    """
    for dataset, steps in pipelines(cfg):
        for step in steps:
            if _kind(step).startswith('LoadImageFrom'):
                return step.get('channel_order', 'bgr')
        if _kind(dataset) in _RGB_DATASETS:
            return 'rgb'
    return None


def _kind(cfg: Mapping) -> str:
    return str(cfg.get('type', '')).rsplit('.', 1)[-1]


class Normalizer:
    """From the house's pixel space, RGB in [0, 1], to a network's input; differentiable.

    Args:
        mean (Sequence[float]): Per channel of the network's input, in grey levels (0 to 255).
        std (Sequence[float]): Per channel of the network's input, in grey levels.
        order (str): Channel order of the network's input, ``'rgb'`` or ``'bgr'``.
        divisor (int): Heights and widths are padded, right and bottom, to a multiple of it.
        pad_value (float): Value of the padding, after normalisation.
    """

    def __init__(self, mean, std, order: str, divisor: int = 1, pad_value: float = 0.0) -> None:
        if order not in ('rgb', 'bgr'):
            raise ValueError(f"Channel order must be 'rgb' or 'bgr', not {order!r}.")
        self.mean = torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.order = order
        self.divisor = divisor
        self.pad_value = pad_value

    @classmethod
    def from_config(cls, cfg: Mapping, input_order: str = 'auto') -> 'Normalizer':
        """Read preprocessor and loader of a whole config together.

        Args:
            cfg (Mapping): The whole config (the Runner merges its top-level ``data_preprocessor``
                into the model).
            input_order (str): ``'rgb'`` or ``'bgr'`` overrides what the config's loader seems to
                deliver.

        Raises:
            ValueError: On another order, or where the config's pipeline normalises and not its
                preprocessor, which synthetic images go through.
        """
        # The model's own replaces the top-level one as a whole, as in the Runner.
        if input_order not in ('auto', 'rgb', 'bgr'):
            raise ValueError(f"input_order is 'auto', 'rgb' or 'bgr', not {input_order!r}.")
        pre = cfg.get('model', {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
        if not pre.get('mean') and any(
            _kind(step) == 'Normalize' for _, steps in pipelines(cfg) for step in steps
        ):
            raise ValueError(
                'A pipeline of the config normalises (Normalize) and its data_preprocessor has no '
                'mean: synthetic images go through the preprocessor alone. Move mean, std and '
                'to_rgb (of detectors bgr_to_rgb) from the pipeline to the data_preprocessor.'
            )
        delivered = (delivered_order(cfg) or 'bgr') if input_order == 'auto' else input_order
        flips = bool(pre.get('to_rgb') or pre.get('bgr_to_rgb') or pre.get('rgb_to_bgr'))
        order = delivered if not flips else {'bgr': 'rgb', 'rgb': 'bgr'}[delivered]
        return cls(
            pre.get('mean') or [0.0] * 3,
            pre.get('std') or [1.0] * 3,
            order,
            pre.get('pad_size_divisor') or 1,
            pre.get('pad_value') or 0.0,
        )

    def same_as(self, other: 'Normalizer') -> bool:
        """Whether both give the same input for the same image."""
        return self.order == other.order and all(
            torch.allclose(a, b) for a, b in ((self.mean, other.mean), (self.std, other.std))
        )

    def describe(self, name: str) -> None:
        """Print what the network will be fed: a wrong guess must be seen."""
        print_log(
            f'{name}: input {self.order.upper()}, mean {self.mean.flatten().tolist()}, '
            f'std {self.std.flatten().tolist()}',
            'current',
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise ``[B, 3, H, W]`` RGB in [0, 1]."""
        x = images.flip(1) if self.order == 'bgr' else images
        x = (x * 255.0 - self.mean.to(x)) / self.std.to(x)
        pad_h, pad_w = -x.shape[-2] % self.divisor, -x.shape[-1] % self.divisor
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h), value=self.pad_value)
        return x
