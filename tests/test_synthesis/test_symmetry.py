"""Networks whose symmetries are known by construction."""

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from mmdfkd.adapters.base import Adapter
from mmdfkd.adapters.normalizer import Normalizer
from mmdfkd.adapters.observation import Targets
from mmdfkd.synthesis import LightAugment, PooledSource
from mmdfkd.synthesis.symmetry import SYMMETRIES, held_symmetries


class Analytic(Adapter):
    """No weights: what it answers is computed from the normalised pixels by a rule."""

    family = 'analytic'
    num_classes = 2

    def __init__(self) -> None:
        super().__init__(nn.Identity(), Normalizer([0.0] * 3, [255.0] * 3, 'rgb'))

    @classmethod
    def supports(cls, net):
        return False

    def features(self, inputs):
        return (inputs,)

    def answer(self, memory, probe):
        raise AssertionError('not asked')

    target_loss = answer

    def class_votes(self, memory):
        """Class 1 where the left half is brighter."""
        grey = memory.feats[0].mean(1)
        half = grey.shape[-1] // 2
        left = (grey[..., :half].sum((1, 2)) > grey[..., half:].sum((1, 2))).long()
        return torch.eye(2)[left]


class AnalyticDetector(Analytic):
    """Finds the bright rectangle of each image; of class 1 where its upper half is brighter."""

    def detect(self, memory):
        found = []
        for grey in memory.feats[0].mean(1):
            ys, xs = torch.nonzero(grey > 0.3, as_tuple=True)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            middle = int((box[1] + box[3]) / 2)
            label = int(grey[:middle].clamp_min(0.3).sum() > grey[middle:].clamp_min(0.3).sum())
            found.append(
                InstanceData(bboxes=box[None], scores=torch.ones(1), labels=torch.tensor([label]))
            )
        return found


def test_a_classifier_that_tells_left_from_right():
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2
    images[:5, :, :, :4] += 0.5
    images[5:, :, :, 4:] += 0.5
    held = held_symmetries(Analytic(), images, Targets(), batch=4)
    assert held['horizontal'] == 0 and held['vertical'] == 1
    assert 0 < held['turn'] < 1


def test_a_detector_that_tells_up_from_down():
    images = torch.zeros(3, 3, 16, 16)
    images[:, :, 2:6, 3:11] = 0.9
    images[:, :, 4:6, 3:11] = 0.5
    boxes = [torch.tensor([[3.0, 2.0, 11.0, 6.0]])] * 3
    # The last one's label is not what the detector sees: it counts for nothing.
    labels = [torch.tensor([1]), torch.tensor([1]), torch.tensor([0])]
    held = held_symmetries(
        AnalyticDetector(), images, Targets(boxes=boxes, box_labels=labels), batch=2
    )
    assert held['horizontal'] == 1 and held['vertical'] == 0


def test_oblong_images_are_not_turned_and_nothing_seen_forbids_nothing():
    images = torch.full((1, 3, 8, 12), 0.9)
    targets = Targets(boxes=[torch.zeros(0, 4)], box_labels=[torch.zeros(0, dtype=torch.long)])
    held = held_symmetries(AnalyticDetector(), images, targets)
    assert held == dict(horizontal=1.0, vertical=1.0, turn=0.0)


@pytest.mark.parametrize('left_out', ['horizontal', 'vertical', 'turn'])
def test_what_is_left_out_never_happens_and_nothing_else_changes(left_out):
    kept, restricted = LightAugment(), LightAugment()
    restricted.restrict(dict(dict.fromkeys(SYMMETRIES, 0.8), **{left_out: 0.79}))
    changed = 0
    for g in range(40):
        before, colour = kept._draw(0, g, True)
        after, same = restricted._draw(0, g, True)
        turned = before[0, 0] == 0
        flips = (before[:, :2].sum(1) < 0)[:: -1 if turned else 1]
        expected = dict(horizontal=flips[0], vertical=flips[1], turn=turned)[left_out]
        assert (before != after).any() == expected
        changed += expected
        assert (colour == same).all() and (before[:, 2] == after[:, 2]).all()
        if left_out == 'turn':
            assert after[0, 0] != 0
    assert 10 < changed < 30


@pytest.mark.parametrize('balance', [True, False])
def test_a_pool_is_not_mirrored_where_that_changes_the_class(balance):
    source = PooledSource(
        dict(type='mmdfkd.ProceduralRenderer'), pool_size=40, balance=balance, num_workers=0
    )
    source.prepare(Analytic(), seed=0, image_size=(16, 16), device='cpu')
    # Left is told from right; a teacher that was not asked forbids nothing.
    assert source.augment.used == (['vertical'] if balance else list(SYMMETRIES))


def test_a_detector_is_not_asked_about_a_whole_image():
    source = PooledSource(dict(type='mmdfkd.NoiseRenderer'), pool_size=4, num_workers=0)
    source.prepare(AnalyticDetector(), seed=0, image_size=(16, 16), device='cpu')
    assert source.augment.used == list(SYMMETRIES)
