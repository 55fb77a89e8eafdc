"""The hooks that look at synthetic images: they see, warn, act, and otherwise change nothing."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
import toy
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

from mmdfkd.engine import SyntheticQualityHook, SyntheticVisHook
from mmdfkd.utils.run_files import clear_run

SOURCE = dict(
    type='mmdfkd.RefinedSource',
    source=dict(
        type='mmdfkd.PooledSource',
        renderer=dict(type='mmdfkd.ProceduralRenderer'),
        pool_size=8,
        num_workers=0,
    ),
    priors=[dict(type='mmdfkd.TargetPrior')],
    every=2,
    batch=3,
    steps=1,
    share=1.0,
)
#: The teacher is never as sure as that: two looks on end, and the alarm goes off.
TOUCHY = dict(limits=dict(flat=1.0, sure=1.0, images=2), interval=1, images=4, old=3)


@VISBACKENDS.register_module(force=True)
class RecordingVisBackend(BaseVisBackend):
    """A backend with histograms, as TensorBoard's: it keeps what it is told."""

    told: list[tuple] = []

    def _init_env(self) -> None:
        pass

    @property
    def experiment(self) -> 'RecordingVisBackend':
        return self

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs) -> None:
        self.told.append(('scalars', dict(scalar_dict), step))

    def add_histogram(self, tag, values, global_step) -> None:
        self.told.append((tag, np.array(values), global_step))


def _run(folder, name, hooks=(), **changes):
    changes = {'model_source': copy.deepcopy(SOURCE), **changes}
    cfg = toy.run_config(folder, work_dir=str(folder / name), **changes)
    passes = dict(type='mmdfkd.TeacherPassesHook')
    cfg['custom_hooks'] = [*cfg['custom_hooks'], passes, *hooks]
    cfg['train_cfg'] = dict(cfg['train_cfg'], max_iters=4)
    cfg['default_hooks']['checkpoint']['interval'] = 2
    cfg['log_level'] = 'INFO'
    toy.runner_of(cfg).train()
    return torch.load(folder / name / 'iter_4.pth', weights_only=False)


def _log(folder, name):
    return next((folder / name).glob('*/*.log')).read_text()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('quality')


@pytest.fixture(scope='module')
def without(folder):
    return _run(folder, 'without')


@pytest.fixture(scope='module')
def watched(folder, without):
    """Four steps with both hooks, and the teacher as its own verifier."""
    teacher = dict(config=toy.whole(toy.detector_model()), checkpoint=str(folder / 'teacher.pth'))
    hooks = [
        dict(type='mmdfkd.SyntheticQualityHook', interval=2, images=6, old=3, verifier=teacher),
        dict(type='mmdfkd.SyntheticVisHook', interval=4, images=3),
    ]
    RecordingVisBackend.told.clear()
    backends = [dict(type='LocalVisBackend'), dict(type='RecordingVisBackend')]
    return _run(folder, 'watched', hooks, visualizer=dict(type='Visualizer', vis_backends=backends))


def test_tensorboard_gets_figures_histograms_and_pictures(folder, without):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    hooks = [
        dict(type='mmdfkd.SyntheticQualityHook', interval=2, images=6, old=3),
        dict(type='mmdfkd.SyntheticVisHook', interval=4, images=3),
    ]
    _run(folder, 'board', hooks, visualizer=dict(type='Visualizer', vis_backends=backends))
    (events,) = (folder / 'board').glob('*/vis_data/events.out.*')
    told = EventAccumulator(str(events), dict(scalars=0, histograms=0, images=0)).Reload()
    tags = told.Tags()
    assert 'quality/coverage' in tags['scalars']
    assert [one.step for one in told.Scalars('quality/coverage')] == [1, 2, 4]
    assert [one.step for one in told.Histograms('quality/confidence_histogram')] == [1, 2, 4]
    assert any('synthetic' in name for name in tags['images'])


def _same_run(a, b):
    states = [
        (run['state_dict'], *(run['dfkd_state'][k] for k in ('heads', 'source'))) for run in (a, b)
    ]
    for one, other in zip(*states, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if torch.is_tensor(value):
                assert torch.equal(value, other[key]), key


def test_a_watched_run_is_the_same_run(without, watched):
    """Same bits: a look draws from no global generator and leaves nothing behind."""
    _same_run(without, watched)
    counts = [run['dfkd_state']['teacher_passes'] for run in (without, watched)]
    assert counts[0] == counts[1] and counts[0]['all'] > 0, 'a look is no part of the budget'
    state = watched['dfkd_state']['image_quality']
    assert state['old'].shape == (3, 3, toy.SIZE, toy.SIZE) and state['old'].dtype == torch.uint8
    assert watched['dfkd_state']['images_read'] == 0


def test_what_is_seen_is_told(folder, watched):
    """In the log, to the visualizer, and in the run's facts."""
    quality = json.loads((folder / 'watched' / 'run.json').read_text())['image_quality']
    looks = quality['looks']
    assert quality['seconds'] > 0
    assert [look['iteration'] for look in looks] == [1, 2, 4] and quality['alarms'] == []
    for look in looks:
        assert look['images'] == 6 == sum(look['histogram'])
        assert look['verified'] == 1 and 0 < look['coverage'] <= 1
        assert look['divergence_new'] > 0 and 0 <= look['concentration'] < 1
    assert [look['divergence_old'] is None for look in looks] == [True, False, False]
    assert _log(folder, 'watched').count('Synthetic images at iteration') == 3
    lines = next((folder / 'watched').glob('*/vis_data/scalars.json')).read_text().splitlines()
    told = [line for line in map(json.loads, lines) if 'quality/coverage' in line]
    assert [line['step'] for line in told] == [1, 2, 4]
    assert told[1]['quality/divergence_old'] == pytest.approx(looks[1]['divergence_old'])
    assert 'image_quality' not in json.loads((folder / 'without' / 'run.json').read_text())


def test_a_backend_with_histograms_gets_one(folder, watched):
    """The teacher's confidence of every image; a backend without any gets the figures alone."""
    looks = json.loads((folder / 'watched' / 'run.json').read_text())['image_quality']['looks']
    found = [told for told in RecordingVisBackend.told if told[0].startswith('quality/')]
    assert [(tag, step) for tag, _, step in found] == [
        ('quality/confidence_histogram', look['iteration']) for look in looks
    ]
    for (_, values, _), look in zip(found, looks, strict=True):
        assert values.shape == (6,)
        assert np.histogram(values, len(look['histogram']), (0, 1))[0].tolist() == look['histogram']
        assert values.mean() == pytest.approx(look['confidence'], abs=1e-4)
    scalars = [told for told in RecordingVisBackend.told if 'quality/coverage' in told[1]]
    assert [step for _, _, step in scalars] == [look['iteration'] for look in looks]


def test_pictures(folder, watched):
    pictures = sorted((folder / 'watched' / 'vis_data').iterdir())
    assert [path.name for path in pictures] == ['synthetic_000001.png', 'synthetic_000004.png']
    first, last = (cv2.imread(str(path)) for path in pictures)
    # Images and where the teacher looks, in colours: neither blank nor the same at both steps.
    assert first.std() > 20 and first.shape == last.shape and (first != last).any()
    assert list((folder / 'watched').glob('*/vis_data/vis_image/synthetic_*.png'))


def test_the_alarm_acts_and_a_resumed_run_goes_on_alike(folder, without):
    hooks = [dict(type='mmdfkd.SyntheticQualityHook', **TOUCHY)]
    through = _run(folder, 'alarmed', hooks)
    state = through['dfkd_state']
    alarms = state['image_quality']['alarms']
    # Two looks on end each: nothing is judged while the last change works.
    assert [alarm['iteration'] for alarm in alarms] == [2, 4]
    assert all(set(alarm['reasons']) == {'confidence'} for alarm in alarms)
    assert int(state['source']['retreats']) == 2
    assert alarms[1]['changed'].endswith('a share of 0.25 of its own images, not 0.5')
    log = _log(folder, 'alarmed')
    assert log.count('Collapse alarm at iteration') == 2
    assert 'tells nothing apart in them. changed: RefinedSource draws' in log
    weights = without['state_dict']
    assert any(not torch.equal(value, weights[key]) for key, value in through['state_dict'].items())

    resumed = _run(
        folder,
        'resumed',
        hooks,
        load_from=str(folder / 'alarmed' / 'iter_2.pth'),
        resume=True,
    )
    _same_run(through, resumed)
    again = resumed['dfkd_state']['image_quality']
    assert torch.equal(again.pop('old'), state['image_quality'].pop('old'))
    assert again == state['image_quality']


def test_the_alarm_changes_a_generator(folder):
    dafl = dict(
        type='mmdfkd.PresetGeneratorSource',
        preset='dafl',
        batch=4,
        generator=dict(noise_dims=4, channels=(8, 8, 8)),
    )
    hooks = [dict(type='mmdfkd.SyntheticQualityHook', **TOUCHY)]
    state = _run(folder, 'generator', hooks, model_source=dafl)['dfkd_state']
    assert state['source']['balance.collapses'].tolist() == [2, 2, 0]
    assert [alarm['changed'] for alarm in state['image_quality']['alarms']] == [
        'PresetGeneratorSource: information_entropy weighs 10, not 5',
        'PresetGeneratorSource: information_entropy weighs 20, not 10',
    ]


def test_of_real_images_nothing_is_kept(folder):
    """With the defaults, and a source that draws the images of its step alone."""
    hooks = [dict(type='mmdfkd.SyntheticQualityHook'), dict(type='mmdfkd.SyntheticVisHook')]
    rendered = dict(type='mmdfkd.RenderedSource')
    state = _run(folder, 'real', hooks, model_source=rendered, model_data_free=False)['dfkd_state']
    quality = state['image_quality']
    assert quality['old'] is None and quality['looks'][0]['divergence_old'] is None
    assert [look['images'] for look in quality['looks']] == [2]
    assert not list((folder / 'real').rglob('synthetic_*.png'))


def test_when_it_looks(folder):
    """At the first step, every so many, and after a refresh that the last look is not near."""
    cfg = toy.run_config(folder, work_dir=str(folder / 'when'))
    runner = toy.runner_of(cfg)

    def looks(refreshes, **settings):
        hook = SyntheticQualityHook(**settings)
        for step in range(40):
            runner.train_loop._iter = step
            runner.model.refreshed = step + 1 in refreshes
            if hook._due(runner):
                hook.looks.append(dict(iteration=step + 1))
        return [look['iteration'] for look in hook.looks]

    made = (3, 6, 9, 12, 25)
    assert looks(made, interval=15, apart=5) == [1, 6, 12, 15, 25, 30]
    assert looks(made, interval=15, apart=None) == [1, 15, 30]
    assert looks(made, interval='refresh') == [1, *made]


def test_older_images_are_spread_over_the_run():
    hook = SyntheticQualityHook(old=6)
    for look in range(40):
        hook._remember(torch.full((8, 3, 2, 2), look, dtype=torch.uint8), seed=0)
    kept = hook.old[:, 0, 0, 0].tolist()
    assert len(kept) == 6 and len(set(kept)) > 3
    assert min(kept) < 20


def test_pictures_of_an_earlier_run_go(tmp_path):
    (tmp_path / 'vis_data').mkdir()
    for name in ('synthetic_000001.png', 'mine.png'):
        (tmp_path / 'vis_data' / name).write_bytes(b'')
    clear_run(tmp_path)
    assert [path.name for path in (tmp_path / 'vis_data').iterdir()] == ['mine.png']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(interval=0), "at least 1, or 'refresh'; got 0"),
        (dict(interval='often'), "got 'often'"),
        (dict(apart=0), 'apart must be at least 1, got 0'),
        (dict(images=0), 'images must be at least 1, got 0'),
        (dict(limits=dict(coverage=2)), 'coverage is from 0 to 1, got 2'),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticQualityHook(**settings)


def test_unknown_settings_are_named():
    with pytest.raises(TypeError, match='coverige'):
        SyntheticQualityHook(limits=dict(coverige=0.1))
    with pytest.raises(ValueError, match='SyntheticVisHook: interval must be at least 1'):
        SyntheticVisHook(interval=0)


def test_a_verifier_of_other_classes_is_refused(tmp_path):
    other = dict(config=toy.whole(toy.detector_model(classes=5)), checkpoint='nowhere.pth')
    hook = dict(type='mmdfkd.SyntheticQualityHook', verifier=other)
    with pytest.raises(ValueError, match='the verifier is a two-stage network of 5 classes'):
        _run(tmp_path, 'run', [hook])
    assert np.array_equal(list((tmp_path / 'run').glob('*.pth')), [])
