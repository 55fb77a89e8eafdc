import torch
from torch import Tensor

from mmdfkd.adapters.observation import Targets
from mmdfkd.registry import MODELS

from .base import SyntheticSource


@MODELS.register_module()
class DatasetSource(SyntheticSource):
    """The images of an ordinary training dataset, by default without their labels: the ceiling.

    Never data-free: needs ``model.data_free=False``; the report states it.

    Args:
        order (str): Channel order of the loaded images, ``'bgr'`` (mmcv's loader) or ``'rgb'``.
        labels (bool): Whether to hand the classes of a classification set to the heads, as targets:
            for methods that learn them beside the teacher (``hard_labels='target'``), and for
            students without one. Defaults to False.

    Raises:
        ValueError: On another channel order.
    """

    needs_items = True

    def __init__(self, order: str = 'bgr', labels: bool = False) -> None:
        super().__init__()
        if order not in ('bgr', 'rgb'):
            raise ValueError(f"DatasetSource: order is 'bgr' or 'rgb', not {order!r}.")
        self.order = order
        self.labels = labels

    def draw(self, items: list[dict]) -> tuple[Tensor, Targets]:
        """The batch as the dataset's pipeline made it.

        Raises:
            ValueError: If the images of the batch differ in size: the pipeline must crop or pad
                them; if labels are asked for and an image has not one class.
        """
        sizes = {tuple(item['inputs'].shape) for item in items}
        if len(sizes) > 1:
            raise ValueError(
                'DatasetSource: images of one batch must have one size, not '
                f'{sorted(sizes)}: crop or pad them.'
            )
        images = torch.stack([item['inputs'] for item in items]).to(self.device).float() / 255
        targets = Targets(labels=self._classes(items)) if self.labels else Targets()
        return (images.flip(1) if self.order == 'bgr' else images), targets

    def _classes(self, items: list[dict]) -> Tensor:
        """Class indices ``[B]``."""
        found = [getattr(item.get('data_samples'), 'gt_label', None) for item in items]
        if any(label is None or label.numel() != 1 for label in found):
            raise ValueError(
                'DatasetSource: labels=True needs one class with every image (`gt_label` of its '
                'data sample): take a labelled classification set, or leave labels out.'
            )
        return torch.cat([label.reshape(1) for label in found]).to(self.device)
