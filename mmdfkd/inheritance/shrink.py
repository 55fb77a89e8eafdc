"""The model config of a student that is a narrower, shallower copy of its teacher."""

import math
from collections.abc import Mapping
from copy import deepcopy

from mmengine.config import ConfigDict

_CLASSIFIER_BACKBONES = ('VisionTransformer', 'DistilledVisionTransformer')
_CLASSIFIER_HEADS = ('VisionTransformerClsHead', 'DeiTClsHead', 'LinearClsHead')
_SWIN_HEADS = ('LinearClsHead',)
_DETRS = ('DETR', 'ConditionalDETR', 'DABDETR', 'DeformableDETR', 'DINO')
_SUPPORTED = (
    'mmpretrain ImageClassifier with VisionTransformer or DistilledVisionTransformer and a '
    'linear head '
    f'({", ".join(_CLASSIFIER_HEADS)}), or with SwinTransformer, GlobalAveragePooling and a '
    'LinearClsHead; two-stage detectors (RPNHead, StandardRoIHead) with '
    'mmdfkd.ViTDet and '
    'mmdfkd.SimpleFPN; DETR-like detectors with mmdfkd.ViTDet and mmdfkd.SimpleFPN or a '
    'ChannelMapper'
)


def _name(cfg: Mapping | None) -> str:
    return str((cfg or {}).get('type', 'None')).rsplit('.', 1)[-1]


def _unsupported(what: str) -> ValueError:
    return ValueError(
        f'Cannot shrink this teacher: {what}. Supported: {_SUPPORTED}. Give the student as a '
        'config of its own instead.'
    )


def _nearest(value: float, step: int = 1) -> int:
    """``value`` rounded half up to a multiple of ``step``, at least ``step``."""
    return max(step, int(value / step + 0.5) * step)


def _cut(value: int, share: float, step: int = 1) -> int:
    """``share`` of ``value``; never more than ``value``, and exactly it when the share is 1."""
    return value if share == 1 else min(value, _nearest(value * share, step))


def spread_globals(
    global_indices: tuple[int, ...], num_layers: int, kept_layers: int
) -> tuple[int, ...]:
    """Global blocks of a shallower ViTDet, spread over the depth as the teacher's are.

    Their share is kept, rounded up: global blocks are the few that carry information across
    windows.

    Args:
        global_indices (tuple[int]): Global blocks of the teacher.
        num_layers (int): Blocks of the teacher.
        kept_layers (int): Blocks of the student.

    Returns:
        tuple[int]: Global blocks of the student, ascending.
    """
    count = min(kept_layers, -(-len(global_indices) * kept_layers // num_layers))
    if count == len(global_indices) and kept_layers == num_layers:
        return tuple(sorted(global_indices))
    if not count:
        return ()
    end = (max(global_indices) + 1) / num_layers * kept_layers
    found: list[int] = []
    for i in range(count):
        index = _nearest(end * (i + 1) / count) - 1
        lowest = found[-1] + 1 if found else 0
        found.append(min(max(index, lowest), kept_layers - (count - i)))
    return tuple(found)


def _without_pretraining(cfg):
    """A deep copy without ``Pretrained`` initialisations."""
    if isinstance(cfg, Mapping):
        kept = ConfigDict()
        for key, value in cfg.items():
            if key == 'init_cfg':
                entries = value if isinstance(value, list | tuple) else [value]
                entries = [e for e in entries if _name(e) != 'Pretrained']
                if entries and value is not None:
                    kept[key] = deepcopy(entries if isinstance(value, list | tuple) else entries[0])
            elif key not in ('pretrained', '_scope_'):
                kept[key] = _without_pretraining(value)
        for key in ('_scope_',):
            if key in cfg:
                kept[key] = cfg[key]
        return kept
    if isinstance(cfg, list | tuple):
        return type(cfg)(_without_pretraining(v) for v in cfg)
    return deepcopy(cfg)


def _shrink_classifier(
    model: ConfigDict,
    width: float,
    depth: float,
    mlp: float,
    patch_size: int | None,
) -> None:
    from mmpretrain.models.backbones import VisionTransformer

    backbone, head = model.backbone, model.get('head') or {}
    if _name(head) not in _CLASSIFIER_HEADS:
        raise _unsupported(f'its head is {_name(head)}')
    if model.get('neck') is not None:
        raise _unsupported(f'it has the neck {_name(model.neck)} between backbone and head')
    default = 'deit-base' if _name(backbone) == 'DistilledVisionTransformer' else 'base'
    arch = backbone.get('arch', default)
    if isinstance(arch, str):
        if arch.lower() not in VisionTransformer.arch_zoo:
            raise _unsupported(f"its backbone has the unknown arch '{arch}'")
        arch = VisionTransformer.arch_zoo[arch.lower()]
    if not isinstance(backbone.get('layer_cfgs', {}), Mapping):
        raise _unsupported('its backbone configures each layer apart (layer_cfgs is a list)')
    if backbone.get('out_indices', -1) not in (
        -1,
        [-1],
        arch['num_layers'] - 1,
        [arch['num_layers'] - 1],
    ):
        raise _unsupported(
            f'its backbone returns the layers {backbone.out_indices}, not the last alone'
        )
    backbone.pop('out_indices', None)
    heads = _cut(arch['num_heads'], width)
    backbone.arch = ConfigDict(
        embed_dims=heads * (arch['embed_dims'] // arch['num_heads']),
        num_layers=_cut(arch['num_layers'], depth),
        num_heads=heads,
        feedforward_channels=_cut(arch['feedforward_channels'], mlp, 8),
    )
    head.in_channels = backbone.arch.embed_dims
    if patch_size is not None:
        backbone.patch_size = patch_size


def _shrink_swin(model: ConfigDict, width: float, depth: float, mlp: float) -> None:
    from mmpretrain.models.backbones import SwinTransformer

    backbone, head = model.backbone, model.get('head') or {}
    if _name(head) not in _SWIN_HEADS or _name(model.get('neck')) != 'GlobalAveragePooling':
        raise _unsupported(f'its Swin has the neck {_name(model.get("neck"))} and {_name(head)}')
    arch = backbone.get('arch', 'tiny')
    if isinstance(arch, str):
        if arch.lower() not in SwinTransformer.arch_zoo:
            raise _unsupported(f"its backbone has the unknown arch '{arch}'")
        arch = SwinTransformer.arch_zoo[arch.lower()]
    stages = backbone.get('stage_cfgs') or {}
    blocks = stages.get('block_cfgs', {}) if isinstance(stages, Mapping) else None
    if not isinstance(blocks, Mapping) or set(stages) - {'block_cfgs'}:
        raise _unsupported('its backbone configures stages or blocks apart (stage_cfgs)')
    wide, heads = arch['embed_dims'], list(arch['num_heads'])
    if any(h != heads[0] * 2**i for i, h in enumerate(heads)):
        raise _unsupported(f'the heads of its stages, {heads}, do not double from stage to stage')
    kept = _cut(heads[0], width)
    narrow = kept * (wide // heads[0])
    ratio = blocks.get('ffn_ratio', 4.0)
    units = _cut(int(wide * ratio), mlp, 8)
    if units != int(wide * ratio) or narrow != wide:
        ratio = units / narrow
        # Swin truncates the product.
        ratio = ratio if int(narrow * ratio) == units else math.nextafter(ratio, math.inf)
        backbone.stage_cfgs = ConfigDict(block_cfgs=dict(blocks, ffn_ratio=ratio))
    backbone.arch = ConfigDict(
        embed_dims=narrow,
        # In pairs: a block with shifted windows follows one without.
        depths=[_cut(n, depth, 2 if n % 2 == 0 else 1) for n in arch['depths']],
        num_heads=[kept * 2**i for i in range(len(heads))],
    )
    head.in_channels = narrow * 2 ** (len(heads) - 1)


def _shrink_vitdet(backbone: ConfigDict, width: float, depth: float, mlp: float) -> int:
    from mmdfkd.models.backbones.vitdet import ARCHS

    arch = backbone.get('arch', 'base')
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise _unsupported(f"its backbone has the unknown arch '{arch}'")
        arch = ARCHS[arch]._asdict()
    layers = arch['num_layers']
    if backbone.get('out_indices', -1) not in (
        -1,
        [-1],
        (-1,),
        layers - 1,
        [layers - 1],
        (layers - 1,),
    ):
        raise _unsupported(
            f'its backbone returns the blocks {backbone.out_indices}, not the last alone'
        )
    backbone.pop('out_indices', None)
    indices = tuple(sorted(i % layers for i in arch['global_indices']))
    kept = _cut(layers, depth)
    backbone.arch = ConfigDict(
        embed_dims=_cut(arch['embed_dims'], width, 8),
        num_layers=kept,
        num_heads=_cut(arch['num_heads'], width),
        head_dims=arch.get('head_dims') or arch['embed_dims'] // arch['num_heads'],
        feedforward_channels=_cut(arch['feedforward_channels'], mlp, 8),
        global_indices=spread_globals(indices, layers, kept),
    )
    return backbone.arch.embed_dims


def _shrink_roi_part(
    extractor: Mapping | None, part: ConfigDict, channels: int, head: float
) -> None:
    if isinstance(part, list | tuple):
        raise _unsupported('its RoI head has several stages (a cascade)')
    if extractor is not None:
        if isinstance(extractor, list | tuple):
            raise _unsupported('its RoI head has several stages (a cascade)')
        extractor.out_channels = channels
    part.in_channels = channels
    is_mask = 'Mask' in _name(part)
    if 'FC' in _name(part) and not is_mask:
        part.fc_out_channels = _cut(part.get('fc_out_channels', 1024), head, 8)
    if 'Conv' in _name(part) or is_mask:
        part.conv_out_channels = _cut(part.get('conv_out_channels', 256), head, 8)


def _shrink_detector(
    model: ConfigDict, width: float, depth: float, mlp: float, neck: float, head: float
) -> None:
    for key, expected in (
        ('neck', 'SimpleFPN'),
        ('rpn_head', 'RPNHead'),
        ('roi_head', 'StandardRoIHead'),
    ):
        if _name(model.get(key)) != expected:
            raise _unsupported(f'its {key} is {_name(model.get(key))}')
    model.neck.in_channels = _shrink_vitdet(model.backbone, width, depth, mlp)
    model.neck.out_channels = channels = _cut(model.neck.get('out_channels', 256), neck, 8)
    if model.neck.get('lateral_channels'):
        model.neck.lateral_channels = _cut(model.neck.lateral_channels, neck, 8)
    model.rpn_head.in_channels = channels
    model.rpn_head.feat_channels = _cut(model.rpn_head.get('feat_channels', 256), head, 8)
    roi = model.roi_head
    _shrink_roi_part(roi.get('bbox_roi_extractor'), roi.bbox_head, channels, head)
    if roi.get('mask_head') is not None:
        _shrink_roi_part(roi.get('mask_roi_extractor'), roi.mask_head, channels, head)


def _shrink_detr(
    model: ConfigDict,
    width: float,
    depth: float,
    mlp: float,
    neck: float | None,
    head: float,
    decoder: float,
) -> None:
    kind = _name(model.get('neck'))
    if kind not in ('SimpleFPN', 'ChannelMapper'):
        raise _unsupported(f'its neck is {kind}')
    channels = _shrink_vitdet(model.backbone, width, depth, mlp)
    if kind == 'ChannelMapper' and len(model.neck.in_channels) != 1:
        raise _unsupported('its ChannelMapper reads several maps')
    model.neck.in_channels = [channels] if kind == 'ChannelMapper' else channels
    if neck not in (None, 1):
        if kind == 'ChannelMapper':
            raise ValueError(
                f'mmdfkd.Shrunk: neck={neck} for a {_name(model)} with a ChannelMapper, whose one '
                'convolution writes what the decoder reads: leave neck out.'
            )
        wide = model.neck.get('lateral_channels') or model.neck.get('out_channels', 256)
        model.neck.lateral_channels = _cut(wide, neck, 8)
    for part in (model.encoder, model.decoder):
        part.num_layers = _cut(part.num_layers, decoder)
        ffn = part.layer_cfg.ffn_cfg
        ffn.feedforward_channels = _cut(ffn.get('feedforward_channels', 1024), head, 8)


def _refuse(model: ConfigDict, shares: Mapping[str, float | None]) -> None:
    """Shares of what a network does not have; one that cuts nothing may be given."""
    without = [f'{name}={share}' for name, share in shares.items() if share not in (None, 1)]
    if without:
        raise ValueError(
            f'mmdfkd.Shrunk: {", ".join(without)} for a {_name(model)}, which has no such part to '
            'make smaller: leave it out.'
        )


def shrink_config(
    teacher_cfg: Mapping,
    width: float = 0.75,
    depth: float = 0.67,
    mlp: float | None = None,
    neck: float | None = None,
    head: float | None = None,
    decoder: float | None = None,
    patch_size: int | None = None,
) -> ConfigDict:
    """Derive a student's model config from its teacher's.

    Heads keep their width (whole heads are inherited), so a classifier's ``embed_dims`` is its
    number of heads times it; ViTDet states ``head_dims``, so its ``embed_dims`` is free. Classes,
    anchors, coders, ``test_cfg`` and preprocessing stay the teacher's; ``Pretrained``
    initialisations are dropped. Stochastic depth is switched off: a student distilled for some
    hundred steps is to follow its teacher with all its blocks at once.

    Args:
        teacher_cfg (Mapping): The teacher's whole config.
        width (float): Share of the token channels and of the heads, in (0, 1]. Defaults to 0.75.
        depth (float): Share of the blocks. Defaults to 0.67.
        mlp (float, optional): Share of the MLPs' hidden units. Defaults to ``width``.
        neck (float, optional): Share of the pyramid's channels. Defaults to ``width``. A DETR's
            stay, as the width of its encoder and decoder does: there it is the share of the
            channels between the two convolutions of its SimpleFPN, and 1 by default.
        head (float, optional): Share of the detection heads' hidden widths, of a DETR those of the
            MLPs in encoder and decoder. Defaults to ``width``.
        decoder (float, optional): Share of the layers of a DETR's encoder and decoder. Defaults to
            ``depth``.
        patch_size (int, optional): Side of the student's patches in pixels, of a plain ViT that
            classifies. Defaults to the teacher's.

    Returns:
        ConfigDict: A ``model`` config, its ``data_preprocessor`` included where the teacher's
            config has one.

    Raises:
        ValueError: If a share is outside (0, 1] or of what the teacher does not have, or its
            architecture is not supported.
    """
    given = dict(neck=neck, head=head, decoder=decoder)
    mlp, neck, head = (width if share is None else share for share in (mlp, neck, head))
    decoder = depth if decoder is None else decoder
    shares = dict(width=width, depth=depth, mlp=mlp, neck=neck, head=head, decoder=decoder)
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(
                f'mmdfkd.Shrunk: {name}={share!r} must be a share of the teacher, above 0 and at '
                'most 1.'
            )
    whole = isinstance(patch_size, int) and not isinstance(patch_size, bool)
    if patch_size is not None and not (whole and patch_size > 0):
        raise ValueError(
            f'mmdfkd.Shrunk: patch_size={patch_size!r} must be a number of pixels, at least 1.'
        )
    if not isinstance(teacher_cfg.get('model'), Mapping):
        raise ValueError("mmdfkd.Shrunk needs the teacher's whole config, with its 'model'.")
    model = _without_pretraining(teacher_cfg['model'])
    if not isinstance(model.get('backbone'), Mapping):
        raise _unsupported(f'{_name(model)} has no backbone')
    if patch_size is not None and _name(model.backbone) not in _CLASSIFIER_BACKBONES:
        raise ValueError(
            f'mmdfkd.Shrunk: patch_size={patch_size} for a {_name(model.backbone)}, whose windows '
            'and stages are laid out in patches: plain ViT classifiers only. Leave it out.'
        )
    # mmpretrain's layer_cfgs overrule the rate of the backbone.
    for part in (model.backbone, model.backbone.get('layer_cfgs')):
        if isinstance(part, Mapping) and 'drop_path_rate' in part:
            part['drop_path_rate'] = 0.0
    if _name(model) == 'ImageClassifier' and _name(model.backbone) in _CLASSIFIER_BACKBONES:
        _refuse(model, given)
        _shrink_classifier(model, width, depth, mlp, patch_size)
    elif _name(model) == 'ImageClassifier' and _name(model.backbone) == 'SwinTransformer':
        _refuse(model, given)
        _shrink_swin(model, width, depth, mlp)
    elif _name(model.backbone) == 'ViTDet' and _name(model) in _DETRS:
        _shrink_detr(model, width, depth, mlp, given['neck'], head, decoder)
    elif _name(model.backbone) == 'ViTDet' and 'roi_head' in model:
        _refuse(model, dict(decoder=given['decoder']))
        _shrink_detector(model, width, depth, mlp, neck, head)
    else:
        raise _unsupported(f'{_name(model)} with the backbone {_name(model.backbone)}')
    if teacher_cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(teacher_cfg['data_preprocessor']))
    return model
