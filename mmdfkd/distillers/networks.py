"""From a config reference to a network: the whole config is used, never ``cfg.model`` alone."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import get_installed_path
from torch import nn

from mmdfkd.utils.launch import read_config


def load_config(reference: str | Mapping) -> Config:
    """Load a whole config.

    Args:
        reference (str | Mapping): A path, ``'mmdet::detr/detr_r50_8xb2-150e_coco.py'`` (a config
            inside an installed package), or an inline mapping with at least ``model``.

    Raises:
        FileNotFoundError: If there is no such file.
        KeyError: If the config has no ``model``.
    """
    if isinstance(reference, Mapping):
        # A copy with plain values: Config keeps references, and a teacher and its student must
        # share none.
        cfg = Config(_types_as_text(copy.deepcopy(dict(reference))))
        name = 'the inline config'
    else:
        name = str(reference)
        if '::' in name:
            package, relative = name.split('::', 1)
            path = Path(get_installed_path(package)) / '.mim' / 'configs' / relative
        else:
            path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"There is no config '{name}' (looked for {path}).")
        cfg = read_config(str(path))
        if not isinstance((cfg.get('model') or {}).get('type', ''), str):
            # Of mmengine's pure Python style; what is compared by name and written is text.
            cfg = Config(_types_as_text(cfg.to_dict()), filename=str(path))
    if 'model' not in cfg:
        raise KeyError(
            f"{name} has no 'model'; give the whole config of an mmdet or mmpretrain model."
        )
    return cfg


def _types_as_text(value: Any) -> Any:
    """A copy of a config's mappings and lists, with classes and functions by their dotted names."""
    if isinstance(value, Mapping):
        return {key: _types_as_text(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_types_as_text, value))
    if isinstance(value, type) or inspect.isroutine(value):
        return f'{value.__module__}.{value.__qualname__}'
    return value


def scope_of(cfg: Config) -> str:
    """The registry scope that a config's model is written in; mmdet where it does not say."""
    return cfg.get('default_scope') or cfg.model.get('_scope_') or 'mmdet'


def without_files(cfg: Mapping) -> ConfigDict:
    """A copy of a model config that downloads and loads nothing.

    Every ``Pretrained`` among its ``init_cfg``, every ``pretrained`` and timm's ``checkpoint_path``
    are removed; how random weights are drawn stays.
    """

    def reads(init) -> bool:
        kind = init.get('type') if isinstance(init, Mapping) else None
        return str(kind).rsplit('.', 1)[-1] == 'Pretrained' or kind is PretrainedInit

    def strip(value):
        if isinstance(value, list | tuple):
            return type(value)(strip(v) for v in value)
        if not isinstance(value, Mapping):
            return value
        kept = {}
        for key, inner in value.items():
            if key == 'pretrained' and (isinstance(inner, str) or inner is True):
                continue
            if key == 'checkpoint_path':
                continue
            if key == 'init_cfg' and inner is not None:
                several = isinstance(inner, list | tuple)
                entries = [e for e in (inner if several else [inner]) if not reads(e)]
                if not entries:
                    continue
                inner = entries if several else entries[0]
            kept[key] = strip(inner)
        return kept

    return ConfigDict(strip(cfg))


def model_config(cfg: Config) -> ConfigDict:
    """The model of a whole config, with its top-level preprocessor as the Runner merges it."""
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return model


def build_network(cfg: Config, keep_init: bool = False) -> nn.Module:
    """Build the model of a whole config, in its own scope.

    Args:
        cfg (Config): The whole config.
        keep_init (bool): Keep its ``init_cfg`` whole (``init='config'``). Otherwise nothing is
            downloaded or read.

    Returns:
        nn.Module: On a CPU, SyncBN is replaced by BatchNorm, which alone runs there.
    """
    model = model_config(cfg)
    if not keep_init:
        model = without_files(model)
    with DefaultScope.overwrite_default_scope(scope_of(cfg)):
        net = MODELS.build(model)
    if type(net).__name__ == 'TimmClassifier':
        _mend_timm(net, model)
    # Deformable DETR and DINO leave it as the memory was, not finite at times, until their weights
    # are initialised or loaded; gradients are traced before.
    if isinstance(getattr(net, 'level_embed', None), nn.Parameter):
        nn.init.zeros_(net.level_embed)
    return net if torch.cuda.is_available() else revert_sync_batchnorm(net)


def _mend_timm(net: nn.Module, model: Mapping) -> None:
    """Keep weights that timm has loaded, and timm's names also where the network is a part."""
    if model.get('pretrained') or model.get('checkpoint_path'):
        # As mmpretrain's TIMMBackbone does: timm's own init_weights would draw new ones.
        net.model.is_init = True
    for key, hook in net._state_dict_hooks.items():
        if getattr(hook, '__name__', '') == '_remove_state_dict_prefix':
            net._state_dict_hooks[key] = _names_of_timm


def _names_of_timm(net: nn.Module, state_dict: dict, prefix: str, local_metadata) -> None:
    """State-dict hook in the place of mmpretrain's, whose new mapping a parent never sees."""
    inner = f'{prefix}model.'
    for key in [k for k in state_dict if k.startswith(inner)]:
        state_dict[prefix + key.removeprefix(inner)] = state_dict.pop(key)


def silent_norms(net: nn.Module) -> list[str]:
    """Names of norms that are fixed at a weight of zero: what they scale never says anything.

    A ResNet whose last norm of each block starts at zero, as the toolbox draws random weights, and
    whose norms are fixed, as in most published detectors, has no residual branches.
    """
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)
        and module.weight is not None
        and not module.weight.requires_grad
        and not module.weight.any()
    ]
