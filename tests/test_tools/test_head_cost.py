"""The benchmark of what heads cost: what a step keeps, and that rows are set side by side."""

import importlib.util

import pytest
import torch
from mmengine.config import Config
from tiny_runs import ROOT, random_checkpoint
from torch import nn


@pytest.fixture
def tool(monkeypatch):
    folder = ROOT / 'tools' / 'benchmarks'
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location('head_cost', folder / 'head_cost.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_step_keeps(tool):
    """Of ``(A x)^2``: ``x`` and ``A x``; the layer's own weights are there anyway."""
    layer, head, x = nn.Linear(8, 16, bias=False), nn.Linear(16, 3, bias=False), torch.rand(4, 8)

    def step():
        y = layer(x)
        (y * y).sum().backward()

    four = 4  # bytes
    own = four * head.weight.numel() * four
    assert tool.kept_bytes(step, [layer], head) == (x.numel() + 4 * 16) * four + own


def test_a_row_beside_kl(tool, tmp_path, monkeypatch):
    """A head that adds relations keeps more than KL alone; KL beside itself is the same."""
    cfg = Config.fromfile(ROOT / 'configs' / 'cifar10' / 'vit_cifar10.py')
    cfg.model.backbone.arch.update(embed_dims=32, feedforward_channels=32)
    cfg.model.head.in_channels = 32
    cfg.dump(tmp_path / 'vit.py')
    checkpoint = random_checkpoint(tmp_path / 'vit.py', tmp_path / 'vit.pth')

    real = tool.Config.fromfile

    def small(path):
        found = real(path)
        if 'teacher' in found.model:
            teacher = dict(config=str(tmp_path / 'vit.py'), checkpoint=str(checkpoint))
            found.model.teacher = teacher
        return found

    monkeypatch.setattr(tool.Config, 'fromfile', small)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    base = tool.distiller_of('KL', 'cpu')
    found, seconds = tool.measure(tool.distiller_of('KL', 'cpu'), base, images, 2)
    assert found['memory'] == 1 and seconds > 0 and found['time'] > 0
    found, _ = tool.measure(tool.distiller_of('KL + manifold', 'cpu'), base, images, 1)
    assert 1 < found['memory'] < 3 and found['mib'] > 0
    # Of a student of its own kind KL alone is that student's.
    assert set(tool.OWN_KL) <= set(tool.ROWS) and tool.kl_of('SiT') == 'KL, slimmed'
    own, alone = (
        tool.distiller_of(row, 'cpu') for row in ('DeiT token, hard', 'KL, distilled ViT')
    )
    assert own.student.net.state_dict().keys() == alone.student.net.state_dict().keys()
    assert [type(head).__name__ for head in alone.student.heads] == ['LogitHead']


def test_early_features_beside_kl_of_their_own_pair(tool):
    row, base = (tool.distiller_of(name, 'cpu') for name in (tool.EARLY, tool.rival_of(tool.EARLY)))
    assert [type(h).__name__ for h in row.student.heads] == ['LogitHead', 'EarlyFeatureHead']
    assert [type(h).__name__ for h in base.student.heads] == ['LogitHead']
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    found, _ = tool.measure(row, base, images, 1)
    assert 1 < found['memory'] < 2
    assert tool.rival_of('SiT') == tool.kl_of('SiT')
