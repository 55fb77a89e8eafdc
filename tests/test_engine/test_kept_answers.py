"""Answers kept with the images stand for the teacher in the training step, to the same losses."""

import json

import pytest
import torch
import toy
from test_store_labels import config

from mmdfkd.registry import MODELS

STEPS, BATCH = 3, 4
SOURCE = dict(
    type='mmdfkd.ReplaySource',
    source=dict(
        type='mmdfkd.PooledSource',
        renderer=dict(type='mmdfkd.ProceduralRenderer'),
        pool_size=8,
        num_workers=0,
        balance=False,
    ),
    prefill=8,
    every=0,
    share=1.0,
    answers=True,
    views=2,
    bank=dict(capacity=8, full_precision=('logits',)),
)
LOGITS = dict(type='mmdfkd.LogitHead')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kept')
    net = toy.build(toy.classifier_model(), seed=3, scope='mmpretrain')
    torch.save(net.state_dict(), folder / 'classifier.pth')
    return folder


def _run(folder, name, **source):
    cfg = config(folder, name, dict(checkpoint=str(folder / 'classifier.pth')))
    cfg['model'].update(source=dict(SOURCE, **source), heads=[LOGITS])
    cfg['custom_hooks'] = [*cfg['custom_hooks'], dict(type='mmdfkd.TeacherPassesHook')]
    cfg['default_hooks']['logger'] = dict(type='LoggerHook', interval=1)
    runner = toy.runner_of(cfg)
    runner.train()
    lines = next((folder / name).glob('*/vis_data/scalars.json')).read_text().splitlines()
    losses = [line['loss'] for line in map(json.loads, lines) if 'loss' in line]
    return losses, json.loads((folder / name / 'teacher_passes.json').read_text()), runner


def test_the_teacher_rests_and_the_losses_are_the_same(folder):
    losses, passes, runner = _run(folder, 'kept')
    # 8 images in 2 views, 8 for the aligners, and nothing in the steps.
    assert passes['all'] == passes['start'] and len(losses) == STEPS
    distiller = runner.model
    distiller._content = [False]
    images, targets = distiller.source.draw([dict(g=g) for g in range(BATCH)])
    assert not targets.answers.isnan().any()
    asked = distiller._observe(images, targets, list(range(BATCH))).response.logits
    torch.testing.assert_close(targets.answers, asked, rtol=1e-4, atol=1e-5)

    half, some, _ = _run(folder, 'half', share=0.5)
    asked = some['all'] - some['start']
    assert 0 < asked < STEPS * BATCH

    # The same images, and a teacher that is asked at every step.
    type(distiller)._wants_answers_alone, kept = (
        lambda self, head: False,
        type(distiller)._wants_answers_alone,
    )
    try:
        every, most, _ = _run(folder, 'asked')
        mixed, _, _ = _run(folder, 'asked_half', share=0.5)
    finally:
        type(distiller)._wants_answers_alone = kept
    assert most['all'] - most['start'] == STEPS * BATCH
    assert losses == pytest.approx(every, rel=1e-4)
    assert half == pytest.approx(mixed, rel=1e-4)


@pytest.mark.parametrize(
    ('heads', 'content'),
    [
        ([LOGITS, dict(type='mmdfkd.FeatureHead')], [True, False]),
        ([dict(type='mmdfkd.LogitHead', loss=dict(type='top_k', k=2))], [True]),
    ],
)
def test_heads_that_read_more_ask(folder, heads, content):
    cfg = config(folder, 'built', dict(checkpoint=str(folder / 'classifier.pth')))['model']
    model = MODELS.build(dict(cfg, source=SOURCE, heads=heads))
    assert model._content == content
    plain = MODELS.build(dict(cfg, source=SOURCE['source'], heads=heads))
    assert not any(plain._content)
