"""Whether a set numbers its labels as its metainfo says."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.fileio import load


def check_label_order(loop: Any) -> None:
    """Refuse a set whose labels are of other classes than its ``metainfo`` gives.

    mmdet numbers a COCO file's classes in the order of the file's ``categories``, in datasets and
    in ``CocoMetric``; mmpretrain numbers folders in alphabetical order. Neither asks in which order
    ``metainfo`` has the classes, which is the network's: figures would be of the wrong ones.

    Args:
        loop (BaseLoop): For validation or testing, with dataset and evaluator built.

    Raises:
        ValueError: If the order is another one or a class is missing; names the file and both.
    """
    for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', []):
        api = getattr(metric, '_coco_api', None)
        if api is not None and _numbers_by_file(metric, 'CocoMetric', 'compute_metrics'):
            names = [category['name'] for category in api.dataset['categories']]
            classes = (metric.dataset_meta or {}).get('classes')
            _check_categories(f'The ann_file of {type(metric).__name__}', names, classes)
    for dataset in _parts(loop.dataloader.dataset):
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        folders = getattr(dataset, 'folder_to_idx', None)
        if _numbers_by_file(dataset, 'CocoDataset', 'load_data_list'):
            content = load(dataset.ann_file, backend_args=dataset.backend_args)
            names = [category['name'] for category in content['categories']]
            _check_categories(dataset.ann_file, names, classes)
        elif folders and classes and not isinstance(classes, str):
            names = sorted(folders, key=folders.get)
            # Folders may have other names than their classes.
            if names != list(classes) and sorted(names) == sorted(classes):
                raise ValueError(
                    f'The folders of {dataset.img_prefix} are numbered as {_few(names)}, and '
                    f'metainfo has {_few(classes)}: labels would be of other classes. Give the '
                    "set an ann_file with labels in metainfo's order."
                )


def _parts(dataset: Any) -> Iterator[Any]:
    """The datasets within one that repeats, joins or wraps them; itself otherwise."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None:
        yield dataset
    else:
        for part in inner if isinstance(inner, list | tuple) else [inner]:
            yield from _parts(part)


def _numbers_by_file(value: Any, kind: str, method: str) -> bool:
    """Whether it is mmdet's class, or a subclass that numbers labels the same way."""
    for base in type(value).__mro__:
        if base.__name__ == kind and base.__module__.startswith('mmdet.'):
            return getattr(type(value), method) is getattr(base, method)
    return False


def _check_categories(what: str, names: Sequence[str], classes: Sequence[str] | None) -> None:
    if classes is None or isinstance(classes, str):
        return
    found = [name for name in names if name in set(classes)]
    if found == list(classes):
        return
    missing = [name for name in classes if name not in found]
    if missing:
        raise ValueError(
            f"{what} has no category for {_few(missing)} among the network's classes (it has "
            f'{_few(names)}): mmdet would number the classes behind a missing one too low. Add '
            "them to the file's categories, by these names."
        )
    raise ValueError(
        f"{what} lists its categories as {_few(found)}, and the network's classes are "
        f'{_few(classes)}: mmdet numbers labels in the order of the file, so every figure would be '
        "of other classes. Put the file's categories into the order of the classes; their ids may "
        'stay.'
    )


def _few(names: Sequence[str]) -> str:
    rest = len(names) - 8
    return ', '.join(map(repr, names[:8])) + (f' and {rest} more' if rest > 0 else '')
