"""Renderers are chosen by what the teacher's answers say of their images."""

from math import log

import numpy as np
import pytest
import torch
import toy
from torch import Tensor, nn

from mmdfkd.adapters import Normalizer, build_adapter
from mmdfkd.datasets.renderers import LookRenderer
from mmdfkd.evaluation.teacher_passes import teacher_passes
from mmdfkd.registry import MODELS, TASK_UTILS
from mmdfkd.synthesis.augment import LightAugment
from mmdfkd.synthesis.greyness import grey_images
from mmdfkd.synthesis.look_choice import ASKED, VIEWS, label_information, teacher_shares

PROCEDURAL = dict(type='mmdfkd.ProceduralRenderer')
DARK = dict(type='mmdfkd.LookRenderer', look='dark', renderer=PROCEDURAL)


class DarkAnswers(nn.Module):
    """Knows dark images only: their class is where the light is, any other's is the first."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def class_votes(self, images: Tensor) -> Tensor:
        left, right = images.mean(1).chunk(2, 2)
        side = (left.mean((1, 2)) > right.mean((1, 2))).long()
        dark = images.flatten(1).median(1).values < 0.1
        return nn.functional.one_hot(side * dark, 2).float()


def test_information_is_that_of_image_and_class():
    sure = torch.eye(4).repeat(3, 1)[None]
    assert label_information(sure) == pytest.approx(1)
    assert label_information(torch.full((1, 6, 4), 0.25)) == pytest.approx(0)
    # One class however sure tells nothing of the others.
    assert label_information(torch.eye(4)[:1].repeat(6, 1)[None]) == pytest.approx(0)
    # Two views that disagree are half an answer each: H = log 2 of both, and of their mean.
    split = torch.eye(2)[None].repeat(2, 1, 1)
    split[1] = split[1].flip(0)
    assert label_information(split) == pytest.approx(0)
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    mean = 0.6 * log(1 / 0.6) + 0.4 * log(1 / 0.4)
    own = [a * log(1 / a) + (1 - a) * log(1 / (1 - a)) for a in (0.8, 0.4)]
    assert label_information(p[None]) == pytest.approx((mean - sum(own) / 2) / log(2), abs=1e-6)


def test_no_vote_is_no_information():
    assert label_information(torch.zeros(1, 3, 4)) == 0
    assert label_information(torch.ones(1, 3, 1)) == 0


def test_the_look_that_the_teacher_knows_gets_the_larger_share():
    shares, found = teacher_shares(DarkAnswers(), [PROCEDURAL, DARK], 0, (16, 16), 'cpu')
    assert shares.sum() == pytest.approx(1)
    assert found[1] > found[0] and shares[1] > 0.9
    again, _ = teacher_shares(DarkAnswers(), [PROCEDURAL, DARK], 0, (16, 16), 'cpu')
    np.testing.assert_array_equal(shares, again)


def test_a_pool_of_several_renderers_is_what_the_teacher_chose():
    adapter = build_adapter(
        toy.build(toy.classifier_model(), scope='mmpretrain').eval(),
        Normalizer([0.0] * 3, [255.0] * 3, 'rgb'),
    )
    source = MODELS.build(
        dict(type='mmdfkd.PooledSource', renderer=[PROCEDURAL, DARK], pool_size=12, num_workers=0)
    )
    size = (toy.SIZE, toy.SIZE)
    source.prepare(adapter, seed=3, image_size=size, device='cpu')
    shares, _ = teacher_shares(adapter, [PROCEDURAL, DARK], 3, size, 'cpu')
    joined = TASK_UTILS.build(
        dict(
            type='mmdfkd.CombinedRenderer',
            renderers=[PROCEDURAL, DARK],
            weights=shares.tolist(),
            joined=0.0,
        )
    )
    np.testing.assert_array_equal(source.pool[5].numpy(), joined(3, 5, size))
    assert teacher_passes(source, adapter.net, size).before == 12 + 2 * ASKED * VIEWS + 4 * 12


def test_a_pool_needs_a_renderer():
    with pytest.raises(ValueError, match='needs a renderer'):
        MODELS.build(dict(type='mmdfkd.PooledSource', renderer=[], pool_size=12))


@pytest.mark.parametrize('look', ['grey', 'dark', 'light', 'stretched'])
def test_looks(look):
    image = LookRenderer(PROCEDURAL, look)(0, 4, (20, 24))
    assert image.dtype == np.uint8 and image.shape == (3, 20, 24)
    assert np.ptp(image, 0).max() == 0 or look == 'stretched'
    if look == 'dark':
        # Half of the pixels are ground.
        assert (image[0] == 0).mean() >= 0.45 and image.max() == 255
    if look == 'light':
        assert (image[0] == 255).mean() >= 0.45 and image.min() == 0
    np.testing.assert_array_equal(image, LookRenderer(PROCEDURAL, look)(0, 4, (20, 24)))


def test_the_plain_look_is_the_renderers_own():
    own = TASK_UTILS.build(PROCEDURAL)(0, 4, (20, 24))
    np.testing.assert_array_equal(LookRenderer(PROCEDURAL)(0, 4, (20, 24)), own)


def test_unknown_looks_are_refused():
    with pytest.raises(ValueError, match="one of .*'dark'"):
        LookRenderer(PROCEDURAL, 'darkk')


def test_grey_stays_grey_in_the_draws():
    images = torch.rand(2, 3, 8, 8)
    images[1] = images[1].mean(0)
    assert grey_images(images).flatten().tolist() == [False, True]
    drawn = LightAugment()(images, 0, [5, 6])
    assert grey_images(drawn).flatten().tolist() == [False, True]
    # It is another image for all that.
    assert (drawn[1] - images[1]).abs().max() > 0.05
