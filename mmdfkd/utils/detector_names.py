"""What the layers behind a ViTDet's backbone are called, in detectron2 and in mmdet."""

import re

_KIND = r'(weight|bias)'
_PYRAMID = re.compile(rf'simfp_([2-5])\.(\d)(\.norm)?\.{_KIND}')
# Of the strides 4, 8, 16 and 32: where the two convolutions begin, behind what rescales the map.
_FIRST_CONV = (4, 1, 0, 1)
_RPN = re.compile(
    rf'proposal_generator\.rpn_head\.(conv(?:\.conv(\d+))?|objectness_logits|anchor_deltas)\.{_KIND}'
)
# Stages of a cascade have a number.
_BOX = re.compile(rf'roi_heads\.box_head\.(\d+\.)?(conv|fc)(\d+)(\.norm)?\.{_KIND}')
_BOX_ANSWER = re.compile(rf'roi_heads\.box_predictor\.(\d+\.)?(cls_score|bbox_pred)\.{_KIND}')
_MASK = re.compile(rf'roi_heads\.mask_head\.(mask_fcn(\d+)|deconv|predictor)(\.norm)?\.{_KIND}')
_OWN = ('neck.', 'rpn_head.', 'roi_head.')

#: What a detector's file may hold that no network of mmdet learns.
NOT_LEARNED = re.compile(r'^(pixel_(mean|std)|proposal_generator\.anchor_generator\..*)$')


def detector_name(key: str) -> str | None:
    """Name in mmdet of a parameter behind the backbone; None where there is none.

    Of Faster, Mask and Cascade R-CNN on the simple feature pyramid, in mmdet
    :class:`mmdfkd.models.SimpleFPN`, ``RPNHead``, ``ConvFCBBoxHead`` and ``FCNMaskHead`` with norms
    :class:`mmdfkd.models.LayerNorm2d`.

    Args:
        key (str): In detectron2's names, without ``backbone.`` before the pyramid, or in mmdet's.
    """
    if key.startswith(_OWN):
        return key
    if found := _PYRAMID.fullmatch(key):
        return _pyramid(int(found[1]) - 2, int(found[2]), found[3], found[4])
    if found := _RPN.fullmatch(key):
        layer, number, kind = found.groups()
        answers = dict(objectness_logits='rpn_cls', anchor_deltas='rpn_reg', conv='rpn_conv')
        return f'rpn_head.{answers.get(layer, f"rpn_conv.{number}.conv")}.{kind}'
    if found := _BOX.fullmatch(key):
        stage, layer, number, norm, kind = found.groups()
        place = f'roi_head.bbox_head.{stage or ""}shared_{layer}s.{int(number) - 1}'
        return f'{place}.{kind}' if layer == 'fc' else f'{place}.{_part(norm)}.{kind}'
    if found := _BOX_ANSWER.fullmatch(key):
        stage, layer, kind = found.groups()
        answer = dict(cls_score='fc_cls', bbox_pred='fc_reg')[layer]
        return f'roi_head.bbox_head.{stage or ""}{answer}.{kind}'
    if found := _MASK.fullmatch(key):
        layer, number, norm, kind = found.groups()
        if number is None:
            layer = dict(deconv='upsample', predictor='conv_logits')[layer]
            return f'roi_head.mask_head.{layer}.{kind}'
        return f'roi_head.mask_head.convs.{int(number) - 1}.{_part(norm)}.{kind}'
    return None


def _pyramid(level: int, layer: int, norm: str | None, kind: str) -> str | None:
    offset = layer - _FIRST_CONV[level]
    if offset < 0:
        return f'neck.fpn{level + 1}.{layer}.{kind}'
    if offset > 1:
        return None
    convs = ('lateral_convs', 'fpn_convs')[offset]
    return f'neck.{convs}.{level}.{_part(norm)}.{kind}'


def _part(norm: str | None) -> str:
    return 'norm_layer' if norm else 'conv'
