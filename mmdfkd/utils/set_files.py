"""The files of a run's datasets: missing ones are named before anything is built."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

_WITHOUT = {
    'val': ' A run needs no validation set: val_cfg=None val_dataloader=None val_evaluator=None.',
}


def check_set_files(cfg: Config, *stages: str) -> None:
    """Look for the annotation files and image folders that the config names.

    Files of other machines (``backend_args``, addresses) are not looked for.

    Args:
        cfg (Config): Of the run.
        *stages (str): Of 'train', 'val', 'test'.

    Raises:
        FileNotFoundError: If one is not there; says which setting names it.
    """
    for stage in stages:
        loader, evaluator = f'{stage}_dataloader', f'{stage}_evaluator'
        named = [*_of_dataset(cfg.get(loader), loader), *_of_metric(cfg.get(evaluator), evaluator)]
        for setting, path in named:
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f'There is no {os.path.normpath(path)}, which {setting} names (looked from '
                    f'{os.getcwd()}). Set {loader}.dataset.data_root, and ann_file of {evaluator} '
                    'where it has one, to where the set lies (in the config, or by --cfg-options); '
                    "the digits are written by this project's tools/dataset_converters."
                    + _WITHOUT.get(stage, '')
                )


def only_formats(evaluator: Any) -> bool:
    """Whether an evaluator's config has a metric that writes files and scores nothing."""
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    return any(isinstance(m, Mapping) and bool(m.get('format_only')) for m in metrics)


def _of_dataset(value: Any, setting: str) -> Iterator[tuple[str, str]]:
    """Paths of every dataset in a loader, as mmengine joins them, with the setting of each."""
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _of_dataset(item, f'{setting}[{i}]')
    if not isinstance(value, Mapping) or value.get('backend_args'):
        return
    ann_file, root = value.get('ann_file'), value.get('data_root') or ''
    if ann_file and isinstance(ann_file, str) and isinstance(root, str):
        if '://' not in os.path.join(root, ann_file):
            yield f'{setting}.ann_file', os.path.join(root, ann_file)
        prefix = value.get('data_prefix')
        # Other folders (of segmentations, say) are read by some pipelines only.
        folders = prefix if isinstance(prefix, Mapping) else dict(img_path=prefix)
        for key in ('img', 'img_path'):
            folder = folders.get(key)
            if folder and isinstance(folder, str) and '://' not in os.path.join(root, folder):
                yield f'{setting}.data_prefix', os.path.join(root, folder)
    for key in ('dataset', 'datasets'):
        yield from _of_dataset(value.get(key), f'{setting}.{key}')


def _of_metric(value: Any, setting: str) -> Iterator[tuple[str, str]]:
    metrics = value if isinstance(value, list | tuple) else [value]
    for i, metric in enumerate(metrics):
        path = metric.get('ann_file') if isinstance(metric, Mapping) else None
        if path and isinstance(path, str) and '://' not in path and not metric.get('backend_args'):
            yield f'{setting}{f"[{i}]" if metric is not value else ""}.ann_file', path
