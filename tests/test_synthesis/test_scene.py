"""Scenes: balanced classes, whole objects with room, the pieces' own pixels."""

from collections import Counter

import numpy as np
import pytest
import torch

from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.synthesis.pieces import Pieces
from mmdfkd.synthesis.scene import MARGIN, SceneComposer, neighbourhood


def make_pieces(classes=3, size=(64, 64), count=12, share=(0.15, 0.4), seed=0):
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    side = np.array(size[::-1]) * rng.uniform(*share, (count, classes, 2))
    low = rng.random((count, classes, 2)) * (np.array(size[::-1]) - side)
    return Pieces(images, rng.random((count, classes)), np.concatenate([low, low + side], -1))


def compose(seed=0, least_size=6.0, **kwargs):
    pieces = kwargs.pop('pieces', None) or make_pieces()
    return SceneComposer(pieces, lambda what, i: stream(what, seed, i), least_size, **kwargs)


def overlap_of_smaller(a, b):
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp_min(0)
    return float(sides.prod() / min((box[2:] - box[:2]).prod() for box in (a, b)))


@pytest.mark.parametrize(
    ('classes', 'boxes'), [(1, (2, 5)), (3, (2, 5)), (10, (1, 4)), (80, (3, 3))]
)
def test_classes_are_balanced_over_whole_passes(classes, boxes):
    """Wanted ones: no class is ever two ahead of another, whatever the counts of the scenes."""
    composer = compose(pieces=make_pieces(classes, count=4), boxes=boxes)
    wanted, orders = Counter(dict.fromkeys(range(classes), 0)), []
    for serial in range(60):
        labels = composer.labels(serial).tolist()
        assert boxes[0] <= len(labels) <= boxes[1]
        orders += labels
        wanted.update(labels)
        assert max(wanted.values()) - min(wanted.values()) <= 1
    if classes == 10:
        assert orders[:10] != orders[10:20], 'each pass has its own order'
    counts = Counter(len(composer.labels(serial)) for serial in range(60))
    assert set(counts) == set(range(boxes[0], boxes[1] + 1))
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize('size', [(64, 64), (96, 160), (160, 96), (24, 200)])
@pytest.mark.parametrize('classes', [1, 3, 80])
def test_boxes_are_inside_and_apart(size, classes):
    composer = compose(pieces=make_pieces(classes, size))
    limit = torch.tensor([size[1], size[0]])
    counts = []
    for serial in range(25):
        scene = composer(serial)
        assert scene.image.shape == (3, *size) and scene.boxes.shape == (len(scene.labels), 4)
        assert scene.image.min() >= 0 and scene.image.max() <= 1
        assert scene.boxes.dtype == torch.float32 and scene.labels.dtype == torch.int64
        assert (scene.boxes >= 0).all() and (scene.boxes[:, 2:] <= limit).all()
        side = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (side > 0.98 * 6).all() and (side <= 0.9 * limit + 1e-3).all()
        assert set(scene.labels.tolist()) <= set(composer.labels(serial).tolist())
        for i, box in enumerate(scene.boxes):
            assert all(overlap_of_smaller(box, other) <= 0.101 for other in scene.boxes[:i])
        counts.append(len(scene.boxes))
    assert np.mean(counts) > 2


def test_large_objects_leave_room_for_one():
    """Of 60 to 90 % of the side: drawn as large as they are, not squeezed until all fit."""
    pieces = make_pieces(1, (96, 96), share=(0.6, 0.9))
    composer = compose(pieces=pieces, least_size=29.0, zoom=(1, 1))
    for serial in range(20):
        side = composer(serial).boxes[0].view(2, 2).diff(dim=0)[0] / 96
        assert (side > 0.59).all() and (side <= 0.901).all()


def test_what_is_pasted_is_the_piece():
    """Without zoom, pixel for pixel; the margin is faded and the rest is ground."""
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    box = np.array([8.0, 6, 28, 26])
    pieces = Pieces(images, np.array([[0.0], [1.0]]), np.stack([box, box])[:, None])
    composer = compose(pieces=pieces, boxes=(1, 1), choice=1, zoom=(1, 1))
    place = np.array([30.0, 16, 50, 36])
    composer._place = lambda *args: place
    ground = next(
        serial for serial in range(20) if int(stream('scene', 0, serial).integers(2)) == 0
    )
    scene = composer(ground)
    assert scene.boxes.tolist() == [place.tolist()] and scene.labels.tolist() == [0]
    source, image = images.float() / 255, scene.image
    torch.testing.assert_close(image[:, 16:36, 30:50], source[1, :, 6:26, 8:28], atol=1e-5, rtol=0)
    margin = int(np.ceil(MARGIN * 20))
    far = torch.ones(40, 56, dtype=torch.bool)
    far[16 - margin : 36 + margin, 30 - margin : 50 + margin] = False
    assert torch.equal(image[:, far], source[0][:, far])
    # A pixel beside the box: between piece and ground.
    share = 1 - 0.5 / (MARGIN * 20)
    expected = share * source[1, :, 10, 28] + (1 - share) * source[0, :, 20, 50]
    torch.testing.assert_close(image[:, 20, 50], expected, atol=1e-5, rtol=0)
    assert torch.equal(pieces.images, images), 'the pieces stay'


def test_pieces_are_enlarged_with_their_boxes():
    """A bright square in a dark image is found where the scene's box says."""
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 20:36, 12:36] = 255
    box = np.array([12.0, 20, 36, 36])
    votes = np.array([[1.0], [0.9], [0.8]])
    pieces = Pieces(images, votes, np.tile(box, (3, 1))[:, None])
    composer = compose(pieces=pieces, boxes=(1, 1), zoom=(0.5, 1.5))
    for serial in range(12):
        scene = composer(serial)
        x0, y0, x1, y1 = scene.boxes[0].tolist()
        assert (x1 - x0) / (y1 - y0) == pytest.approx(1.5, rel=1e-3)
        inside = scene.image[0, int(y0) + 2 : int(y1) - 1, int(x0) + 2 : int(x1) - 1]
        assert inside.min() > 0.99


def test_deterministic_by_seed_and_serial():
    first, again, other = compose(), compose(), compose(seed=1)
    again(7)
    torch.manual_seed(0)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for serial in (5, 3):
        a, b, c = (composer(serial) for composer in (first, again, other))
        assert torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.labels, b.labels)
        assert not torch.equal(a.image, c.image)
    assert not torch.equal(first(3).image, first(4).image)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])


def test_a_layout_that_cannot_be_placed():
    with pytest.raises(ValueError, match=r'No layout can be placed.*70 px.*64 x 64 px'):
        compose(least_size=70.0)
    # The image would hold an object, but none of this shape.
    pieces = make_pieces(1)
    pieces.boxes[..., 3] = pieces.boxes[..., 1] + 0.1
    with pytest.raises(ValueError, match=r'Layout 4 cannot be placed.*20 px.*64 x 64 px'):
        compose(pieces=pieces, least_size=20.0)(4)


class TestCompletedPieces:
    SIZES = np.array([[20.0, 10.0], [14.0, 14.0], [400.0, 400.0]])

    def complete(self, pieces, sizes=SIZES, least=7.0):
        return pieces.completed(sizes, least, np.random.default_rng(0))

    def test_what_is_seen_stays(self):
        pieces = make_pieces(share=(0.2, 0.4))
        done = self.complete(pieces)
        assert np.array_equal(done.votes, pieces.votes) and np.array_equal(done.boxes, pieces.boxes)

    def test_nothing_seen(self):
        """As of a teacher without proposals: boxes of its sizes that fit, at random places."""
        pieces = make_pieces(size=(40, 60))
        pieces.votes[:], pieces.boxes[:] = 0, 0
        done = self.complete(pieces)
        side = done.boxes[..., 2:] - done.boxes[..., :2]
        fits = [np.isclose(side, size).all(-1) for size in self.SIZES]
        assert (fits[0] | fits[1]).all() and fits[0].any() and fits[1].any()
        assert (done.boxes >= 0).all() and (done.boxes[..., 2:] <= [60, 40]).all()
        assert len(np.unique(done.boxes[..., 0])) == 36 and not done.votes.any()
        composer = compose(pieces=done, least_size=7.0)
        assert all(len(composer(serial).boxes) for serial in range(20))

    def test_sizes_beyond_the_image_are_shrunk(self):
        pieces = make_pieces(size=(40, 60))
        pieces.votes[:] = 0
        done = self.complete(pieces, np.array([[400.0, 200.0], [300.0, 300.0]]))
        side = done.boxes[..., 2:] - done.boxes[..., :2]
        assert (side <= np.array([54, 36]) + 1e-6).all()
        assert np.isclose(side, [54, 27]).all(-1).any() and np.isclose(side, 36).all(-1).any()

    def test_slivers_and_specks_are_replaced(self):
        pieces = make_pieces(1, size=(64, 64), count=4)
        pieces.boxes[0, 0] = [0, 10, 64, 12]  # 7 px high it would be 224 px wide
        pieces.boxes[1, 0] = [10, 10, 13, 13]  # more than a twofold enlargement
        pieces.boxes[2, 0] = [10, 10, 14, 14]
        done = self.complete(pieces)
        assert (done.votes[:2] == 0).all() and (done.votes[2:] > 0).all()
        assert np.array_equal(done.boxes[2:], pieces.boxes[2:])

    def test_seen_pieces_come_before_those_that_stand_in(self):
        pieces = make_pieces(2, count=6)
        pieces.votes[:] = [[0, 0], [0.2, 0], [0, 0], [0.9, 0], [0, 0], [0, 0]]
        assert pieces.best(0, 4).tolist() == [3, 1]
        assert pieces.best(1, 4).tolist() == [0, 1, 2, 3]


def test_neighbourhood():
    boxes = [torch.tensor([[10.0, 8, 20, 16]]), torch.zeros(0, 4)]
    free = neighbourhood(boxes, (32, 40), 0.25)
    assert free.shape == (2, 1, 32, 40)
    assert (free[0, 0, 8:16, 10:20] == 1).all() and (free[1] == 0.25).all()
    assert (free[0, 0, :4] == 0.25).all() and (free[0, 0, :, 25:] == 0.25).all()
    beside = free[0, 0, 12, 20:23]
    fading = 1 - (torch.arange(3) + 0.5) / (2 * MARGIN * 10)
    torch.testing.assert_close(beside, fading.clamp_min(0.25))
