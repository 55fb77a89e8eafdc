"""Learning rates that fall from the last block of a plain ViT to its embeddings."""

import difflib
import re
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmdfkd.registry import OPTIM_WRAPPER_CONSTRUCTORS

_EMBEDDINGS = ('patch_embed', 'pos_embed', 'cls_token', 'dist_token', 'mask_token', 'pre_norm')
_UNDECAYED = re.compile(
    r'(^|\.)(pos_embed|cls_token|dist_token|mask_token|rel_pos_[hw]|relative_position_bias_table)$'
)
_OPTIONS = ('decay_rate', 'num_layers', 'backbone')


def _blocks_name(module: nn.Module) -> str | None:
    """Name of a plain ViT's list of blocks (mmpretrain says ``layers``), None for others."""
    if not hasattr(module, 'patch_embed'):
        return None
    for name in ('blocks', 'layers'):
        if isinstance(getattr(module, name, None), (nn.ModuleList, nn.Sequential)):
            return name
    return None


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning-rate decay for one plain ViT, wherever it lies in the model.

    The learning rate of block ``i`` of ``L`` is ``lr * rate^(L - i)``, that of the embeddings ``lr
    * rate^(L + 1)``; all that comes after the blocks keeps ``lr`` (as in MAE and ViTDet: Li et al.,
    ECCV 2022). The backbone is found by what it is, not by its name: constructors that look for
    names starting with ``backbone`` decay nothing under ``student.``, without a word. Norms, biases
    (every vector), position tables and class tokens get no weight decay.

    Args:
        optim_wrapper_cfg (dict): The optimiser wrapper's config.
        paramwise_cfg (dict, optional): ``decay_rate`` (0.7, ViTDet-B's); ``num_layers``, checked
            against the blocks found where given; ``backbone``, the dotted name of the ViT where the
            model has several.

    Raises:
        KeyError: On an unknown option.
        ValueError: If the model holds no plain ViT, several, or one of another depth than
            ``num_layers``.
    """

    def __init__(self, optim_wrapper_cfg: Mapping, paramwise_cfg: Mapping | None = None) -> None:
        options = dict(paramwise_cfg or {})
        for key in options:
            if key not in _OPTIONS:
                near = difflib.get_close_matches(key, _OPTIONS, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ''
                raise KeyError(
                    f"Layer decay has no option '{key}', only {', '.join(_OPTIONS)}{hint}. What "
                    'the config had for another constructor goes with paramwise_cfg=dict('
                    '_delete_=True, decay_rate=0.7).'
                )
        # Never empty: the parent gives every parameter to the optimiser as it is if there is
        # nothing in it.
        options.setdefault('decay_rate', 0.7)
        super().__init__(optim_wrapper_cfg, options)

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        """Append one group per layer and kind of weight decay.

        Args:
            params (list[dict]): Receives the groups.
            module (nn.Module): The model.
            **kwargs: Of the parent's recursion, which is not used.
        """
        prefix, blocks, depth = self._find_backbone(module)
        rate = self.paramwise_cfg['decay_rate']
        groups: dict[tuple[int, bool], dict] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            layer = depth + 1
            if name.startswith(prefix):
                layer = self._layer_of(name[len(prefix) :], blocks, depth)
            decayed = param.ndim > 1 and not _UNDECAYED.search(name)
            if (layer, decayed) not in groups:
                scale = rate ** (depth + 1 - layer)
                group = {'params': [], 'param_names': []}
                group.update(lr=self.base_lr * scale, lr_scale=scale)
                if not decayed:
                    group['weight_decay'] = 0.0
                elif self.base_wd is not None:
                    group['weight_decay'] = self.base_wd
                groups[layer, decayed] = group
            groups[layer, decayed]['params'].append(param)
            groups[layer, decayed]['param_names'].append(name)
        params.extend(groups[key] for key in sorted(groups))
        print_log(
            f'Layer decay {rate} over the {depth} blocks of '
            f"'{prefix[:-1] or type(module).__name__}': "
            f'{len(groups)} groups, learning rates {rate ** (depth + 1) * self.base_lr:.3g} to '
            f'{self.base_lr:.3g}.',
            'current',
        )

    def _find_backbone(self, model: nn.Module) -> tuple[str, str, int]:
        """Prefix of the ViT's parameters, the name of its blocks, and their number."""
        found = {name: m for name, m in model.named_modules() if _blocks_name(m)}
        wanted = self.paramwise_cfg.get('backbone')
        if wanted is not None:
            if wanted not in found:
                raise ValueError(
                    f"Layer decay: there is no plain ViT at '{wanted}'; found: "
                    f'{sorted(found) or "none"}.'
                )
            found = {wanted: found[wanted]}
        trained = {n: m for n, m in found.items() if any(p.requires_grad for p in m.parameters())}
        candidates = trained or found
        if len(candidates) != 1:
            what = f'several: {sorted(candidates)}' if candidates else 'none'
            raise ValueError(
                'Layer decay needs exactly one plain ViT (a module with patch_embed and blocks or '
                'layers) in '
                f'{type(model).__name__}, but found {what}. '
                + (
                    'Name one with paramwise_cfg=dict(backbone=...).'
                    if candidates
                    else 'Use the default constructor for other backbones.'
                )
            )
        ((name, module),) = candidates.items()
        blocks = _blocks_name(module)
        depth = len(getattr(module, blocks))
        expected = self.paramwise_cfg.get('num_layers', depth)
        if expected != depth:
            raise ValueError(
                f"Layer decay: num_layers={expected}, but '{name or type(module).__name__}' has "
                f'{depth} blocks.'
            )
        return (f'{name}.' if name else ''), blocks, depth

    @staticmethod
    def _layer_of(name: str, blocks: str, depth: int) -> int:
        """0 for the embeddings, ``i + 1`` for block ``i``, ``depth + 1`` for what follows."""
        first, _, rest = name.partition('.')
        if first in _EMBEDDINGS:
            return 0
        if first == blocks:
            return int(rest.partition('.')[0]) + 1
        return depth + 1
