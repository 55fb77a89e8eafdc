"""Every image that is opened is counted, whatever reads it and in whichever process."""

import io
import os
import sys
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mmdfkd.datasets.digits import load_handwriting
from mmdfkd.utils.data_audit import DataAudit


@pytest.fixture
def audit():
    return DataAudit.install()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    pixels = np.zeros((4, 4, 3), np.uint8)
    for name in ('a.png', 'b.jpg', 'c.JPEG', 'd.bmp'):
        Image.fromarray(pixels).save(folder / name)
    np.save(folder / 'e.npy', pixels)
    np.savez(folder / 'f.npz', pixels)
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.mark.parametrize('name', ['a.png', 'b.jpg', 'c.JPEG', 'd.bmp'])
@pytest.mark.parametrize(
    'read',
    [
        lambda path: mmcv.imread(str(path)),
        lambda path: LoadImageFromFile()(dict(img_path=str(path))),
        lambda path: cv2.imread(str(path)),
        lambda path: np.asarray(Image.open(path)),
        lambda path: Path(path).read_bytes(),
        lambda path: io.FileIO(path).read(),
        lambda path: os.close(os.open(path, os.O_RDONLY)),
        lambda path: open(os.fsencode(path), 'rb').close(),
    ],
    ids=['mmcv', 'pipeline', 'cv2', 'PIL', 'pathlib', 'FileIO', 'os.open', 'bytes'],
)
def test_each_reader_counts_once(audit, files, read, name):
    assert audit.images_read == 0
    read(files / name)
    assert audit.images_read == 1


def test_arrays_count(audit, files):
    np.load(files / 'e.npy')
    assert np.load(files / 'f.npz')['arr_0'].shape == (4, 4, 3)
    assert audit.images_read == 2


def test_several_in_one_file(audit, files):
    cv2.imreadmulti(str(files / 'a.png'))
    assert audit.images_read == 1


def test_the_embedded_digits_count(audit):
    load_handwriting()
    assert audit.images_read > 0


def test_what_is_no_reading_of_an_image_does_not_count(audit, files, tmp_path):
    (files / 'notes.txt').read_text()
    Image.new('RGB', (2, 2)).save(tmp_path / 'new.png')
    cv2.imwrite(str(tmp_path / 'other.png'), np.zeros((2, 2, 3), np.uint8))
    np.save(tmp_path / 'new.npy', np.zeros(2))
    os.close(os.open(tmp_path / 'raw.png', os.O_WRONLY | os.O_CREAT))
    os.stat(files / 'a.png')
    assert audit.images_read == 0


def _put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    Image.new('RGB', (2, 2)).save(folder / 'x.png')
    return folder / 'x.png'


def test_icons_of_libraries_do_not_count_but_their_datasets_do(audit, tmp_path):
    icon = _put(tmp_path / 'site-packages' / 'plots' / 'mpl-data' / 'images')
    Image.open(icon).load()
    cv2.imread(str(icon))
    assert audit.images_read == 0
    Image.open(_put(tmp_path / 'site-packages' / 'sklearn' / 'datasets' / 'images')).load()
    Image.open(_put(tmp_path / 'site-packages' / 'mmdfkd' / 'data' / 'digits')).load()
    assert audit.images_read == 2


def test_nothing_counts_while_paused(audit, files):
    audit.pause()
    Image.open(files / 'a.png').load()
    cv2.imread(str(files / 'a.png'))
    audit.pause(False)
    assert audit.images_read == 0
    Image.open(files / 'a.png').load()
    assert audit.images_read == 1


def test_installing_again_starts_from_zero_and_counts_once(files):
    DataAudit.install()
    audit = DataAudit.install()
    assert DataAudit.install_once() is audit
    Image.open(files / 'a.png').load()
    assert audit.images_read == 1
    assert DataAudit.install_once().images_read == 1
    assert DataAudit.install().images_read == 0


class Images(Dataset):
    """Reads a file at every access."""

    def __init__(self, path):
        self.path = str(path)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return int(mmcv.imread(self.path).sum())


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='workers are forked')
def test_forked_workers_count(audit, files):
    loader = DataLoader(
        Images(files / 'a.png'), num_workers=2, batch_size=2, multiprocessing_context='fork'
    )
    assert len(list(loader)) == 3
    assert audit.images_read == 6


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='workers are forked')
def test_workers_keep_to_the_side_they_were_forked_on(audit, files):
    """Those of training count also while validation runs, and those of validation never."""
    settings = dict(num_workers=1, multiprocessing_context='fork', persistent_workers=True)
    train, val = (DataLoader(Images(files / 'a.png'), **settings) for _ in range(2))
    list(train)
    assert audit.images_read == 6
    audit.pause()
    list(val)
    assert audit.images_read == 6
    list(train)
    audit.pause(False)
    assert audit.images_read == 12
    list(val)
    assert audit.images_read == 12


def test_annotation_files_are_noted(audit, tmp_path):
    path = tmp_path / 'annotations.json'
    path.write_text('{}')
    path.read_text()
    assert audit.annotations == [str(path)]
    assert audit.images_read == 0
