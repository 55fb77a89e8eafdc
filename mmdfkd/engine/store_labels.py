"""Asks a config's teacher once for all samples of a run."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmdfkd.distillers.stored_labels import StoredLabels

from .synthesize import Synthesis


def _check_writable(out: Path) -> None:
    """Make the folder of a file, and see whether the file can be written there."""
    try:
        if out.is_dir():
            raise IsADirectoryError('it is a folder')
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside it and of a like name, as it will be written.
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f'.{out.name}.'):
            pass
    except OSError as error:
        raise OSError(f'store_labels: {out} cannot be written: {error}') from error


@torch.no_grad()
def store_labels(
    cfg: Config,
    out: str | Path,
    num: int | None = None,
    top_k: int = 100,
    *,
    seed: int | None = None,
    say: Callable[[str], None] = print,
) -> StoredLabels:
    """Write the ``top_k`` largest probabilities of the teacher for the first samples of a run.

    Args:
        cfg (Config): Of a distillation run with a classifier and a source that does without it.
        out (str | Path): The file to write; the folder is made.
        num (int, optional): Samples. Defaults to those of the config's iterations; a config that
            counts epochs does not tell.
        top_k (int): Classes kept of each answer. Defaults to 100, as published for ImageNet-22k.
        seed (int, optional): The config's by default.
        say (Callable): Given a line now and then.

    Returns:
        StoredLabels: What was written.

    Raises:
        OSError: If the file cannot be written.
        ValueError: For a source that asks the teacher, a detector, fewer than one class or sample,
            or an unknown number of samples.
    """
    batch = cfg.train_dataloader.batch_size
    if num is None:
        steps = (cfg.get('train_cfg') or {}).get('max_iters')
        if steps is None:
            raise ValueError(
                'store_labels: the config has no train_cfg.max_iters, from which the number of '
                'samples would follow: give it (--num), steps of the whole run times batch size.'
            )
        num = steps * batch
    if num < 1 or top_k < 1:
        raise ValueError(f'store_labels: num and top_k must be at least 1, not {num} and {top_k}.')
    # Now, and not after the pass.
    _check_writable(Path(out))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmpretrain')):
        made = Synthesis.of(cfg, None, seed)
        if made.teacher.family != 'classifier':
            raise ValueError(
                f'store_labels keeps class probabilities; the teacher is a {made.teacher.family} '
                'network.'
            )
        if not made.distiller.source.self_contained:
            raise ValueError(
                f'store_labels: {type(made.distiller.source).__name__} makes or chooses its images '
                'with the teacher, so that they cannot be made again without it. Use '
                'mmdfkd.RenderedSource, mmdfkd.PooledSource with balance=False and one renderer, '
                'or mmdfkd.DatasetSource with mmdfkd.SeededDataset.'
            )
        made.start()
        labels = StoredLabels(made.seed, made.teacher.num_classes)
        for first in range(0, num, batch):
            items = [made.dataset[g] for g in range(first, min(first + batch, num))]
            if any('g' not in item for item in items):
                raise ValueError(
                    f'store_labels: a {type(made.dataset).__name__} augments at random; wrap it: '
                    "dict(type='mmdfkd.SeededDataset', dataset=...)."
                )
            images, _ = made.distiller.source.draw(items)
            answer = made.teacher.observe(images.to(next(made.teacher.net.parameters()).device))
            labels.add(images, answer.response.logits, top_k)
            if (first // batch) % 100 == 0:
                say(f'{len(labels)} of {num}')
    labels.save(out)
    size = Path(out).stat().st_size
    say(
        f'{out}: {len(labels)} samples, {size / len(labels):.0f} bytes each, {size / 2**20:.1f} MiB'
    )
    return labels
