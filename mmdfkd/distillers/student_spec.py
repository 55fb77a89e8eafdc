"""How a run names its student."""

import copy
import inspect
from collections.abc import Mapping

from mmengine.config import Config

from mmdfkd.inheritance import shrink_config
from mmdfkd.utils.arguments import check_arguments

from .networks import load_config, model_config

STARTS = ('inherit', 'random', 'config')


def student_config(spec: Mapping, teacher: Config) -> Config:
    """Resolve a run's ``student`` to a whole config.

    Args:
        spec (Mapping): ``dict(type='mmdfkd.Shrunk', width=..., depth=...)`` derives it from the
            teacher's; ``dict(config=...)`` names an existing config (a path, ``'mmdet::...'``) or
            holds one inline.
        teacher (Config): The teacher's whole config.

    Returns:
        Config: With ``model`` (``data_preprocessor`` merged in) and ``default_scope``.

    Raises:
        ValueError: If it says neither, or both.
        TypeError: If it has an unknown key.
    """
    spec = dict(spec)
    kind = spec.pop('type', None)
    config = spec.pop('config', None)
    if (kind is None) == (config is None):
        raise ValueError(
            "student takes either type='mmdfkd.Shrunk' with width and depth, or config= (a path, "
            "'mmdet::...', or an inline config)."
        )
    if config is not None:
        check_arguments('model.student with a config', spec, ('config', 'init', 'input_order'))
        cfg = load_config(config)
        whole = Config(dict(model=model_config(cfg).to_dict()))
        source = cfg
    else:
        if kind.rsplit('.', 1)[-1] != 'Shrunk':
            raise ValueError(
                f"student: unknown type '{kind}'; only 'mmdfkd.Shrunk' is derived from the teacher."
            )
        shares = list(inspect.signature(shrink_config).parameters)[1:]
        check_arguments('model.student of type mmdfkd.Shrunk', spec, [*shares, 'init'])
        merged = copy.deepcopy(teacher)
        merged.model = model_config(teacher)
        whole = Config(dict(model=shrink_config(merged, **spec).to_dict()))
        source = teacher
    for key in ('default_scope', 'custom_imports'):
        if source.get(key) is not None:
            whole[key] = copy.deepcopy(source[key])
    # Needed to tell the channel order of the images that the model was written for.
    for split in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        if source.get(split) is not None:
            whole[split] = copy.deepcopy(source[split])
    return whole
