"""Lets a torchvision whose compiled operators cannot be loaded be imported all the same.

A CPU build of torch beside a torchvision built for CUDA is a common pair: an index that serves one
of them as a plain wheel gives it. ``import torchvision`` then fails with ``operator
torchvision::nms does not exist``, because torchvision registers meta kernels for operators that its
unloadable extension should have declared. Declaring the two schemas is enough; the operators
themselves stay absent, which nothing here needs, since the toolboxes use mmcv's own NMS.
"""

import importlib.machinery
import importlib.util
import os
import sys

NMS_SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
"""Schema of both operators, from torchvision's ``csrc/ops/nms.cpp``."""

OPERATORS = ('nms', 'qnms')

# A Library undeclares its operators when it is collected, so it lives as long as the process.
_libraries = []


def ensure_nms_schema() -> bool:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` where torchvision's own are absent.

    To be called before torchvision is imported. Nothing is done where torch or torchvision is not
    installed, where torchvision is imported already, and where its extension loads.

    Returns:
        bool: True if the schemas stand in for torchvision's own, by this call or by an earlier one.
    """
    if _libraries:
        return True
    if 'torchvision' in sys.modules or importlib.util.find_spec('torch') is None:
        return False
    spec = importlib.util.find_spec('torchvision')
    if spec is None or not spec.submodule_search_locations:
        return False

    import torch

    if _declared(torch) or _extension_loads(torch, spec.submodule_search_locations[0]):
        return False
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    library = torch.library.Library('torchvision', 'DEF')
    for name in missing:
        library.define(name + NMS_SCHEMA)
    _libraries.append(library)
    return True


def _declared(torch) -> bool:
    return hasattr(torch.ops.torchvision, 'nms')


def _extension_loads(torch, package_dir: str) -> bool:
    """Whether torchvision's ``_C`` can be loaded, the way ``torchvision.extension`` does it.

    A second load by torchvision itself is a no-op: the dynamic loader returns the library that is
    there.
    """
    try:
        torch.ops.load_library(_extension_path(package_dir))
    except (ImportError, OSError):
        return False
    return _declared(torch)


def _extension_path(package_dir: str) -> str:
    """Path of ``_C``, from torchvision's own helper, which also prepares DLL folders on Windows.

    The helper's file is run alone: importing it by name would import all of torchvision.

    Raises:
        ImportError: If there is no such extension.
    """
    helper = os.path.join(package_dir, '_internally_replaced_utils.py')
    if os.path.isfile(helper):
        spec = importlib.util.spec_from_file_location('_mmdfkd_torchvision_helper', helper)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if hasattr(module, '_get_extension_path'):
            return module._get_extension_path('_C')
    finder = importlib.machinery.FileFinder(
        package_dir,
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    )
    found = finder.find_spec('_C')
    if found is None:
        raise ImportError(f'torchvision has no compiled extension in {package_dir}')
    return found.origin
