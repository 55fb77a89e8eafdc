"""An exported student needs ``mmdfkd.models`` and nothing later."""

import subprocess
import sys

LATER = ('datasets', 'adapters', 'inheritance', 'heads', 'synthesis', 'distillers', 'engine')


def test_models_bring_in_no_later_room():
    code = (
        'import sys, mmdfkd.models\n'
        'from mmengine.registry import MODELS\n'
        # What a config says: the registry opens no room beyond the one that has the name.
        "MODELS.build(dict(type='mmdfkd.SimpleFPN', in_channels=8))\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('mmdfkd', 'mmpretrain')))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.strip().splitlines()[-1].split()
    assert 'mmdfkd.models' in loaded
    assert 'mmpretrain' not in loaded
    late = [m for m in loaded if m.startswith(tuple(f'mmdfkd.{room}' for room in LATER))]
    assert not late
