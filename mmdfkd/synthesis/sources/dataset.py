import torch
from torch import Tensor

from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS

from .base import SyntheticSource


@MODELS.register_module()
class DatasetSource(SyntheticSource):
    """The images of an ordinary training dataset, without their labels: the ceiling.

    Never data-free: needs ``model.data_free=False``; the report states it.

    Args:
        order (str): Channel order of the loaded images, ``'bgr'`` (mmcv's loader) or ``'rgb'``.

    Raises:
        ValueError: On another channel order.
    """

    needs_items = True

    def __init__(self, order: str = 'bgr') -> None:
        super().__init__()
        if order not in ('bgr', 'rgb'):
            raise ValueError(f"DatasetSource: order is 'bgr' or 'rgb', not {order!r}.")
        self.order = order

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """The batch as the dataset's pipeline made it.

        Raises:
            ValueError: If the images of the batch differ in size: the pipeline must crop or pad
                them.
        """
        sizes = {tuple(item['inputs'].shape) for item in items}
        if len(sizes) > 1:
            raise ValueError(
                'DatasetSource: images of one batch must have one size, not '
                f'{sorted(sizes)}: crop or pad them.'
            )
        images = torch.stack([item['inputs'] for item in items]).to(self.device).float() / 255
        return (images.flip(1) if self.order == 'bgr' else images), Targets()
