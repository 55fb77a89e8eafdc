from collections.abc import Mapping

import torch
from torch import Tensor

from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS, TASK_UTILS

from .base import SyntheticSource


@MODELS.register_module()
class RenderedSource(SyntheticSource):
    """The pixels that the dataset rendered: noise, or fresh procedural images at every step.

    Args:
        augment (Mapping | None): Config of an augmentation, such as ``dict(type='LightAugment')``;
            off by default, since every image is new.
    """

    needs_items = True

    def __init__(self, augment: Mapping | None = None) -> None:
        super().__init__()
        self.augment = None if augment is None else TASK_UTILS.build(augment)

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """The items' own images.

        Raises:
            KeyError: If the dataset renders nothing.
        """
        if any('image' not in item for item in items):
            raise KeyError(
                'RenderedSource draws what the dataset renders, and its items have no image. Set '
                "`train_dataloader.dataset.renderer`, for instance to dict(type='mmdfkd."
                "ProceduralRenderer'), or use a source that makes its own images (PooledSource)."
            )
        images = torch.stack([torch.as_tensor(item['image']) for item in items])
        images = images.to(self.device).float() / 255
        if self.augment is not None:
            images = self.augment(images, self.seed, [item['g'] for item in items])
        return images, Targets()
