"""Folders of images: what the filters hold back, what is told, and what a resumed run does."""

import copy
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
import toy
from synthesis_nets import classifier

from mmdfkd.registry import MODELS
from mmdfkd.synthesis.folder_filter import Candidate, FolderFilter
from mmdfkd.synthesis.image_files import image_files, is_cut, read_image
from mmdfkd.synthesis.near_duplicates import BITS, CosineFilter, HashFilter, difference_hash
from mmdfkd.synthesis.sources.folder import CHOICE, FolderSource
from mmdfkd.utils.data_audit import DataAudit

ITEMS = [dict(g=g) for g in range(12)]
COUNT = 14


def write(path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def pictures(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    images = (toy.images(count, seed=seed) * 255).round().to(torch.uint8)
    images = images.permute(0, 2, 3, 1).numpy()
    return np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_AREA) for i in images])


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Fourteen images in two folders, of several kinds, and what does not belong there."""
    folder = tmp_path_factory.mktemp('mine')
    for i, image in enumerate(pictures(COUNT)):
        write(folder / f'class{i % 2}' / f'{i:02d}.{("png", "bmp", "PPM")[i % 3].lower()}', image)
    (folder / 'annotations.json').write_text('{}')
    (folder / '.hidden.png').write_bytes(b'no')
    return folder


@pytest.fixture(scope='module')
def teacher():
    return classifier(0)


def prepared(root, teacher, folder=None, size=(16, 16), seed=0, **kwargs) -> FolderSource:
    kwargs.setdefault('filter', dict(duplicates=None))
    source = MODELS.build(dict(type='mmdfkd.FolderSource', root=str(root), **kwargs))
    source.folder = folder
    source.prepare(teacher, seed=seed, image_size=size, device='cpu')
    return source


def stored(root, size=(16, 16)) -> dict[str, np.ndarray]:
    return {name: read_image(root / name, size) for name in image_files(root)}


class TestFiles:
    def test_finds_images_at_any_depth(self, root):
        names = image_files(root)
        assert len(names) == COUNT and names == sorted(names)
        assert all(name.startswith(('class0/', 'class1/')) for name in names)
        with pytest.raises(FileNotFoundError, match='nowhere'):
            image_files(root / 'nowhere')

    @pytest.mark.parametrize('size', [(16, 16), (8, 12), (40, 20), (33, 47)])
    def test_scales_to_cover_and_cuts_the_middle(self, tmp_path, size):
        image = np.zeros((20, 60, 3), np.uint8)
        image[:, 20:40] = (200, 100, 50)
        write(tmp_path / 'a.png', image)
        got = read_image(tmp_path / 'a.png', size)
        assert got.shape == (*size, 3)
        # RGB; the middle of the file is in the middle.
        assert got[size[0] // 2, size[1] // 2].tolist() == [200, 100, 50]

    def test_a_grey_image_has_three_channels(self, tmp_path):
        cv2.imwrite(str(tmp_path / 'a.png'), np.full((5, 5), 77, np.uint8))
        assert (read_image(tmp_path / 'a.png', (4, 4)) == 77).all()


class TestDuplicates:
    def test_hash_is_blind_to_small_changes_only(self):
        images = pictures(12, 48)
        for image in images:
            noise = np.random.default_rng(0).normal(0, 2, image.shape)
            other = np.clip(image * 0.9 + 12 + noise, 0, 255).astype(np.uint8)
            other = cv2.resize(other, (40, 40), interpolation=cv2.INTER_AREA)
            assert (difference_hash(image) ^ difference_hash(other)).bit_count() <= BITS // 6
        far = [
            (difference_hash(a) ^ difference_hash(b)).bit_count()
            for i, a in enumerate(images)
            for b in images[:i]
        ]
        assert min(far) > BITS // 6

    @pytest.mark.parametrize('distance', [0, 1, 4, 30])
    def test_hash_filter_equals_comparing_all(self, distance):
        rng = np.random.default_rng(1)
        values = [int.from_bytes(rng.bytes(BITS // 8), 'big') for _ in range(20)]
        for value in values[:20]:
            for flips in (1, 3, 5, 29):
                bits = rng.choice(BITS, flips, replace=False)
                values.append(value ^ sum(1 << int(bit) for bit in bits))
        taken, fast = [], HashFilter(distance)
        for value in values:
            new = all((value ^ other).bit_count() > distance for other in taken)
            taken += [value] * new
            assert fast.take(value) == new

    def test_cosine_filter_equals_comparing_all(self):
        rng = np.random.default_rng(2)
        rows = rng.normal(0, 1, (150, 3)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        taken, fast = [], CosineFilter(0.95)
        for row in rows:
            new = all(float(row @ other) < 0.95 for other in taken)
            taken += [row] * new
            assert fast.take(row) == new
        assert 10 < len(taken) < 140


def looked(teacher, images, **settings) -> list[Candidate]:
    judge = FolderFilter(**settings)
    return judge.look(images, list(range(len(images))), teacher, torch.device('cpu'))


class TestFilter:
    def test_confidence_is_the_teachers(self, teacher):
        images = pictures(5)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        before = {k: v.clone() for k, v in teacher.net.state_dict().items()}
        teacher.net.train()
        found = looked(teacher, images)
        assert teacher.net.training
        assert all(torch.equal(v, before[k]) for k, v in teacher.net.state_dict().items())
        teacher.net.eval()
        with torch.no_grad():
            p = teacher.answer(teacher.encode(pixels)).logits.double().softmax(1)
        for one, row in zip(found, p, strict=True):
            assert one.label == int(row.argmax())
            assert one.confidence == pytest.approx(float(row.max()), abs=1e-5)
            assert one.score == pytest.approx(-float(row.max().log()), abs=1e-4)

    def test_attention_probe_is_the_formula(self, teacher):
        """In double precision, from queries and keys caught at the layers themselves."""
        images = pictures(4)
        deep = copy.deepcopy(teacher)
        found = looked(deep, images, rank_by='attention_probe', probe_weights=(0.05, 0.9))
        plain = looked(deep, images)
        # Of two blocks those at a third and at two thirds of the depth are both the first.
        caught = {}
        attention = deep.net.backbone.layers[0].attn
        handle = attention.qkv.register_forward_hook(
            lambda m, i, out: caught.__setitem__('qkv', out.double())
        )
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        deep.net.eval()
        with torch.no_grad():
            deep.encode(pixels)
        handle.remove()
        b, length, _ = caught['qkv'].shape
        q, k, _ = caught['qkv'].reshape(b, length, 3, 2, 12).permute(2, 0, 3, 1, 4)
        a = (q[:, 0, 0, None] @ k[:, 0].transpose(1, 2) / 12**0.5).softmax(-1)[:, 0, 1:]
        s = a.sum(1) / (a.norm(dim=1) * a.shape[1] ** 0.5)
        assert ((s >= a.shape[1] ** -0.5) & (s <= 1)).all()
        for one, other, even in zip(found, plain, s.tolist(), strict=True):
            assert one.score == pytest.approx(0.05 * 2 * even + 0.9 * other.score, abs=1e-4)

    def test_released_behaviour_is_plain_confidence(self, teacher):
        images = pictures(6)
        released = looked(teacher, images, rank_by='attention_probe', released=True)
        assert [c.score for c in released] == [c.score for c in looked(teacher, images)]

    def test_heads_are_chosen_or_averaged(self, teacher):
        images = pictures(3)
        settings = dict(rank_by='attention_probe', probe_weights=(1.0, 0.0))
        first, second, mean = (
            np.array([c.score for c in looked(teacher, images, probe_head=head, **settings)])
            for head in (0, 1, None)
        )
        np.testing.assert_allclose((first + second) / 2, mean, atol=1e-5)
        with pytest.raises(ValueError, match='2 heads'):
            looked(teacher, images, probe_head=2, **settings)

    def test_choice_is_ranked_and_counted(self):
        found = [
            Candidate(i, 0, confidence, -np.log(confidence), signature)
            for i, (confidence, signature) in enumerate(
                [(0.5, 0), (0.9, 1), (0.2, 2), (0.8, 0), (0.7, 1 << 60), (0.6, (1 << 90) + 5)]
            )
        ]
        chosen, counts = FolderFilter(min_confidence=0.4, distance=0, keep=3).choose(found)
        # The surest of the two that are alike stays.
        assert [c.number for c in chosen] == [1, 3, 4]
        assert counts == dict(unsure=1, duplicates=1, beyond_keep=1)
        chosen, counts = FolderFilter(distance=0, keep=0.4).choose(found)
        assert len(chosen) == 2 and counts['beyond_keep'] == 3
        chosen, counts = FolderFilter(duplicates=None).choose(found)
        assert len(chosen) == 6 and not any(counts.values())

    @pytest.mark.parametrize('duplicates', ['hash', 'embedding'])
    def test_near_duplicates_are_found(self, teacher, duplicates):
        images = pictures(4)
        # A teacher of random weights tells apart what a trained one would not.
        change = 2 if duplicates == 'hash' else 0
        shifted = np.clip(images[:2].astype(int) + change, 0, 255).astype(np.uint8)
        judge = FolderFilter(duplicates=duplicates, similarity=0.9999)
        every = np.concatenate([images, shifted])
        found = judge.look(every, list(range(6)), teacher, torch.device('cpu'))
        chosen, counts = judge.choose(found)
        assert counts['duplicates'] == 2
        assert sorted(c.number % 4 for c in chosen) == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ('settings', 'name'),
        [
            (dict(rank_by='beauty'), 'rank_by'),
            (dict(duplicates='eye'), 'duplicates'),
            (dict(min_confidence=2), 'min_confidence'),
            (dict(keep=0), 'keep'),
            (dict(keep=1.5), 'keep'),
            (dict(distance=-1), 'distance'),
            (dict(similarity=0), 'similarity'),
            (dict(released=True), 'released'),
        ],
    )
    def test_bad_arguments(self, settings, name):
        with pytest.raises(ValueError, match=f'FolderSource: {name} must'):
            FolderFilter(**settings)

    def test_a_teacher_without_attention(self, teacher):
        other = copy.deepcopy(teacher)
        other.net.backbone.layers = torch.nn.ModuleList()
        with pytest.raises(ValueError, match="rank_by='confidence' would do"):
            FolderFilter(rank_by='attention_probe')._probe_layers(other)


class TestSource:
    def test_draws_the_files_pixels(self, root, teacher):
        source = prepared(root, teacher, augment=None)
        state = torch.get_rng_state()
        images, targets = source.draw(ITEMS)
        assert torch.equal(state, torch.get_rng_state())
        assert images.shape == (12, 3, 16, 16) and images.dtype == torch.float32
        assert targets.labels is None and targets.boxes is None
        files = stored(root)
        for item, image in zip(ITEMS, images, strict=True):
            name = source.names[source.pick(item['g'])]
            want = torch.from_numpy(files[name]).permute(2, 0, 1).float() / 255
            torch.testing.assert_close(image, want)
        assert torch.equal(source.draw(ITEMS[4:6])[0], images[4:6])
        moved = prepared(root, teacher).draw(ITEMS)[0]
        assert not torch.equal(moved, images) and moved.min() >= 0 and moved.max() <= 1
        assert not torch.equal(prepared(root, teacher, augment=None, seed=1).draw(ITEMS)[0], images)

    def test_what_does_not_fit_into_memory_is_read_at_every_draw(self, root, teacher):
        small = prepared(root, teacher, augment=None, max_bytes=COUNT * 3 * 256 - 1)
        assert small.pool is None
        assert torch.equal(
            small.draw(ITEMS)[0], prepared(root, teacher, augment=None).draw(ITEMS)[0]
        )

    def test_classes_are_drawn_alike(self, root, teacher):
        source = prepared(root, teacher, augment=None)
        source.labels = np.array([0] * 12 + [3, 4])
        source._by_class = [np.flatnonzero(source.labels == c) for c in (0, 3, 4)]
        drawn = np.bincount([source.labels[source.pick(g)] for g in range(1500)], minlength=5)
        assert np.abs(drawn[[0, 3, 4]] / 1500 - 1 / 3).max() < 0.05
        source.balance = False
        drawn = np.bincount([source.pick(g) for g in range(1500)], minlength=COUNT)
        assert np.abs(drawn / 1500 - 1 / COUNT).max() < 0.03
        wanted = source.draw_for(ITEMS[:2], np.array([3, 4]))
        assert torch.equal(wanted, source.pool[[12, 13]].float() / 255)
        assert source.draw_for(ITEMS[:2], np.array([1, 2])).shape == (2, 3, 16, 16)

    def test_unreadable_files_are_named_skipped_and_counted(self, teacher, tmp_path, monkeypatch):
        from mmdfkd.synthesis.sources import folder as module

        told = []
        monkeypatch.setattr(module, 'print_log', lambda text, logger: told.append(text))
        for i, image in enumerate(pictures(3, seed=4)):
            write(tmp_path / 'mine' / f'{i}.png', image)
        (tmp_path / 'mine' / 'text.jpg').write_text('no image')
        (tmp_path / 'mine' / 'empty.png').write_bytes(b'')
        (tmp_path / 'mine' / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
        audit = DataAudit.install()
        source = prepared(tmp_path / 'mine', teacher, folder=tmp_path / 'run')
        assert len(source.names) == 3
        assert audit.images_read == 4, 'every file is opened once, the empty one not at all'
        assert '3 of 6 files cannot be read' in told[0] and 'gone.png (FileNotFound' in told[0]
        assert 'text.jpg (' in told[0] and 'empty.png (it is empty)' in told[0]
        assert '3 of 6 images' in told[1] and '3 unreadable' in told[1]
        choice = json.loads((tmp_path / 'run' / CHOICE).read_text())
        assert choice['counts']['unreadable'] == 3 and choice['counts']['chosen'] == 3
        assert [name for name, _ in choice['unreadable']] == ['empty.png', 'gone.png', 'text.jpg']
        # A resumed run reads the chosen ones only.
        audit.images_read = 0
        again = prepared(tmp_path / 'mine', teacher, folder=tmp_path / 'run')
        assert audit.images_read == 3
        assert torch.equal(again.draw(ITEMS)[0], source.draw(ITEMS)[0])

    @pytest.mark.parametrize('suffix', ['jpg', 'png'])
    def test_a_cut_file_is_unreadable(self, teacher, tmp_path, monkeypatch, suffix):
        """OpenCV gives such a JPEG with grey in the place of the rest."""
        from mmdfkd.synthesis.sources import folder as module

        told = []
        monkeypatch.setattr(module, 'print_log', lambda text, logger: told.append(text))
        for i, image in enumerate(pictures(3, size=64)):
            write(tmp_path / f'{i}.{suffix}', image)
        whole = (tmp_path / f'1.{suffix}').read_bytes()
        (tmp_path / f'1.{suffix}').write_bytes(whole[: len(whole) * 2 // 3])
        # What a camera appends does no harm.
        with (tmp_path / f'2.{suffix}').open('ab') as file:
            file.write(b'more')
        source = prepared(tmp_path, teacher)
        assert sorted(source.names) == [f'0.{suffix}', f'2.{suffix}']
        assert f'1 of 3 files cannot be read and are skipped: 1.{suffix} (its end' in told[0]

    def test_the_end_of_a_thumbnail_is_none(self):
        """Nor is that of the segment which it lies in."""
        _, pixels = cv2.imencode('.jpg', pictures(1, size=64)[0])
        pixels = pixels.tobytes()
        segment = b'\xff\xe1' + (2 + len(pixels)).to_bytes(2, 'big') + pixels
        whole = pixels[:2] + segment + b'\xff' + pixels[2:]
        assert cv2.imdecode(np.frombuffer(whole, np.uint8), 1).shape == (64, 64, 3)
        assert not is_cut(whole)
        for end in (3, 10, len(segment), len(segment) + 4, len(whole) - 40, len(whole) - 2):
            assert is_cut(whole[:end]), end

    def test_no_image_passes(self, root, teacher, tmp_path):
        with pytest.raises(ValueError, match=r'of 14 files 0 are unreadable, in 14 the teacher'):
            prepared(root, teacher, filter=dict(min_confidence=1.0))
        (tmp_path / 'bad').mkdir()
        with pytest.raises(ValueError, match='holds no image'):
            prepared(tmp_path / 'bad', teacher)
        (tmp_path / 'bad' / 'a.png').write_bytes(b'x')
        with pytest.raises(ValueError, match='of 1 files 1 are unreadable'):
            prepared(tmp_path / 'bad', teacher)

    def test_the_choice_is_made_once(self, root, teacher, tmp_path, monkeypatch):
        source = prepared(root, teacher, folder=tmp_path, filter=dict(keep=6))
        looks = []
        plain = FolderFilter.look
        monkeypatch.setattr(FolderFilter, 'look', lambda *a: looks.append(1) or plain(*a))
        again = MODELS.build(dict(type='mmdfkd.FolderSource', root=str(root), filter=dict(keep=6)))
        # State before it is prepared, as well as after.
        again.load_state_dict(source.state_dict())
        again.folder = tmp_path
        again.prepare(teacher, seed=0, image_size=(16, 16), device='cpu')
        again.load_state_dict(source.state_dict())
        assert not looks and again.names == source.names and len(again.names) == 6
        assert torch.equal(again.draw(ITEMS)[0], source.draw(ITEMS)[0])
        # Another filter, another teacher and another size are other choices.
        for other in (
            dict(filter=dict(keep=5)),
            dict(filter=dict(keep=6), size=(8, 8)),
            dict(filter=dict(keep=6), teacher=classifier(1)),
        ):
            looks.clear()
            prepared(root, **{'teacher': teacher, 'folder': tmp_path, **other})
            assert looks, other
        (tmp_path / CHOICE).write_text('{')
        assert prepared(root, teacher, tmp_path, filter=dict(keep=6)).names == source.names

    def test_another_choice_than_the_checkpoints_is_refused(self, root, teacher, tmp_path):
        source = prepared(root, teacher, filter=dict(keep=6))
        other = prepared(root, teacher, filter=dict(keep=5))
        with pytest.raises(ValueError, match='not those of the checkpoint'):
            other.load_state_dict(source.state_dict())

    @pytest.mark.parametrize('max_bytes', [2 << 30, 0])
    def test_a_changed_file_of_equal_size_is_refused(self, root, teacher, tmp_path, max_bytes):
        """In a resumed run, in the folder and in a copy of it that has other times."""
        settings = dict(filter=dict(duplicates=None), max_bytes=max_bytes)
        mine, run = tmp_path / 'mine', tmp_path / 'run'
        shutil.copytree(root, mine)
        source = prepared(mine, teacher, folder=run, **settings)
        copied = tmp_path / 'copied'
        shutil.copytree(mine, copied, copy_function=shutil.copyfile)
        again = prepared(copied, teacher, folder=run, **settings)
        again.load_state_dict(source.state_dict())
        assert torch.equal(again.draw(ITEMS)[0], source.draw(ITEMS)[0])
        # One channel of one pixel.
        changed = copied / next(name for name in source.names if name.endswith('.ppm'))
        content = bytearray(changed.read_bytes())
        content[-1] ^= 255
        changed.write_bytes(bytes(content))
        with pytest.raises(ValueError, match='ppm is not the file that was chosen'):
            late = prepared(copied, teacher, folder=run, **settings)
            late.draw([dict(g=g) for g in range(200)])
        # Without the run's folder the choice is made again, and the checkpoint tells.
        other = prepared(copied, teacher, **settings)
        with pytest.raises(ValueError, match='not those of the checkpoint'):
            other.load_state_dict(source.state_dict())

    def test_a_checkpoint_that_is_older_than_the_contents(self, root, teacher):
        source = prepared(root, teacher)
        source.set_extra_state(dict(choice=source.get_extra_state()['choice']))
        with pytest.raises(ValueError, match='not those of the checkpoint'):
            source.set_extra_state(dict(choice='another'))

    def test_two_processes_choose_as_one(self, root, teacher, monkeypatch):
        from mmdfkd.synthesis.sources import folder as module

        alone = prepared(root, teacher, filter=dict(keep=7))
        parts = []
        for rank in (0, 1):
            monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, 2))
            monkeypatch.setattr(
                module, 'all_gather_object', lambda part: parts.append(part) or list(parts)
            )
            last = prepared(root, teacher, filter=dict(keep=7))
        assert [len(part[0]) for part in parts] == [7, 7]
        assert last.names == alone.names
        assert torch.equal(last.draw(ITEMS)[0], alone.draw(ITEMS)[0])


def test_a_run_must_not_call_itself_data_free(root):
    from types import SimpleNamespace

    from mmdfkd.engine import DistillHook

    folder = dict(type='mmdfkd.FolderSource', root=str(root))
    pool = dict(type='mmdfkd.PooledSource', renderer=dict(type='mmdfkd.NoiseRenderer'), pool_size=1)
    mixed = MODELS.build(dict(type='mmdfkd.MixtureSource', sources=[pool, folder]))
    for source in (MODELS.build(folder), mixed):
        with pytest.raises(ValueError, match='FolderSource trains on image files.*data_free=False'):
            DistillHook._check_source(SimpleNamespace(data_free=True, source=source))
        DistillHook._check_source(SimpleNamespace(data_free=False, source=source))
    DistillHook._check_source(SimpleNamespace(data_free=True, source=MODELS.build(pool)))


def test_a_whole_run_counts_what_it_reads(tmp_path):
    """A detector on the images of a COCO set; the report's figures say so."""
    cfg = toy.run_config(tmp_path, model_data_free=False)
    cfg['model']['source'] = dict(
        type='mmdfkd.FolderSource', root=str(tmp_path / 'data'), filter=dict(keep=4)
    )
    del cfg['train_dataloader']['dataset']['renderer']
    cfg['train_cfg'] = dict(cfg['train_cfg'], max_iters=2)
    toy.runner_of(cfg).train()
    facts = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert facts['data_free'] is False and facts['train_images_read'] == 6
    choice = json.loads((tmp_path / 'run' / 'synthetic' / CHOICE).read_text())
    assert choice['counts']['files'] == 6 and len(choice['chosen']) == 4
