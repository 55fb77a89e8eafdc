"""Textures: functions of seed and index, of every kind, and of nothing the digits are made of."""

from pathlib import Path

import numpy as np
import pytest
from test_renderers import FOLDER, definitions, imports

from mmdfkd.datasets import digits
from mmdfkd.datasets.renderers import (
    CombinedRenderer,
    DeadLeavesRenderer,
    FractalRenderer,
    GlyphRenderer,
    NoiseRenderer,
    ProceduralRenderer,
    ShaderRenderer,
    SinusoidRenderer,
    fractals,
    shaders,
)
from mmdfkd.datasets.renderers.palette import painted, palette
from mmdfkd.registry import TASK_UTILS

TEXTURES = (DeadLeavesRenderer, FractalRenderer, SinusoidRenderer, ShaderRenderer)
KINDS = [
    *({'type': 'mmdfkd.FractalRenderer', 'kinds': [kind]} for kind in fractals._KINDS),
    *({'type': 'mmdfkd.ShaderRenderer', 'kinds': [kind]} for kind in shaders._KINDS),
    dict(type='mmdfkd.DeadLeavesRenderer'),
    dict(type='mmdfkd.SinusoidRenderer'),
    dict(type='mmdfkd.GlyphRenderer'),
    dict(type='mmdfkd.CombinedRenderer', joined=1.0),
]


def contrast(images: np.ndarray) -> np.ndarray:
    """Deviation over the places of each image, mean over the channels."""
    return (images / 255).std((2, 3)).mean(1)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('cfg', KINDS, ids=lambda c: c.get('kinds', [c['type']])[0])
def test_is_a_function_of_seed_and_index(cfg):
    render, again = TASK_UTILS.build(dict(cfg)), TASK_UTILS.build(dict(cfg))
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    for size in ((32, 32), (48, 80), (1, 3)):
        image = render(3, 7, size)
        assert image.dtype == np.uint8 and image.shape == (3, *size)
        again(3, 6, size)
        assert np.array_equal(image, again(3, 7, size))
        if size != (1, 3):
            assert not np.array_equal(image, render(3, 8, size))
            assert not np.array_equal(image, render(4, 7, size))
    assert np.array_equal(before, np.random.get_state()[1])
    images = np.stack([render(0, g, (32, 32)) for g in range(24)])
    # Most show something, and not all the same amount of it.
    assert np.median(contrast(images)) > 0.05 and contrast(images).std() > 0.02
    assert (images / 255).mean((2, 3)).std(0).min() > 0.08


@pytest.mark.parametrize('cls', TEXTURES)
def test_structure_is_larger_than_a_pixel(cls):
    """What is left of the contrast after averaging 8 x 8 pixels is far more than of noise."""

    def coarse(render) -> float:
        images = np.stack([render(1, g, (64, 64)) for g in range(16)]) / 255
        return float(images.reshape(16, 3, 8, 8, 8, 8).mean((3, 5)).std((2, 3)).mean())

    assert coarse(cls()) > 2 * coarse(NoiseRenderer())


def test_leaves_are_as_large_as_asked_for_and_cover_the_ground():
    render = DeadLeavesRenderer(radius=(0.05, 0.5), exponent=3.0, cover=4.0)
    rng = np.random.default_rng(0)
    uncovered, radii = [], []
    for _ in range(30):
        leaves, labels = render._fallen(rng, 96, 96)
        assert labels.min() >= 0 and labels.max() < len(leaves)
        uncovered.append((labels == 0).mean())
        radii.append(leaves[1:, 2] / leaves[1:, 2].min())
        assert leaves[1:, 2].max() <= 0.5 * 96 + 1e-3
        assert leaves[1:, 2].min() >= 0.05 * 96 * 0.7 - 1e-3
    # Stars and narrow shapes cover less than the discs that are counted.
    assert np.exp(-4) / 3 < np.mean(uncovered) < 0.35
    # P(r > 2 r_min) of the density r^-3 is a quarter; the cut at the largest radius takes little.
    assert abs(np.mean(np.concatenate(radii) > 2) - 0.25) < 0.05


def test_attractor_lies_where_the_maps_go():
    """All points stay within a bounded part; the densest place has density 1."""
    for seed in range(5):
        density = fractals.attractor(np.random.default_rng(seed), 40, 56)
        assert density.shape == (40, 56) and density.max() == pytest.approx(1)
        assert density.min() == 0 and 0.01 < (density > 0).mean() < 1


def test_plane_waves_are_the_sums_they_stand_for():
    from mmdfkd.datasets.renderers.sinusoids import _plane_waves

    frequency, angle, gain = np.array([0.3, 1.1]), np.array([0.4, 2.0]), np.array([0.8, 0.6])
    got = _plane_waves(np.random.default_rng(3), 5, 7, frequency, angle, gain, 2)
    phase = np.random.default_rng(3).uniform(0, 2 * np.pi, (2, 2, 1))[..., 0]
    y, x = np.mgrid[:5, :7]
    for channel in range(2):
        want = sum(
            a * np.sin(f * (np.cos(t) * x + np.sin(t) * y) + p)
            for a, f, t, p in zip(gain, frequency, angle, phase[channel], strict=True)
        )
        assert np.abs(got[channel] - want).max() < 1e-6


def test_cells_are_nearest_points():
    """The field of the nearest point's tone has few values, each one connected patch's."""
    tones = []
    for seed in range(20):
        field = shaders.cells(np.random.default_rng(seed), 40, 40)
        assert field.shape == (40, 40) and 0 <= field.min() <= field.max() <= 1
        tones.append(len(np.unique(field)))
    assert min(tones) < 400 and max(tones) > 1000


def test_palettes_run_through_colours():
    for seed in range(10):
        table = palette(np.random.default_rng(seed))
        assert table.shape == (3, 256) and 0 <= table.min() <= table.max() <= 1
    canvas = painted(np.array([[-1.0, 0.0], [1.0, 2.0]]), table)
    assert np.array_equal(canvas[:, 0, 0], table[:, 0])
    assert np.array_equal(canvas[:, 1, 1], table[:, 255])


class TestCombined:
    def test_takes_each_as_often_as_its_weight_says(self):
        render = CombinedRenderer(
            [dict(type='mmdfkd.NoiseRenderer', std=0.0, mean=m) for m in (0.2, 0.8)],
            weights=[1, 3],
            joined=0.0,
        )
        bright = np.mean([render(0, g, (2, 2)).mean() > 128 for g in range(800)])
        assert abs(bright - 0.75) < 0.05

    def test_gives_the_images_of_its_renderers(self):
        render = CombinedRenderer(joined=0.0)
        own = [r(4, 9, (16, 16)) for r in render.renderers]
        assert any(np.array_equal(render(4, 9, (16, 16)), image) for image in own)

    def test_joins_two(self):
        flat = [dict(type='mmdfkd.NoiseRenderer', std=0.0, mean=m) for m in (0.2, 0.8)]
        render = CombinedRenderer(flat, joined=1.0)
        images = np.stack([render(0, g, (24, 24)) for g in range(40)])
        both = [(image < 60).any() and (image > 195).any() for image in images]
        assert 0.25 < np.mean(both) < 0.75


def test_bad_arguments_are_named():
    for cls, kwargs, name in (
        (DeadLeavesRenderer, dict(radius=(0.5, 0.1)), 'radius'),
        (DeadLeavesRenderer, dict(cover=0), 'cover'),
        (FractalRenderer, dict(kinds=['tree']), 'kinds'),
        (SinusoidRenderer, dict(waves=(0, 3)), 'waves'),
        (SinusoidRenderer, dict(cycles=(3, 1)), 'cycles'),
        (ShaderRenderer, dict(kinds=[]), 'kinds'),
        (CombinedRenderer, dict(weights=[1]), 'weights'),
        (CombinedRenderer, dict(weights=[0] * 5), 'weights'),
        (CombinedRenderer, dict(joined=2), 'joined'),
    ):
        with pytest.raises(ValueError, match=f'{cls.__name__}.*{name}'):
            cls(**kwargs)


def test_share_nothing_with_the_digits_set():
    """In either direction, whatever else tests of the whole folder say."""
    theirs = Path(digits.__file__).read_text()
    names = set(definitions(FOLDER.parent / 'digits.py'))
    own = ('combined', 'dead_leaves', 'fractals', 'palette', 'shaders', 'sinusoids')
    for name in own:
        path = FOLDER / f'{name}.py'
        assert not [n for n in imports(path) if 'digits' in n or 'sklearn' in n]
        assert not {n for n in definitions(path) if n in names and n.isupper()}
        assert not [
            word for word in ('putText', 'imread', 'open(', 'font') if word in path.read_text()
        ]
    assert not [word for word in own if f'renderers.{word}' in theirs]


def test_procedural_images_do_not_hang_on_the_textures():
    """Its own streams: a texture drawn before changes nothing."""
    before = ProceduralRenderer()(0, 3, (32, 32))
    CombinedRenderer()(0, 3, (32, 32))
    assert np.array_equal(before, ProceduralRenderer()(0, 3, (32, 32)))


@pytest.mark.parametrize('ground', ['dark', 'light', 'any'])
def test_a_glyph_is_ink_on_a_flat_ground(ground):
    render = GlyphRenderer(ground, extent=(0.6, 0.8), width=(0.05, 0.05))
    shares, middles = [], []
    for g in range(40):
        image = render(0, g, (56, 84)).astype(int)
        first = image[:, 0, 0]
        if ground == 'any':
            assert abs(image - first[:, None, None]).max() > 15
        else:
            assert (first == (0 if ground == 'dark' else 255)).all()
            assert (image == image[:1]).all() and image.max() - image.min() >= 0.7 * 255
        ink = (image != first[:, None, None]).any(0)
        assert not ink[:, 0].any() and not ink[:, -1].any()
        shares.append(ink.mean())
        middles.append([axis.mean() for axis in np.nonzero(ink)])
    # Thin lines, about the middle of the image.
    assert 0.01 < np.mean(shares) < 0.25
    assert np.abs(np.mean(middles, 0) - (27.5, 41.5)).max() < 3


def test_the_pen_is_as_wide_as_asked_for():
    thin, wide = (
        np.mean(
            [(GlyphRenderer('dark', width=(w, w))(0, g, (64, 64)) > 0).mean() for g in range(9)]
        )
        for w in (0.05, 0.1)
    )
    assert 1.4 < wide / thin < 2.2


@pytest.mark.parametrize(
    ('args', 'named'), [(dict(ground='red'), 'ground'), (dict(width=(0.2, 0.1)), 'width')]
)
def test_a_glyph_of_no_sense_is_refused(args, named):
    with pytest.raises(ValueError, match=named):
        GlyphRenderer(**args)
