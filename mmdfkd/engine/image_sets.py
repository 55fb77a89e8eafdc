"""Sets of synthetic images on disk, in the forms that every pipeline of the toolboxes reads."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdfkd.adapters import Adapter
from mmdfkd.visualization import save_image

LABELS = 'labels.json'
INSTANCES = 'annotations/instances.json'
#: Boxes with a shorter side are no objects to train on, in pixels.
_LEAST_SIDE = 1.0
_NUMBERED = re.compile(r'\d{6,}\.png')


def write_text_at_once(path: Path, text: str) -> None:
    """Write a file in one go: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def class_folders(names: Sequence[str]) -> list[str]:
    """A folder's name for each class, whose alphabetical order is that of the classes.

    mmpretrain numbers the classes of an image folder in this order. The names themselves where they
    are in order and can be names of folders, else behind their number.
    """
    safe = [''.join(c if c.isalnum() or c in ' -_.' else '_' for c in name) for name in names]
    plain = all(a == b and a.strip(' .') == a != '' for a, b in zip(safe, names, strict=True))
    if plain and sorted(set(safe)) == safe:
        return safe
    digits = len(str(len(names) - 1))
    return [f'{i:0{digits}d}_{name.strip(" .")}' for i, name in enumerate(safe)]


class ImageSet(ABC):
    """A set under construction.

    Args:
        out (Path): Its folder.
        names (Sequence[str]): Class names.
    """

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        self.out = out
        self.names = list(names)

    @abstractmethod
    def open(self) -> None:
        """Make the folders."""

    @abstractmethod
    def add(self, first: int, images: Tensor, teacher: Adapter) -> list[dict]:
        """Write images with the teacher's answers.

        Args:
            first (int): Number of the first.
            images (Tensor): RGB, uint8, ``[n, 3, H, W]`` on the CPU.
            teacher (Adapter): Evaluating, without gradient.

        Returns:
            list[dict]: A record each, for :meth:`close`; plain values.
        """

    @abstractmethod
    def close(self, records: Sequence[Mapping], info: Mapping) -> None:
        """Write what is said of all images together."""

    def drop_others(self, records: Sequence[Mapping]) -> None:
        """Delete images of the set's that no record names.

        A call that is killed leaves some behind its last record, and where they are made again they
        may be of another class.

        Args:
            records (Sequence[Mapping]): Of all images.
        """
        named = {self._path(record) for record in records}
        for folder in self._folders():
            for path in folder.glob('*.png'):
                if _NUMBERED.fullmatch(path.name) and path not in named:
                    path.unlink()

    @abstractmethod
    def _folders(self) -> list[Path]:
        """Where the images lie."""

    @abstractmethod
    def _path(self, record: Mapping) -> Path:
        """The file that a record is about."""

    @staticmethod
    def _encoded(images: Tensor, teacher: Adapter):
        device = next(teacher.net.parameters()).device
        return teacher.encode(images.to(device).float() / 255)

    def _save(self, name: str, image: Tensor) -> None:
        save_image(self.out / name, image.permute(1, 2, 0).contiguous().numpy())


class ClassFolders(ImageSet):
    """``<class>/<index>.png`` by the teacher's first class; its soft answers in ``labels.json``.

    Args:
        out (Path): Its folder.
        names (Sequence[str]): Class names.
        topk (int): How many classes of an answer are kept.
    """

    def __init__(self, out: Path, names: Sequence[str], topk: int = 5) -> None:
        super().__init__(out, names)
        self.topk = min(topk, len(self.names))
        self.folders = class_folders(self.names)

    def open(self) -> None:
        """Of all classes: a class without an image has its number, too."""
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)

    def _folders(self) -> list[Path]:
        return [self.out / folder for folder in self.folders]

    def _path(self, record: Mapping) -> Path:
        return self.out / record['file']

    def add(self, first: int, images: Tensor, teacher: Adapter) -> list[dict]:
        """Files and answers."""
        votes = teacher.answer(self._encoded(images, teacher), None).logits.float().softmax(-1)
        best, labels = (part.cpu().tolist() for part in votes.topk(self.topk))
        records = []
        for index, image in enumerate(images):
            name = f'{self.folders[labels[index][0]]}/{first + index:06d}.png'
            self._save(name, image)
            shares = [round(value, 6) for value in best[index]]
            records.append(dict(file=name, labels=labels[index], probabilities=shares))
        return records

    def close(self, records: Sequence[Mapping], info: Mapping) -> None:
        """``labels.json``."""
        answers = {
            record['file']: dict(labels=record['labels'], probabilities=record['probabilities'])
            for record in records
        }
        content = dict(info=dict(info), classes=self.names, folders=self.folders, images=answers)
        write_text_at_once(self.out / LABELS, json.dumps(content) + '\n')


class CocoSet(ImageSet):
    """``images/<index>.png``, and the teacher's detections in ``annotations/instances.json``.

    Args:
        out (Path): Its folder.
        names (Sequence[str]): Class names.
        threshold (float): Least score of a detection that becomes an object.
    """

    def __init__(self, out: Path, names: Sequence[str], threshold: float = 0.3) -> None:
        super().__init__(out, names)
        self.threshold = threshold

    def open(self) -> None:
        """One folder for all images."""
        (self.out / 'images').mkdir(parents=True, exist_ok=True)

    def _folders(self) -> list[Path]:
        return [self.out / 'images']

    def _path(self, record: Mapping) -> Path:
        return self.out / 'images' / record['file']

    def add(self, first: int, images: Tensor, teacher: Adapter) -> list[dict]:
        """Files and detections."""
        records = []
        found = teacher.detect(self._encoded(images, teacher))
        for index, (image, seen) in enumerate(zip(images, found, strict=True)):
            name = f'{first + index:06d}.png'
            self._save(f'images/{name}', image)
            boxes = seen.bboxes.float().cpu()
            sizes = boxes[:, 2:] - boxes[:, :2]
            keep = (seen.scores.cpu() >= self.threshold) & (sizes.amin(1) >= _LEAST_SIDE)
            objects = zip(
                torch.cat([boxes[:, :2], sizes], 1)[keep].tolist(),
                seen.labels.cpu()[keep].tolist(),
                seen.scores.float().cpu()[keep].tolist(),
                strict=True,
            )
            records.append(
                dict(
                    file=name,
                    size=[int(side) for side in image.shape[-2:]],
                    objects=[
                        dict(bbox=[round(v, 2) for v in box], label=label, score=round(score, 4))
                        for box, label, score in objects
                    ],
                )
            )
        return records

    def close(self, records: Sequence[Mapping], info: Mapping) -> None:
        """The COCO file; images without an object are in it, too."""
        annotations = []
        for image, record in enumerate(records):
            for one in record['objects']:
                width, height = one['bbox'][2:]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image,
                        category_id=one['label'] + 1,
                        bbox=one['bbox'],
                        area=round(width * height, 2),
                        iscrowd=0,
                        score=one['score'],
                    )
                )
        content = dict(
            info=dict(info),
            images=[
                dict(id=i, file_name=r['file'], height=r['size'][0], width=r['size'][1])
                for i, r in enumerate(records)
            ],
            annotations=annotations,
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(self.names)],
        )
        write_text_at_once(self.out / INSTANCES, json.dumps(content) + '\n')
