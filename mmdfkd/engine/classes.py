"""Which classes a run's datasets and its teacher speak of."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine import list_from_file
from mmengine.config import Config

from mmdfkd.registry import DATASETS
from mmdfkd.utils.checkpoint import read_checkpoint


def declared_metainfo(cfg: Config, split: str) -> dict:
    """What a config and the kind of its dataset say of a split, which is not built.

    Args:
        cfg (Config): Of a run.
        split (str): ``'train'``, ``'val'`` or ``'test'``.
    """
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    while dataset.get('dataset'):
        dataset = dataset['dataset']
    kind = dataset.get('type')
    if isinstance(kind, str):
        # As it would be built, in the config's scope.
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    meta = {**(getattr(kind, 'METAINFO', None) or {}), **(dataset.get('metainfo') or {})}
    if isinstance(meta.get('classes'), str):
        # mmengine reads the names from a file.
        path = meta.pop('classes')
        if Path(path).is_file():
            meta['classes'] = list_from_file(path)
    return meta


def declared_classes(cfg: Config, count: int) -> tuple[str, ...] | None:
    """Names of the classes that a config's datasets declare; None if none names as many.

    Args:
        cfg (Config): Of a network or a run.
        count (int): Number of its classes.
    """
    for split in ('train', 'val', 'test'):
        names = declared_metainfo(cfg, split).get('classes')
        if names is not None and len(names) == count:
            return tuple(str(name) for name in names)
    return None


def recorded_classes(checkpoint: str, count: int) -> tuple[str, ...] | None:
    """Names of the classes that a checkpoint of the toolboxes was trained on.

    Args:
        checkpoint (str): File or address.
        count (int): Number of the network's classes.

    Returns:
        tuple[str, ...] | None: None where it does not say, or of another number.
    """
    meta = read_checkpoint(checkpoint).get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    data = meta.get('dataset_meta')
    names = (data.get('classes') if isinstance(data, Mapping) else None) or meta.get('CLASSES')
    if isinstance(names, list | tuple) and len(names) == count:
        return tuple(map(str, names))
    return None


def class_names_of(cfg: Config, teacher: Config, count: int) -> list[str]:
    """Names of a run's classes: those of its datasets, else the teacher's, else numbers."""
    names = declared_classes(cfg, count) or declared_classes(teacher, count)
    return list(names or (f'{i:0{len(str(count - 1))}d}' for i in range(count)))


def check_classes(
    what: str, classes: Sequence[str] | None, count: int, known: Sequence[str] | None = None
) -> None:
    """Classes have to be the teacher's, in its order, as far as either says which they are.

    Other names for as many classes may mean the same things and pass.

    Args:
        what (str): Whose they are, for the message.
        classes (Sequence[str] | None): Their names.
        count (int): Of the teacher's classes.
        known (Sequence[str] | None): The teacher's names.

    Raises:
        ValueError: If there are more or fewer, or they are the teacher's in another order.
    """
    if classes is None:
        return
    if len(classes) != count:
        raise ValueError(
            f'The teacher has {count} classes and {what} {len(classes)}: {tuple(classes)[:12]}.'
        )
    if known is None or len(known) != count or sorted(classes) != sorted(known):
        return
    for i, (name, other) in enumerate(zip(classes, known, strict=True)):
        if name != other:
            raise ValueError(
                f"{what} has the teacher's classes in another order: class {i} is {name!r} there "
                f'and {other!r} of the teacher. Set metainfo=dict(classes=...) in the order of the '
                "teacher's config. mmdet numbers a COCO file's labels by the file: its categories "
                'have to be in that order, too.'
            )
