"""Renderers: functions of seed and index, made of nothing that the evaluation data is made of."""

import ast
from pathlib import Path

import numpy as np
import pytest

from mmdfkd.datasets import digits
from mmdfkd.datasets.renderers import NoiseRenderer, ProceduralRenderer, procedural
from mmdfkd.datasets.renderers.stream import stream
from mmdfkd.registry import TASK_UTILS

FOLDER = Path(procedural.__file__).parent
RENDERERS = [
    dict(type='mmdfkd.NoiseRenderer'),
    dict(type='mmdfkd.NoiseRenderer', kind='uniform'),
    dict(type='mmdfkd.ProceduralRenderer'),
]


@pytest.mark.parametrize('cfg', RENDERERS)
@pytest.mark.parametrize('size', [(32, 32), (48, 80), (1, 3)])
def test_is_a_function_of_seed_and_index(cfg, size):
    render, again = TASK_UTILS.build(cfg), TASK_UTILS.build(cfg)
    image = render(3, 7, size)
    assert image.dtype == np.uint8
    assert image.shape == (3, *size)
    np.random.seed(0)
    # Other images in between, and the global generator elsewhere, change nothing.
    again(3, 6, size)
    assert np.array_equal(image, again(3, 7, size))
    if size != (1, 3):
        assert not np.array_equal(image, render(3, 8, size))
        assert not np.array_equal(image, render(4, 7, size))


@pytest.mark.parametrize('cfg', RENDERERS)
def test_leaves_the_global_generator_alone(cfg):
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    TASK_UTILS.build(cfg)(0, 0, (32, 32))
    assert np.array_equal(before, np.random.get_state()[1])


def test_noise_has_the_stated_moments():
    image = NoiseRenderer(mean=0.4, std=0.1)(0, 0, (128, 128)) / 255
    assert abs(image.mean() - 0.4) < 0.01
    assert abs(image.std() - 0.1) < 0.01
    with pytest.raises(ValueError, match='kind'):
        NoiseRenderer('pink')


def test_procedural_images_vary_at_every_scale():
    """Means, contrasts and edge densities must spread; few images may be all but empty."""
    render = ProceduralRenderer()
    images = np.stack([render(0, g, (64, 64)) for g in range(120)]) / 255
    assert images.mean((1, 2, 3)).std() > 0.12
    contrast = images.std((2, 3)).mean(1)
    assert contrast.std() > 0.05
    assert (contrast < 0.02).mean() < 0.1
    # Structure survives averaging over 8 x 8 pixels: it is not fine noise, as with the noise
    # renderer.
    coarse = images.reshape(120, 3, 8, 8, 8, 8).mean((3, 5)).std((2, 3)).mean()
    noise = np.stack([NoiseRenderer()(0, g, (64, 64)) for g in range(20)]) / 255
    assert coarse > 3 * noise.reshape(20, 3, 8, 8, 8, 8).mean((3, 5)).std((2, 3)).mean()


def test_sizes_are_relative_to_the_image():
    """The same sample at twice the size shows figures of about the same share of the image."""
    render = ProceduralRenderer(figures=(1, 1), extent=(0.5, 0.5), plain=1.0)
    ratio = []
    for g in range(40):
        shares = []
        for side in (64, 128):
            image = render(1, g, (side, side)).astype(float).mean(0)
            ground = np.median(image)
            shares.append((np.abs(image - ground) > 25).mean())
        if min(shares) > 0.01:
            ratio.append(shares[1] / shares[0])
    assert len(ratio) > 5
    assert 0.5 < np.median(ratio) < 2


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='figures'):
        ProceduralRenderer(figures=(3, 1))
    with pytest.raises(ValueError, match='extent'):
        ProceduralRenderer(extent=(0, 1))


def test_streams_of_different_purposes_share_nothing():
    assert stream('a', 1, 2).random() == stream('a', 1, 2).random()
    drawn = {stream(p, s, g).random() for p in 'ab' for s in (1, 2) for g in (1, 2)}
    assert len(drawn) == 8


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ''} | {f'{node.module}.{a.name}' for a in node.names}
    return names


def definitions(path: Path) -> dict[str, str]:
    """Module-level names: functions and classes by their code, constants by their value."""
    found = {}
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.Assign):
            found |= {t.id: ast.dump(node.value) for t in node.targets if isinstance(t, ast.Name)}
    return found


def test_shares_nothing_with_the_digits_set():
    package = FOLDER.parents[1]
    ours = [*FOLDER.glob('*.py'), *(package / 'synthesis').rglob('*.py')]
    ours += [FOLDER.parent / name for name in ('synthetic.py', 'samplers.py', '__init__.py')]
    theirs = Path(digits.__file__)
    assert not [path for path in ours if any('digits' in name for name in imports(path))]
    banned = ('renderers', 'synthetic', 'synthesis', 'mmdfkd.datasets')
    assert not [name for name in imports(theirs) if any(word in name for word in banned)]
    there = definitions(theirs)
    for path in FOLDER.glob('*.py'):
        here = definitions(path)
        assert not {name for name in here if name in there and name.isupper()}
        assert not set(here.values()) & {code for code in there.values() if len(code) > 40}
        # No text drawing, no fonts, no bundled images.
        code = path.read_text()
        assert not [
            word for word in ('putText', 'font', 'imread', 'open(', 'sklearn') if word in code
        ]


def test_size_range_is_not_that_of_the_digits():
    """Relative to the side of the digits set's images, neither end is near theirs."""
    low, high = ProceduralRenderer().extent
    side = digits.DetectionSpec().size
    assert low * side < 0.6 * digits.MIN_SIZE
    assert high * side > 1.5 * digits.MAX_SIZE
