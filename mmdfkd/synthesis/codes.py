"""What a generator is told of a class: a code, from the teacher itself."""

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmdfkd.adapters.base import Adapter

KINDS = ('prototypes', 'onehot')


def class_weights(teacher: Adapter) -> Tensor:
    """The rows of the teacher's last classifying layer, one a class: ``[C, D]``.

    They are prototypes of the classes that cost nothing: the feature that the teacher finds most
    like each, up to scale.

    Raises:
        ValueError: If no linear layer gives one number a class.
    """
    classes = teacher.num_classes
    layers = [
        layer
        for name, layer in teacher.net.named_modules()
        if isinstance(layer, nn.Linear) and 'reg' not in name
    ]
    # Detectors count the background too.
    for width in (classes, classes + 1):
        found = [layer for layer in layers if layer.out_features == width]
        if found:
            return found[-1].weight.detach()[:classes]
    raise ValueError(
        f'The teacher has no linear layer of {classes} classes whose rows could stand for them: '
        "use codes='onehot'."
    )


@torch.no_grad()
def label_codes(teacher: Adapter, kind: str, dims: int) -> Tensor:
    """One code for each class, of unit root mean square over all.

    * ``'prototypes'``: the principal coordinates of :func:`class_weights` about their mean, so that
      classes which the teacher finds alike have codes alike. Exact where ``dims`` is at least the
      number of classes or of the teacher's features; else the leading ones. NAYER (Tran et al.,
      CVPR 2024) takes a language model's embeddings of the class names, which nothing but that
      model and the names can give.
    * ``'onehot'``: a direction for each class.

    Args:
        teacher (Adapter): The teacher.
        kind (str): As above.
        dims (int): Numbers of a code.

    Returns:
        Tensor: ``[C, dims]`` on the CPU, in float32.

    Raises:
        ValueError: If there are more classes than directions.
    """
    classes = teacher.num_classes
    codes = torch.zeros(classes, dims, dtype=torch.float64)
    if kind == 'onehot':
        if classes > dims:
            raise ValueError(
                f"codes='onehot' needs a direction for each of {classes} classes, and the "
                f"generator's label_dims is {dims}: raise it, or use codes='prototypes'."
            )
        codes.fill_diagonal_(1)
    else:
        rows = class_weights(teacher).double().cpu()
        left, values, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        # A direction's sign means nothing; this one is the same for every implementation.
        most = left.abs().argmax(0)
        left = left * left[most, torch.arange(left.shape[1])].sign()
        kept = min(dims, len(values))
        codes[:, :kept] = (left * values)[:, :kept]
        share = values[:kept].square().sum() / values.square().sum().clamp_min(1e-12)
        print_log(
            f'Generator: {kept} coordinates of {classes} class prototypes have {share:.0%} of '
            'their variance',
            'current',
        )
    return (codes / codes.square().mean().sqrt().clamp_min(1e-12)).float()
