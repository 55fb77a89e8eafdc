"""Build file: puts configs and tools into the wheel, beside the package."""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CARRIED = ('configs', 'tools', 'model-index.yml')
"""What the wheel holds under ``mmdfkd/.mim``, where ``mim`` and ``mmdfkd::`` look for it."""


def read_version() -> str:
    """The version in ``mmdfkd/version.py``."""
    scope = {}
    exec((ROOT / 'mmdfkd' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


class BuildWithMim(build_py):
    """Copies configs and tools into the built package; the source tree stays as it is."""

    def run(self) -> None:
        """Build the modules, then copy."""
        target = Path(self.build_lib, 'mmdfkd')
        if not self.editable_mode and target.is_dir():
            # An earlier build may hold files that are gone from the tree.
            shutil.rmtree(target)
        super().run()
        if not self.editable_mode:
            for source, destination in self._carried():
                self.mkpath(os.path.dirname(destination))
                self.copy_file(source, destination)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """All files of the build, the copied ones with them."""
        outputs = super().get_outputs(include_bytecode)
        if not self.editable_mode:
            outputs += [destination for _, destination in self._carried()]
        return outputs

    def _carried(self) -> list[tuple[str, str]]:
        """Pairs of source and destination."""
        pairs = []
        for name in CARRIED:
            source = ROOT / name
            files = [source] if source.is_file() else sorted(source.rglob('*'))
            for file in files:
                if file.is_file() and '__pycache__' not in file.parts:
                    destination = Path(self.build_lib, 'mmdfkd', '.mim', file.relative_to(ROOT))
                    pairs.append((str(file), str(destination)))
        return pairs


readme = ROOT / 'README.md'

setup(
    name='mmdfkd',
    version=read_version(),
    description='Data-free knowledge distillation of Vision Transformers on OpenMMLab toolboxes',
    long_description=readme.read_text(encoding='utf-8') if readme.is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    keywords='knowledge distillation, data-free, vision transformer, object detection',
    packages=find_packages(include=('mmdfkd', 'mmdfkd.*')),
    include_package_data=True,
    python_requires='>=3.10',
    # The toolboxes are extras: two families share the import names, and a copy must never be put
    # over one that is there.
    install_requires=['numpy', 'torch>=2.0'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmpretrain>=1.3.6',
        ],
        'openmmlab': ['mmengine>=0.10.7', 'mmcv>=2.1.0', 'mmdet>=3.3.0', 'mmpretrain>=1.2.0'],
        'dev': ['pytest', 'pytest-xdist', 'ruff', 'scikit-learn', 'timm'],
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
