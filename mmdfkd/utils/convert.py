"""One converter for checkpoints of plain ViTs: whose they are is told by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from math import isqrt

import torch
from mmengine.logging import print_log
from torch import Tensor

from .detector_names import NOT_LEARNED, detector_name
from .vit_names import (
    DETECTOR,
    NOT_BACKBONE,
    PRE_TRAINING,
    TARGETS,
    family_of,
    rename,
    timm_names,
)


class ConversionError(ValueError):
    """A checkpoint is not one of a plain ViT that can be converted."""


@dataclass
class Conversion:
    """Converted weights and what became of the rest.

    Attributes:
        weights: In the target's names.
        family: Whose names the file had.
        to: Whose they have now.
        left_out: Keys of the file, in timm's names, that the target has no place for, with the
            reason.
        notes: What was changed beside the names.
    """

    weights: dict[str, Tensor]
    family: str
    to: str
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'{len(self.weights)} tensors from the names of {self.family} to {self.to}.']
        reasons: dict[str, list[str]] = {}
        for key, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(key)
        lines += [f'Left out, {why}: {", ".join(keys)}' for why, keys in reasons.items()]
        return '\n'.join(lines + self.notes)


def convert_vit(
    state_dict: Mapping[str, Tensor], to: str = 'mmpretrain', drop: Sequence[str] = ()
) -> Conversion:
    """Convert the weights of a plain ViT.

    From timm (ViT, DeiT, distilled DeiT, layer scale), facebook (DeiT, DeiT III, MAE), Hugging Face
    (``ViT``, ``DeiT``, ``ViTMAE``; as published and as transformers 5 names its modules),
    detectron2 and mmdet (ViTDet: its backbone, or the whole detector) and mmpretrain.

    Names do not hold everything: the target's config has to say the epsilon of the LayerNorms (timm
    and detectron2 1e-6, mmpretrain's default; Hugging Face 1e-12), the number of heads,
    ``out_type``, and how images are normalised.

    Args:
        state_dict (Mapping[str, Tensor]): Plain weights, see
            :func:`~mmdfkd.utils.checkpoint.unwrap_state_dict`.
        to (str): ``'mmpretrain'``: a classifier with ``VisionTransformer`` or
            ``DistilledVisionTransformer`` (``backbone.`` and ``head.layers.``); ``'vitdet'``: the
            backbone :class:`mmdfkd.models.ViTDet` (``backbone.``); ``'vitdet-detector'``: that with
            pyramid, RPN, box and mask head of a two-stage detector of mmdet, see
            :mod:`mmdfkd.utils.detector_names`. Defaults to ``'mmpretrain'``.
        drop (Sequence[str]): Keys in timm's names, as ``fnmatch`` patterns, to leave out.

    Returns:
        Conversion: The weights, and every key that was left out.

    Raises:
        ConversionError: If the checkpoint is of none of these, or has a key that is understood
            neither as a weight of the target nor as one it can do without; all are named.
    """
    if to not in TARGETS:
        raise ValueError(f"convert_vit: to must be one of {sorted(TARGETS)}, not '{to}'.")
    family = family_of(state_dict)
    if family is None:
        raise ConversionError(
            f'No plain ViT of a known library: the keys begin with {list(state_dict)[:6]}. Known '
            'are timm, facebook (DeiT, MAE), Hugging Face (ViT, DeiT), detectron2 and mmdet '
            '(ViTDet) and mmpretrain.'
        )
    try:
        named = timm_names(state_dict)
    except ValueError as error:
        raise ConversionError(str(error)) from None
    result = Conversion({}, family, to)
    unknown = []
    for key, value in named.items():
        new = rename(key, TARGETS[to])
        if new is None and to == 'vitdet-detector':
            new = detector_name(key)
        if any(fnmatch(key, pattern) for pattern in drop):
            result.left_out[key] = 'as asked'
        elif new is not None:
            result.weights[new] = value
        elif reason := _needless(key, to):
            result.left_out[key] = reason
        else:
            unknown.append(key)
    if unknown:
        raise ConversionError(
            f'{len(unknown)} keys have no place in {to}: {", ".join(unknown[:12])}. The network '
            'computes something that the target does not; if it can do without, leave them out by '
            'name.'
        )
    if to == 'mmpretrain' and 'backbone.pos_embed' in result.weights:
        _give_tokens_positions(result)
    if to == 'vitdet-detector' and 'pixel_mean' in named:
        mean, std = (
            [round(v, 3) for v in named[key].flatten().tolist()] if key in named else 'unknown'
            for key in ('pixel_mean', 'pixel_std')
        )
        result.notes.append(
            f'Images were normalised by mean {mean} and std {std}, in the order of the channels of '
            "the network's input: set them, and bgr_to_rgb, in the data_preprocessor. Norms of "
            'pyramid and heads had an epsilon of 1e-6: set norm_eps of mmdfkd.SimpleFPN, and eps '
            "in the heads' norm_cfg."
        )
    return result


def _needless(key: str, to: str) -> str | None:
    if PRE_TRAINING.match(key):
        return 'for pre-training only'
    if to == 'vitdet-detector':
        return 'not learned' if NOT_LEARNED.match(key) else None
    if DETECTOR.match(key):
        return "a detector's, not the backbone's"
    return 'a ViTDet backbone has none' if to == 'vitdet' and NOT_BACKBONE.match(key) else None


def _give_tokens_positions(result: Conversion) -> None:
    """Zero positions for a class token that has none (timm's ``no_embed_class``)."""
    key = 'backbone.pos_embed'
    table = result.weights[key]
    tokens = sum(f'backbone.{name}' in result.weights for name in ('cls_token', 'dist_token'))
    # A table of class token and square grid is never a square itself.
    if tokens and table.dim() == 3 and isqrt(table.shape[1]) ** 2 == table.shape[1]:
        zeros = table.new_zeros(table.shape[0], tokens, table.shape[2])
        result.weights[key] = torch.cat([zeros, table], 1)
        result.notes.append(
            f'The position table had no place for the {tokens} extra token(s): it begins with as '
            f'many rows of zeros and has {tokens + table.shape[1]} now.'
        )


def fit_names(
    state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str
) -> Mapping[str, Tensor]:
    """Give a foreign ViT's weights the names of mmpretrain's classifier or of mmdet's ViTDet.

    Args:
        state_dict (Mapping[str, Tensor]): Plain weights of a file.
        own (Mapping[str, Tensor]): The network's.
        what (str): What is loaded, for the log.

    Returns:
        Mapping[str, Tensor]: Converted, or as they are where nothing is to be converted.
    """
    if family_of(own) == 'ViTDet' and family_of(state_dict) == 'detectron2':
        result = convert_vit(state_dict, to='vitdet-detector')
        print_log(f'{what}: {result}', 'current')
        return result.weights
    if family_of(own) != 'mmpretrain' or family_of(state_dict) not in ('timm', 'Hugging Face'):
        return state_dict
    result = convert_vit(state_dict)
    print_log(f'{what}: {result}', 'current')
    if 'head.fc.weight' in own:
        # mmpretrain's LinearClsHead.
        return {k.replace('head.layers.head.', 'head.fc.'): v for k, v in result.weights.items()}
    return result.weights
