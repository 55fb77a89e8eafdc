"""Configs of runs whose sources the tools run: a classifier of 32 px images and five classes."""

import copy
from pathlib import Path

import torch
import toy

NAMES = ('ant', 'bee', 'cow', 'dog', 'emu')
POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.ProceduralRenderer'),
    pool_size=8,
    num_workers=0,
)
#: Images that depend on the student and on all earlier steps.
REFINED = dict(
    type='mmdfkd.RefinedSource', source=POOL, every=2, batch=2, steps=2, lr=0.05, share=0.5
)


def classifier_run(folder: Path, source: dict, name: str = 'classes.py') -> Path:
    """Write a run's config, and a teacher of random weights where there is none yet."""
    checkpoint = folder / 'classifier.pth'
    if not checkpoint.exists():
        net = toy.build(toy.classifier_model(), scope='mmpretrain')
        torch.save(dict(meta={}, state_dict=net.state_dict()), checkpoint)
    teacher = toy.whole(toy.classifier_model(), 'mmpretrain')
    cfg = dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmdfkd'], allow_failed_imports=False),
        model=dict(
            type='mmdfkd.DataFreeDistiller',
            teacher=dict(config=teacher, checkpoint=str(checkpoint)),
            student=dict(type='mmdfkd.Shrunk', width=0.5, depth=1.0, init='inherit'),
            heads=[dict(type='mmdfkd.LogitHead')],
            source=copy.deepcopy(source),
            inheritance=dict(images=8),
            image_size=32,
        ),
        train_dataloader=dict(
            batch_size=3,
            dataset=dict(
                type='mmdfkd.SyntheticDataset', image_size=32, metainfo=dict(classes=NAMES)
            ),
        ),
        randomness=dict(seed=3),
    )
    return toy.write_config(cfg, folder / name)


def detector_run(folder: Path) -> Path:
    """Write a detector's run with fresh procedural images, and its teacher."""
    return toy.write_config(toy.run_config(folder), folder / 'boxes.py')
