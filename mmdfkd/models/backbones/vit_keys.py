"""Key names of plain ViT checkpoints, translated to those of :class:`ViTDet`.

ViTDet uses the names of timm, MAE and mmdet's published ViTDet (``blocks.0.mlp.fc1``); mmpretrain
says ``layers.0.ffn.layers.0.0``.
"""

import re
from collections.abc import Mapping

from torch import Tensor

RELATIVE_POSITION = re.compile(r'\.rel_pos_[hw]$')

_MMPRETRAIN = (
    (re.compile(r'^patch_embed\.projection\.'), 'patch_embed.proj.'),
    (re.compile(r'^layers\.(\d+)\.ln([12])\.'), r'blocks.\1.norm\2.'),
    (re.compile(r'^layers\.(\d+)\.attn\.'), r'blocks.\1.attn.'),
    (re.compile(r'^layers\.(\d+)\.ffn\.layers\.0\.0\.'), r'blocks.\1.mlp.fc1.'),
    (re.compile(r'^layers\.(\d+)\.ffn\.layers\.1\.'), r'blocks.\1.mlp.fc2.'),
)
# What a classifier or an autoencoder has and a ViTDet backbone has not.
_NOT_BACKBONE = re.compile(
    r'^(cls_token|dist_token|mask_token|norm|fc_norm|ln1|ln2|head|head_dist|pre_logits|decoder|decoder_\w+)(\.|$)'
)


def to_vitdet_keys(
    state_dict: Mapping[str, Tensor], positions: int | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate the keys of a plain ViT.

    Understands mmdet's published ViTDet, timm, MAE, DeiT and mmpretrain names (no prefix). A
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
    converted, dropped = {}, []
    for key, value in state_dict.items():
        if _NOT_BACKBONE.match(key):
            dropped.append(key)
            continue
        for pattern, name in _MMPRETRAIN:
            key, found = pattern.subn(name, key)
            if found:
                break
        if key == 'pos_embed' and positions and value.dim() == 3:
            extra = value.shape[1] - positions
            value = value[:, extra:] if extra in (1, 2) else value
        converted[key] = value
    return converted, dropped
