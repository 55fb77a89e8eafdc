import warnings

import pytest

from mmdfkd.utils import compatibility
from mmdfkd.utils.compatibility import ONEDL, OPENMMLAB, TESTED, untested_message, warn_untested

TESTED_ONEDL = {name: TESTED[name][0] for name in ONEDL}
TESTED_ORIGINAL = {name: TESTED[name][0] for name in OPENMMLAB}


@pytest.mark.parametrize(
    'installed',
    [
        TESTED_ONEDL,
        TESTED_ORIGINAL,
        {},
        {'mmengine': '0.10.7'},
        {**TESTED_ORIGINAL, 'mmcv': '2.1.0+cpu'},
    ],
    ids=['onedl', 'original', 'nothing', 'a part', 'local version'],
)
def test_silent_on_tested_versions(installed):
    assert untested_message(installed) is None


def test_names_the_version_and_the_tested_pairs():
    message = untested_message({**TESTED_ONEDL, 'onedl-mmcv': '9.9.9'})
    assert 'onedl-mmcv 9.9.9' in message
    for name, versions in TESTED.items():
        assert f'{name} {versions[0]}' in message
    assert 'together' not in message


@pytest.mark.parametrize('stray', ['mmcv', 'mmcv-lite', 'mmdet'])
def test_two_families_in_one_environment(stray):
    message = untested_message({**TESTED_ONEDL, stray: '2.1.0'})
    assert 'together' in message and stray in message


def test_a_variant_is_untested():
    assert 'mmcv-full 1.7.2' in untested_message({'mmcv-full': '1.7.2'})


def test_warns_once_and_never_raises(monkeypatch):
    monkeypatch.setattr(compatibility, 'installed_toolboxes', lambda: {'mmcv': '1.0.0'})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        warn_untested()
    assert len(caught) == 1 and 'mmcv 1.0.0' in str(caught[0].message)
    monkeypatch.setattr(compatibility, 'installed_toolboxes', lambda: TESTED_ONEDL)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warn_untested()


def test_finds_what_is_installed():
    installed = compatibility.installed_toolboxes()
    assert installed and set(installed) <= {*TESTED, *compatibility.VARIANTS}
