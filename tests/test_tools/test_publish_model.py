import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'model_converters' / 'publish_model.py'
publish = runpy.run_path(str(TOOL))['publish']


def _checkpoint(path, **weights):
    torch.save(
        dict(
            state_dict=weights,
            optimizer=dict(state={0: torch.zeros(9)}),
            meta=dict(iter=7, dataset_meta=dict(classes=('a', 'b'))),
        ),
        path,
    )
    return path


def test_only_weights_and_classes_are_left(tmp_path):
    weight = torch.randn(4, 3)
    source = _checkpoint(tmp_path / 'run.pth', weight=weight, steps=torch.tensor(70_000))
    publish(source, tmp_path / 'out.pth')
    found = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert set(found) == {'meta', 'state_dict'}
    assert found['meta'] == dict(dataset_meta=dict(classes=['a', 'b']))
    assert found['state_dict']['weight'].dtype == torch.float16
    assert torch.equal(found['state_dict']['weight'], weight.half())
    # 70,000 is no float16.
    assert found['state_dict']['steps'] == 70_000


def test_a_weight_too_large_for_half_precision_is_named(tmp_path):
    source = _checkpoint(tmp_path / 'run.pth', big=torch.tensor([1e6]))
    with pytest.raises(ValueError, match='big is not finite in float16'):
        publish(source, tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()
    publish(source, tmp_path / 'out.pth', torch.float32)


def test_command_line(tmp_path):
    source = _checkpoint(tmp_path / 'run.pth', weight=torch.ones(2))
    command = [sys.executable, str(TOOL), str(source), str(tmp_path / 'out.pth')]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert 'sha256' in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert second.returncode == 1
    assert 'give --overwrite' in second.stderr
