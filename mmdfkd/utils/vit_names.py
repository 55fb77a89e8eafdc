"""What the parameters of a plain ViT are called, by whom.

Every library's names are brought to those of timm, which facebook's DeiT and MAE and detectron2's
and mmdet's ViTDet share (``blocks.0.attn.qkv``), and from there to those of the target. Names are
told apart by themselves, key by key, so that a part of a checkpoint is translated like the whole.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Rules = tuple[tuple[re.Pattern, str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), name) for pattern, name in pairs)


# Where a backbone lies inside a whole model.
_PREFIX = re.compile(r'^(backbone\.net\.|backbone\.|net\.|vit\.|deit\.)')

_MMPRETRAIN = _rules(
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^pre_norm\.', 'norm_pre.'),
    (r'^ln1\.', 'norm.'),
    (r'^ln2\.', 'fc_norm.'),
    (r'^layers\.(\d+)\.ln([12])\.', r'blocks.\1.norm\2.'),
    (r'^layers\.(\d+)\.attn\.gamma1\.weight$', r'blocks.\1.ls1.gamma'),
    (r'^layers\.(\d+)\.ffn\.gamma2\.weight$', r'blocks.\1.ls2.gamma'),
    (r'^layers\.(\d+)\.attn\.', r'blocks.\1.attn.'),
    (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'blocks.\1.mlp.fc1.'),
    (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'blocks.\1.mlp.fc2.'),
    (r'^head\.layers\.pre_logits\.', 'pre_logits.fc.'),
    (r'^head\.layers\.head_dist\.', 'head_dist.'),
    (r'^head\.(?:layers\.head|fc)\.', 'head.'),
)
# The names in published files, and those that the modules have in transformers 5.
_LAYER = r'^(?:encoder\.layer|layers)\.(\d+)\.'
_HUGGING_FACE = _rules(
    (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^embeddings\.position_embeddings$', 'pos_embed'),
    (r'^embeddings\.distillation_token$', 'dist_token'),
    (r'^embeddings\.(cls|mask)_token$', r'\1_token'),
    (r'^layernorm\.', 'norm.'),
    (_LAYER + r'layernorm_before\.', r'blocks.\1.norm1.'),
    (_LAYER + r'layernorm_after\.', r'blocks.\1.norm2.'),
    (_LAYER + r'attention\.(?:attention\.query|q_proj)\.', r'blocks.\1.attn.q.'),
    (_LAYER + r'attention\.(?:attention\.key|k_proj)\.', r'blocks.\1.attn.k.'),
    (_LAYER + r'attention\.(?:attention\.value|v_proj)\.', r'blocks.\1.attn.v.'),
    (_LAYER + r'attention\.(?:output\.dense|o_proj)\.', r'blocks.\1.attn.proj.'),
    (_LAYER + r'(?:intermediate\.dense|mlp\.fc1)\.', r'blocks.\1.mlp.fc1.'),
    (_LAYER + r'(?:output\.dense|mlp\.fc2)\.', r'blocks.\1.mlp.fc2.'),
    (r'^(?:cls_)?classifier\.', 'head.'),
    (r'^distillation_classifier\.', 'head_dist.'),
)
# DeiT III of facebook; timm says ls1.gamma.
_FACEBOOK = _rules((r'^blocks\.(\d+)\.gamma_([12])$', r'blocks.\1.ls\2.gamma'))

# From timm's names to mmpretrain's, with the prefix of a whole classifier.
_TO_MMPRETRAIN = _rules(
    (r'^(cls_token|dist_token|pos_embed)$', r'backbone.\1'),
    (r'^patch_embed\.proj\.', 'backbone.patch_embed.projection.'),
    (r'^norm_pre\.', 'backbone.pre_norm.'),
    (r'^norm\.', 'backbone.ln1.'),
    (r'^fc_norm\.', 'backbone.ln2.'),
    (r'^blocks\.(\d+)\.norm([12])\.', r'backbone.layers.\1.ln\2.'),
    (r'^blocks\.(\d+)\.attn\.(qkv|proj)\.', r'backbone.layers.\1.attn.\2.'),
    (r'^blocks\.(\d+)\.ls1\.gamma$', r'backbone.layers.\1.attn.gamma1.weight'),
    (r'^blocks\.(\d+)\.ls2\.gamma$', r'backbone.layers.\1.ffn.gamma2.weight'),
    (r'^blocks\.(\d+)\.mlp\.fc1\.', r'backbone.layers.\1.ffn.layers.0.0.'),
    (r'^blocks\.(\d+)\.mlp\.fc2\.', r'backbone.layers.\1.ffn.layers.1.'),
    (r'^pre_logits\.fc\.', 'head.layers.pre_logits.'),
    (r'^head\.(weight|bias)$', r'head.layers.head.\1'),
    (r'^head_dist\.', 'head.layers.head_dist.'),
)
_TO_VITDET = _rules(
    (r'^(pos_embed)$', r'backbone.\1'),
    (r'^patch_embed\.proj\.', 'backbone.patch_embed.proj.'),
    (
        r'^blocks\.(\d+)\.(norm[12]\.|attn\.(?:qkv|proj)\.|attn\.rel_pos_|mlp\.fc[12]\.)',
        r'backbone.blocks.\1.\2',
    ),
)
#: Of a detector, what follows the backbone is named in :mod:`mmdfkd.utils.detector_names`.
TARGETS: dict[str, Rules] = {
    'mmpretrain': _TO_MMPRETRAIN,
    'vitdet': _TO_VITDET,
    'vitdet-detector': _TO_VITDET,
}

# For pre-training alone: a decoder, an unused pooler.
PRE_TRAINING = re.compile(r'^(decoder|mask_token|pooler)([._]|$)')
# What a detector has beside its backbone, in detectron2 and mmdet.
DETECTOR = re.compile(
    r'^(simfp_\d|fpn\w*|neck|proposal_generator|rpn_head|roi_heads?|pixel_\w+)(\.|$)'
)
# What a classifier or an autoencoder has and a ViTDet backbone has not.
NOT_BACKBONE = re.compile(
    r'^(cls_token|dist_token|norm|fc_norm|head|head_dist|pre_logits)(\.|$)'
    rf'|{PRE_TRAINING.pattern}|^simfp_\d\.'
)

# In the order in which they are asked: an earlier sign decides.
_SIGNS = (
    ('detectron2', re.compile(r'^backbone\.net\.')),
    ('Hugging Face', re.compile(r'(^|\.)embeddings\.patch_embeddings\.projection\.weight$')),
    ('mmpretrain', re.compile(r'^(backbone\.)?patch_embed\.projection\.weight$')),
    ('ViTDet', re.compile(r'^backbone\.patch_embed\.proj\.weight$')),
    ('timm', re.compile(r'^patch_embed\.proj\.weight$')),
)
_QKV = re.compile(r'^(blocks\.\d+\.attn)\.[qkv]\.(weight|bias)$')


def family_of(keys: Iterable[str]) -> str | None:
    """Whose names they are: of a whole ViT, by its patch embedding; None if of none known."""
    keys = list(keys)
    return next((name for name, sign in _SIGNS if any(map(sign.search, keys))), None)


def rename(key: str, rules: Rules) -> str | None:
    """The name that the first fitting rule gives; None if none fits."""
    for pattern, name in rules:
        new, found = pattern.subn(name, key)
        if found:
            return new
    return None


def timm_name(key: str) -> str:
    """A parameter's name in timm; its own where no library's rule fits."""
    key = _PREFIX.sub('', key)
    return rename(key, _MMPRETRAIN + _HUGGING_FACE + _FACEBOOK) or key


def timm_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in timm's names; projections of queries, keys and values are joined to one.

    Args:
        state_dict (Mapping[str, Tensor]): Of a plain ViT, of any of the libraries.

    Raises:
        ValueError: If one of three projections lacks, or two keys get one name.
    """
    named: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = timm_name(key)
        if name in named:
            raise ValueError(f"Two keys of the checkpoint are '{name}'; one of them is '{key}'.")
        named[name] = value
    joined: dict[str, Tensor] = {}
    for name, value in named.items():
        found = _QKV.match(name)
        if not found:
            joined[name] = value
            continue
        block, kind = found.groups()
        parts = [named.get(f'{block}.{part}.{kind}') for part in 'qkv']
        if any(part is None for part in parts):
            raise ValueError(f'{block} has no {kind} for each of query, key and value.')
        joined[f'{block}.qkv.{kind}'] = torch.cat(parts)
    return joined
