"""Layout inversion: images in which the teacher sees objects; the networks stay as they are."""

import copy
import shutil

import numpy as np
import pytest
import torch
import toy

from mmdfkd.adapters import ClassifierAdapter, Normalizer, Targets, build_adapter
from mmdfkd.registry import MODELS
from mmdfkd.synthesis import LayoutInversionSource, TargetPrior
from mmdfkd.synthesis.replay.segments import BankError
from mmdfkd.synthesis.scene import Scene

SIZE = (toy.SIZE, toy.SIZE + 16)
POOL = dict(
    type='mmdfkd.PooledSource',
    renderer=dict(type='mmdfkd.ProceduralRenderer'),
    pool_size=10,
    num_workers=0,
)
ITEMS = [dict(g=g) for g in range(12)]


def adapter(seed=0, **changes):
    cfg = toy.detector_model(**changes)
    return build_adapter(toy.build(cfg, seed), Normalizer.from_config(toy.whole(cfg)))


def inversion(**kwargs) -> LayoutInversionSource:
    settings = dict(source=POOL, images=6, batch=4, steps=4, starts=10, boxes=(1, 3))
    return MODELS.build(dict(type='mmdfkd.LayoutInversionSource', **{**settings, **kwargs}))


def prepare(source, teacher, folder=None, seed=0):
    source.folder = folder
    source.prepare(teacher, seed=seed, image_size=SIZE, device='cpu')
    return source


@pytest.fixture(scope='module')
def teacher():
    return adapter(0)


@pytest.fixture(scope='module')
def student():
    return adapter(1)


@pytest.fixture(scope='module')
def made(teacher, student):
    """A source with its images, and what it logged."""
    source = prepare(inversion(share=0.5), teacher)
    return source, source.refresh(teacher, student, 0)


def scenes(source, teacher, count=4):
    from mmdfkd.synthesis.scene import SceneComposer

    composer = SceneComposer(source.pieces(teacher), source.rng, source.least_size, source.boxes)
    return [composer(serial) for serial in range(count)]


def test_the_teacher_comes_to_see_the_layout(teacher, student):
    """On the stored pixels; views of a network of random weights share little, so there is one."""
    still = dict(zoom=(1, 1), shift=0, contrast=0, brightness=0, noise=0)
    source = prepare(inversion(steps=20, grow=(), jitter=still), teacher)
    start = scenes(source, teacher)
    images, targets, logs = source.invert(start, range(4), teacher, student)
    assert all(torch.equal(a, b.boxes) for a, b in zip(targets.boxes, start, strict=True))
    losses = []
    for pixels in (torch.stack([scene.image for scene in start]), images.float() / 255):
        wanted = Targets(boxes=targets.boxes, box_labels=targets.box_labels)
        with torch.no_grad():
            losses.append(teacher.target_loss(teacher.encode(pixels), wanted))
    assert (losses[1] < losses[0]).all() and losses[1].mean() < 0.8 * losses[0].mean()
    assert logs['inverted/after'] < logs['inverted/before']
    assert all(np.isfinite(value) for value in logs.values())


def test_leaves_no_trace(teacher, student):
    networks = [copy.deepcopy(teacher), copy.deepcopy(student)]
    networks[1].net.train()
    first = next(networks[1].net.parameters()).requires_grad_(False)
    last = list(networks[1].net.parameters())[-1]
    last.grad = torch.ones_like(last)
    states = [{k: v.clone() for k, v in a.net.state_dict().items()} for a in networks]
    modes = [m.training for a in networks for m in a.net.modules()]
    torch.manual_seed(0)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    # With a term that asks the student too.
    priors = [dict(type='mmdfkd.TargetPrior'), dict(type='mmdfkd.DivergencePrior')]
    source = prepare(inversion(images=3, steps=2, priors=priors), networks[0])
    logs = source.refresh(*networks, 0)
    assert {'inverted/target', 'inverted/divergence', 'inverted/found'} <= set(logs)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert modes == [m.training for a in networks for m in a.net.modules()]
    assert not first.requires_grad and last.requires_grad
    assert torch.equal(last.grad, torch.ones_like(last))
    others = [p for a in networks for p in a.net.parameters() if p is not last]
    assert all(p.grad is None for p in others)
    for network, before in zip(networks, states, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in network.net.state_dict().items())


def test_the_bank_holds_whole_grey_levels_at_the_training_size(made):
    source, logs = made
    assert 0 < logs['inverted/found'] <= 1
    assert int(source.made) == len(source.bank) == 6
    images, targets, _ = source.bank.take(source.bank.ids)
    assert images.shape == (6, 3, *SIZE)
    levels = images * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert source.bank.index()['segments'][0]['content']['images'].dtype == torch.uint8
    assert len(targets.boxes) == 6 and all(len(boxes) for boxes in targets.boxes)
    for boxes, labels in zip(targets.boxes, targets.box_labels, strict=True):
        assert boxes.shape == (len(labels), 4)
        assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([SIZE[1], SIZE[0]])).all()


def test_made_once(made, teacher, student):
    source, _ = made
    assert source.refresh(teacher, student, 1) == {} and int(source.made) == 6
    assert source.composer is None, 'the start images are not kept'


def test_images_follow_from_the_seed(made, teacher, student):
    again, other = (prepare(inversion(), teacher, seed=seed) for seed in (0, 1))
    for source in (again, other):
        source.refresh(teacher, student, 0)
    images = [s.bank.take(s.bank.ids)[0] for s in (made[0], again, other)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_images_hardly_depend_on_their_batch(made, teacher, student):
    """Not to the bit: matrix products round differently for another number of rows."""
    source = prepare(inversion(batch=2), teacher)
    source.refresh(teacher, student, 0)
    images = [s.bank.take(s.bank.ids)[0] for s in (made[0], source)]
    assert (images[0] - images[1]).abs().mean() < 0.5 / 255


def test_draws_are_functions_of_seed_and_index(made):
    source, _ = made
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    images, targets = source.draw(ITEMS)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])
    assert targets == Targets() and images.shape == (12, 3, *SIZE)
    assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad
    assert torch.equal(images[5:9], source.draw(ITEMS[5:9])[0])
    plain = source.source.draw(ITEMS)[0]
    mixed = (images != plain).flatten(1).any(1)
    assert 2 <= int(mixed.sum()) <= 10, 'about half'


def test_boxes_are_drawn_with_their_pixels(teacher):
    """Of a bank of painted rectangles; only where all images are the bank's."""
    augment = dict(type='mmdfkd.LightAugment', contrast=0, brightness=0)
    source = prepare(inversion(share=1.0, augment=augment), teacher)
    painted, boxes = torch.zeros(3, 3, *SIZE, dtype=torch.uint8), []
    for i, (x, y) in enumerate([(24, 18), (30, 16), (22, 20)]):
        painted[i, :, y : y + 12, x : x + 10 + 4 * i] = 255
        boxes.append(torch.tensor([[x, y, x + 10.0 + 4 * i, y + 12.0]]))
    labels = [torch.tensor([i]) for i in range(3)]
    source.bank.append(painted, Targets(boxes=boxes, box_labels=labels), iteration=0)
    images, targets = source.draw(ITEMS)
    for image, own, kinds in zip(images, targets.boxes, targets.box_labels, strict=True):
        rows, columns = (image[0].amax(axis).gt(0.5).nonzero().flatten() for axis in (1, 0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        torch.testing.assert_close(own[0], torch.stack(found).float(), atol=1.0, rtol=0)
        ratio = float((own[0, 2] - own[0, 0]) / (own[0, 3] - own[0, 1]))
        assert ratio == pytest.approx((10 + 4 * int(kinds)) / 12, rel=1e-3)
    # The pixels are the augmentation's of the sample's index, whatever becomes of the boxes.
    source.augment, plain = None, source.augment
    assert torch.equal(images, plain(source.draw(ITEMS)[0], source.seed, range(len(ITEMS))))
    head = MODELS.build(dict(type='mmdfkd.FGDHead', boxes='layout'))
    assert head.objects(None, targets) == targets.boxes
    # Another augmentation, which cannot say where boxes are.
    source.augment = lambda images, seed, indices: images.flip(-1)
    assert source.draw(ITEMS)[1].boxes is None
    source.augment = plain
    source.share = 0.5
    assert source.draw(ITEMS)[1] == Targets()


def test_share(teacher, student, made):
    for share in (0.0, 1.0):
        source = prepare(inversion(share=share, augment=None), teacher)
        start = source.draw(ITEMS)[0]
        assert torch.equal(start, source.source.draw(ITEMS)[0]), 'an empty bank gives nothing'
        source.load_state_dict(made[0].state_dict())
        images = source.draw(ITEMS)[0]
        bank = source.bank.take(source.bank.ids)[0]
        from_bank = [(bank == image).flatten(1).all(1).any() for image in images]
        assert all(from_bank) if share else torch.equal(images, start)


@pytest.mark.parametrize('early', [True, False])
@pytest.mark.parametrize('on_disk', [True, False])
def test_state_round_trip(early, on_disk, teacher, student, tmp_path, monkeypatch):
    """The bank comes back without one gradient step, and the next batch is the same."""
    folder = tmp_path if on_disk else None
    source = prepare(inversion(images=3, every=2, batch=2, steps=2), teacher, folder)
    source.refresh(teacher, student, 0)
    saved = copy.deepcopy(source.state_dict())
    other = inversion(images=3, every=2, batch=2, steps=2)
    if early:
        other.load_state_dict(saved)
        assert other.state_dict()['_extra_state'] == saved['_extra_state']
    prepare(other, teacher, folder)
    if not early:
        other.load_state_dict(saved)
    with monkeypatch.context() as patch:
        patch.setattr(other, 'invert', None)
        for step in (0, 1):
            assert other.refresh(teacher, student, step) == {}
    assert torch.equal(other.draw(ITEMS)[0], source.draw(ITEMS)[0])
    for one in (source, other):
        assert one.refresh(teacher, student, 2)['inverted/found'] >= 0
    assert int(other.made) == len(other.bank) == 5
    assert torch.equal(other.draw(ITEMS)[0], source.draw(ITEMS)[0])
    if on_disk:
        files = [entry['sha256'] for entry in source.bank.index()['segments']]
        assert files == [entry['sha256'] for entry in other.bank.index()['segments']]
        (tmp_path / saved['_extra_state']['segments'][0]['name']).unlink()
        with pytest.raises(BankError, match='missing'):
            prepare(inversion(), teacher, folder).load_state_dict(saved)


def test_short_mode_makes_a_batch_now_and_then(teacher, student):
    source = prepare(inversion(images=0, every=3, batch=2, share=1.0), teacher)
    made = []
    for step in range(7):
        source.refresh(teacher, student, step)
        made.append(int(source.made))
    assert made == [0, 0, 0, 2, 2, 2, 4]
    assert source.bank.made_at(source.bank.ids).tolist() == [3, 3, 6, 6]


def test_a_finished_set(teacher, student, tmp_path, monkeypatch):
    """Another run's images are drawn; nothing is made, and its folder is left as it is."""
    first = prepare(inversion(share=1.0), teacher, tmp_path / 'first')
    first.fill(teacher)
    before = {path: path.read_bytes() for path in (tmp_path / 'first').iterdir()}
    source = prepare(
        inversion(share=1.0, scenes=str(tmp_path / 'first')), teacher, tmp_path / 'second'
    )
    monkeypatch.setattr(source, 'invert', None)
    source.fill(teacher)
    assert source.refresh(teacher, student, 0) == {}
    assert torch.equal(source.draw(ITEMS)[0], first.draw(ITEMS)[0])
    assert {path: path.read_bytes() for path in (tmp_path / 'first').iterdir()} == before
    with pytest.raises(ValueError, match='every=0'):
        inversion(scenes=str(tmp_path), every=2)
    with pytest.raises(BankError, match='holds no replay bank'):
        prepare(inversion(scenes=str(tmp_path / 'nowhere')), teacher)


def test_nothing_is_ever_detected(teacher, student, monkeypatch):
    monkeypatch.setitem(teacher.net.roi_head.test_cfg, 'score_thr', 1.1)
    source = prepare(inversion(images=3, steps=2), teacher)
    with pytest.raises(ValueError, match=r'not one object in 3 images after 2 steps.*48 x 64 px'):
        source.refresh(teacher, student, 0)


def test_nothing_is_detected_in_a_later_batch(teacher, student, monkeypatch):
    """No reason to stop a run that has objects already; the log says it."""
    source = prepare(inversion(images=4, every=1, batch=4), teacher)
    assert source.refresh(teacher, student, 0)['inverted/found'] > 0
    monkeypatch.setitem(teacher.net.roi_head.test_cfg, 'score_thr', 1.1)
    assert source.refresh(teacher, student, 1)['inverted/found'] == 0


def test_a_teacher_without_proposals(teacher, monkeypatch):
    """Boxes of its anchors' sizes stand in."""
    monkeypatch.setitem(teacher.net.rpn_head.test_cfg, 'min_bbox_size', 1000)
    source = prepare(inversion(), teacher)
    found = source.pieces(teacher)
    assert not found.votes.any()
    side = found.boxes[..., 2:] - found.boxes[..., :2]
    sizes = teacher.box_sizes().numpy()
    assert np.isclose(side[:, :, None], sizes, atol=1e-3).all(-1).any(-1).all()
    assert all(len(scene.boxes) for scene in scenes(source, teacher))


def test_least_size_is_the_teachers(teacher):
    """Half of its smallest anchor: here 3 * 4 px, of any shape."""
    assert prepare(inversion(), teacher).least_size == pytest.approx(6, rel=1e-3)
    assert prepare(inversion(), teacher).growth.least_size == pytest.approx(6, rel=1e-3)
    source = prepare(inversion(growth=dict(least_size=3.0)), teacher)
    assert source.growth.least_size == 3


def test_a_layout_that_cannot_be_placed(teacher, student):
    source = prepare(inversion(scene=dict(least_size=60.0)), teacher)
    with pytest.raises(ValueError, match=r'No layout can be placed.*60 px.*48 x 64 px'):
        source.refresh(teacher, student, 0)


def test_an_empty_layout(teacher, student):
    """Alone, and beside one with boxes."""
    source = prepare(inversion(steps=2, grow=()), teacher)
    full = scenes(source, teacher, 1)[0]
    empty = Scene(full.image.clone(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    for layouts in ([empty], [full, empty]):
        serials = range(len(layouts))
        images, targets, logs = source.invert(layouts, serials, teacher, student)
        assert len(images) == len(layouts) and targets.boxes[-1].shape == (0, 4)
        assert all(np.isfinite(value) for value in logs.values())
        source.bank.append(images, targets, iteration=0)


def test_a_bank_that_does_not_fit(teacher, tmp_path):
    with pytest.raises(ValueError, match='lower capacity to 10'):
        prepare(inversion(images=20, bank=dict(max_bytes=10 * 3 * 48 * 64)), teacher)
    with pytest.raises(ValueError, match='has room for'):
        prepare(inversion(bank=dict(capacity=10**13)), teacher, tmp_path)


def test_a_family_without_boxes(teacher):
    with pytest.raises(TypeError, match='classifier network predicts no boxes'):
        prepare(inversion(), ClassifierAdapter(torch.nn.Identity(), teacher.normalizer))


def test_objective_that_is_not_finite(teacher, student):
    priors = [dict(type='mmdfkd.TotalVariationPrior', weight=float('nan'))]
    source = prepare(inversion(priors=priors), teacher)
    with pytest.raises(FloatingPointError, match='nan at step 0: total_variation'):
        source.refresh(teacher, student, 0)


def test_no_prior_suits(teacher, monkeypatch):
    monkeypatch.setattr(TargetPrior, 'unsuited', lambda self, teacher: 'a reason')
    with pytest.raises(ValueError, match='none of its priors'):
        prepare(inversion(priors=[dict(type='mmdfkd.TargetPrior')]), teacher)


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        (dict(batch=0), 'batch'),
        (dict(steps=0), 'steps'),
        (dict(starts=0), 'starts'),
        (dict(images=0), 'makes no image'),
        (dict(every=-1), 'makes no image'),
        (dict(share=1.5), 'share'),
        (dict(boxes=(0, 3)), 'boxes'),
        (dict(boxes=(3, 2)), 'boxes'),
        (dict(grow=(1.0,)), 'grow'),
    ],
)
def test_bad_arguments(wrong, match):
    with pytest.raises(ValueError, match=match):
        inversion(**wrong)


class TestInARun:
    SOURCE = dict(
        type='mmdfkd.LayoutInversionSource',
        source=POOL,
        images=3,
        every=1,
        batch=2,
        steps=4,
        starts=8,
        share=0.5,
    )

    def config(self, folder, work_dir, **changes):
        cfg = toy.run_config(folder, model_source={**self.SOURCE, **changes.pop('source', {})})
        cfg.update(work_dir=str(work_dir), **changes)
        cfg['train_cfg']['max_iters'] = 2
        cfg['default_hooks']['checkpoint']['interval'] = 1
        return cfg

    def test_resuming_equals_going_through(self, tmp_path):
        """Bit for bit: weights, optimiser, and by their checksums the images."""
        through, resumed = tmp_path / 'through', tmp_path / 'resumed'
        toy.runner_of(self.config(tmp_path, through)).train()
        assert list((through / 'synthetic').glob('segment-*'))
        shutil.copytree(through, resumed)
        (resumed / 'iter_2.pth').unlink()
        cfg = self.config(tmp_path, resumed, resume=True, load_from=str(resumed / 'iter_1.pth'))
        toy.runner_of(cfg).train()
        states = [torch.load(run / 'iter_2.pth', weights_only=False) for run in (through, resumed)]
        for key, value in states[0]['state_dict'].items():
            assert torch.equal(value, states[1]['state_dict'][key]), key
        sources = [state['dfkd_state']['source'] for state in states]
        assert int(sources[0]['made']) == 5
        assert sources[0]['_extra_state'] == sources[1]['_extra_state']
        assert len(sources[0]['_extra_state']['segments']) == 3
        assert states[0]['dfkd_state']['images_read'] == 0

    def test_overwriting_removes_the_replaced_images_alone(self, tmp_path):
        run = tmp_path / 'run'
        toy.runner_of(self.config(tmp_path, run, randomness=dict(seed=8))).train()
        old = {path.name for path in (run / 'synthetic').glob('segment-*')}
        toy.runner_of(self.config(tmp_path, run, overwrite=True)).train()
        kept = {path.name for path in (run / 'synthetic').glob('segment-*')}
        state = torch.load(run / 'iter_2.pth', weights_only=False)['dfkd_state']['source']
        assert kept == {entry['name'] for entry in state['_extra_state']['segments']}
        assert len(kept) == 3 and not kept & old

    def test_a_bank_that_does_not_fit_stops_before_the_first_step(self, tmp_path):
        cfg = self.config(tmp_path, tmp_path / 'run', source=dict(bank=dict(capacity=10**13)))
        with pytest.raises(ValueError, match='has room for'):
            toy.runner_of(cfg).train()
        assert not list((tmp_path / 'run').glob('*.pth'))


def test_flips_are_used_as_the_teacher_allows(teacher, student, monkeypatch):
    """Draws hold no flip that the teacher takes for something else, after a resume as before."""
    shares = dict(horizontal=0.1, vertical=0.9, turn=0.1)
    asked = []

    def held(_, images, targets):
        asked.append((len(images), len(targets.boxes)))
        return shares

    monkeypatch.setattr('mmdfkd.synthesis.sources.banked.held_symmetries', held)
    augment = dict(type='mmdfkd.LightAugment')
    source = prepare(inversion(images=3, share=1.0, augment=augment), teacher)
    source.fill(teacher)
    source.refresh(teacher, student, 1)
    assert asked == [(3, 3)] and source.augment.used == ['vertical']
    resumed = inversion(images=3, share=1.0, augment=augment)
    resumed.load_state_dict(copy.deepcopy(source.state_dict()))
    assert resumed.augment.used == ['vertical']
    older = source.state_dict()
    del older['held']
    resumed.load_state_dict(older)
    assert resumed.augment.used == ['horizontal', 'vertical', 'turn']


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        (dict(scene=dict(chioce=3)), TypeError, "scene does not know 'chioce'.*'choice'"),
        (dict(jitter=dict(zom=(1, 1))), TypeError, "jitter does not know 'zom'.*'zoom'"),
        (dict(growth=dict(shure=0.4)), TypeError, "growth does not know 'shure'.*'sure'"),
        (dict(bank=dict(capcity=3)), TypeError, "bank does not know 'capcity'.*'capacity'"),
        (dict(bank=dict(policy='newest')), ValueError, 'newest'),
        (dict(lr=-1.0), ValueError, 'lr must be at least 0'),
        (dict(scales=()), ValueError, 'scales a list'),
        (dict(source=dict(POOL, batch_size=0)), ValueError, 'batch_size must be at least 1'),
        (dict(source=dict(POOL, num_workers=-1)), ValueError, 'num_workers at least 0'),
        (
            dict(source=dict(POOL, renderer=dict(type='mmdfkd.ProceduralRenderer', figurs=2))),
            TypeError,
            "'figurs'",
        ),
    ],
)
def test_settings_within_settings_are_checked_when_it_is_built(settings, error, message):
    with pytest.raises(error, match=message):
        MODELS.build(dict(dict(type='mmdfkd.LayoutInversionSource', source=POOL), **settings))
