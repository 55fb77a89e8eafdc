"""Key names of plain ViT checkpoints, translated to those of :class:`ViTDet`.

ViTDet uses the names of timm, MAE and mmdet's published ViTDet (``blocks.0.mlp.fc1``); mmpretrain
says ``layers.0.ffn.layers.0.0``, Hugging Face ``encoder.layer.0.intermediate.dense``.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from mmdfkd.utils.vit_names import NOT_BACKBONE, timm_name, timm_names

RELATIVE_POSITION = re.compile(r'\.rel_pos_[hw]$')


def to_vitdet_keys(
    state_dict: Mapping[str, Tensor], positions: int | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the keys of a plain ViT.

    Understands the names of :mod:`mmdfkd.utils.vit_names`, of a backbone alone. A
    relative-position table or absolute positions of another length keep their shape: the caller
    compares.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of a backbone.
        positions (int, optional): Length of the network's absolute positions. A table that is
            longer by one or two begins with the places of a class and a distillation token that the
            network does without.

    Returns:
        tuple: The weights in ViTDet's names, and the keys left out because a ViTDet backbone has no
        such layer (class token, final norm, classifier, decoder).
    """
    dropped = [key for key in state_dict if NOT_BACKBONE.match(timm_name(key))]
    converted = timm_names({k: v for k, v in state_dict.items() if k not in set(dropped)})
    table = converted.get('pos_embed')
    if positions and table is not None and table.dim() == 3:
        extra = table.shape[1] - positions
        converted['pos_embed'] = table[:, extra:] if extra in (1, 2) else table
    return converted, dropped
