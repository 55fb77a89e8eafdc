"""Each case needs a process of its own: operators are declared once and for all."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / 'mmdfkd' / 'utils' / 'torchvision_ops.py'

# The file alone, so that `mmdfkd/__init__.py` has not called it before.
LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location('ops', {str(MODULE)!r})
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)
import torch
NMS = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
"""

HELPER_OF_AN_INTACT_TORCHVISION = """
import _struct
import torch


def _get_extension_path(name):
    # Stands for what loading the extension does; what is loaded is a harmless library.
    global library
    library = torch.library.Library('torchvision', 'DEF')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    return _struct.__file__
"""

HELPER_OF_A_BROKEN_TORCHVISION = """
def _get_extension_path(name):
    return __file__
"""


def run(code: str, tmp_path: Path, load: bool = True) -> str:
    result = subprocess.run(
        [sys.executable, '-c', (LOAD if load else '') + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{MODULE.parents[2]}'},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def fake_torchvision(tmp_path: Path, helper: str | None) -> None:
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text('raise AssertionError("torchvision was imported")')
    if helper is not None:
        (package / '_internally_replaced_utils.py').write_text(helper)


def test_toolboxes_import_after_mmdfkd(tmp_path):
    out = run(
        """
        import mmdfkd
        import torchvision, mmpretrain, mmdet.models
        from mmdfkd.utils.torchvision_ops import ensure_nms_schema
        from torchvision.extension import _has_ops
        import torch
        assert hasattr(torch.ops.torchvision, 'nms') and hasattr(torch.ops.torchvision, 'qnms')
        # Active exactly where torchvision has no operators of its own.
        assert ensure_nms_schema() is not _has_ops(), (ensure_nms_schema(), _has_ops())
        print(torchvision.ops.nms.__name__)
        """,
        tmp_path,
        load=False,
    )
    assert out.splitlines()[-1] == 'nms'


@pytest.mark.parametrize('helper', [None, HELPER_OF_A_BROKEN_TORCHVISION], ids=['no _C', 'broken'])
def test_schemas_are_declared_where_the_extension_is_absent(tmp_path, helper):
    fake_torchvision(tmp_path, helper)
    out = run(
        """
        assert not hasattr(torch.ops.torchvision, 'nms')
        assert ops.ensure_nms_schema() is True
        assert ops.ensure_nms_schema() is True and len(ops._libraries) == 1
        for name in ('nms', 'qnms'):
            print(getattr(torch.ops.torchvision, name).default._schema)
        """,
        tmp_path,
    )
    signature = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
    assert out.splitlines() == [f'torchvision::nms{signature}', f'torchvision::qnms{signature}']


def test_an_extension_that_loads_is_left_alone(tmp_path):
    fake_torchvision(tmp_path, HELPER_OF_AN_INTACT_TORCHVISION)
    run(
        """
        assert ops.ensure_nms_schema() is False
        assert not ops._libraries and 'torchvision' not in sys.modules
        assert hasattr(torch.ops.torchvision, 'nms')
        """,
        tmp_path,
    )


def test_what_is_imported_or_declared_already_is_left_alone(tmp_path):
    fake_torchvision(tmp_path, None)
    run(
        """
        import types
        sys.modules['torchvision'] = types.ModuleType('torchvision')
        assert ops.ensure_nms_schema() is False and not ops._libraries
        assert not hasattr(torch.ops.torchvision, 'nms')

        del sys.modules['torchvision']
        library = torch.library.Library('torchvision', 'DEF')
        library.define('nms' + NMS)
        assert ops.ensure_nms_schema() is False and not ops._libraries
        assert not hasattr(torch.ops.torchvision, 'qnms')
        """,
        tmp_path,
    )
