"""Which versions of the toolboxes this package is tested with, and a warning outside them.

Never an assertion: an untested pair usually works, and the user decides.
"""

import warnings
from collections.abc import Mapping
from importlib import metadata

TESTED = {
    'onedl-mmengine': ('0.10.12',),
    'onedl-mmcv': ('2.3.6',),
    'onedl-mmdetection': ('3.5.1',),
    'onedl-mmpretrain': ('1.3.6',),
    'mmengine': ('0.10.7',),
    'mmcv': ('2.1.0',),
    'mmdet': ('3.3.0',),
    'mmpretrain': ('1.2.0',),
}
"""Tested versions of each distribution; the two families share import names."""

VARIANTS = ('mmengine-lite', 'mmcv-lite', 'mmcv-full')
"""Further distributions of the original family, which install the same packages."""

ONEDL = tuple(name for name in TESTED if name.startswith('onedl-'))
OPENMMLAB = tuple(name for name in TESTED if name not in ONEDL)


def installed_toolboxes() -> dict[str, str]:
    """Versions of the toolbox distributions that are installed, by distribution name."""
    found = {}
    for name in (*TESTED, *VARIANTS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def untested_message(installed: Mapping[str, str]) -> str | None:
    """What is untested about a set of installed toolboxes, or None.

    Args:
        installed (Mapping[str, str]): Versions by distribution name.

    Returns:
        str | None: One message that names the untested distributions and the tested pairs.
    """
    parts = []
    originals = [name for name in (*OPENMMLAB, *VARIANTS) if name in installed]
    forks = [name for name in ONEDL if name in installed]
    if originals and forks:
        parts.append(
            f'{", ".join(forks)} and {", ".join(originals)} are installed together. They hold the '
            'same packages and overwrite each other: use a fresh environment with one family.'
        )
    untested = [
        f'{name} {version}'
        for name, version in installed.items()
        if version.split('+')[0] not in TESTED.get(name, ())
    ]
    if untested:
        parts.append(
            f'mmdfkd is not tested with {", ".join(untested)}. Tested: {_tested(ONEDL)}; '
            f'or {_tested(OPENMMLAB)}.'
        )
    return ' '.join(parts) or None


def warn_untested() -> None:
    """Warn once if the installed toolboxes are outside the tested pairs; silent on tested ones."""
    message = untested_message(installed_toolboxes())
    if message:
        warnings.warn(message, stacklevel=3)


def _tested(names: tuple[str, ...]) -> str:
    return ', '.join(f'{name} {" or ".join(TESTED[name])}' for name in names)
