"""A teacher's answers, written once and replayed without the teacher."""

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from mmdfkd.adapters.observation import Memory, Observation, Response
from mmdfkd.losses import SparseLabels, dense_labels, top_k_labels
from mmdfkd.utils.checkpoint import read_checkpoint, save_tensors

# Below what a half can hold; its logarithm is finite.
_LEAST = 1e-30


def checksums(images: Tensor) -> list[int]:
    """Of each image ``[B, 3, H, W]`` in [0, 1], in whole grey levels."""
    pixels = (images.detach().float().cpu() * 255).round().to(torch.uint8)
    return [crc32(image.contiguous().numpy()) for image in pixels]


def answered(images: Tensor, logits: Tensor) -> Observation:
    """What a teacher that was not run says: its logits ``[B, C]``, and nothing else."""
    size = (images.shape[-2], images.shape[-1])
    return Observation(Memory(feats=(), image_size=size), response=Response(logits=logits))


class StoredLabels:
    """The ``K`` largest probabilities of a classifier for each sample of a run (TinyViT).

    Wu et al., ECCV 2022; papers.md Part 3.5. The images are not stored: sample ``g`` is made anew
    from ``(seed, g)``, augmentation included, and a checksum tells whether it is the same.

    Args:
        seed (int): The run's.
        num_classes (int): Of the teacher.
    """

    def __init__(self, seed: int, num_classes: int) -> None:
        self.seed = seed
        self.num_classes = num_classes
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    def add(self, images: Tensor, logits: Tensor, k: int) -> None:
        """Append the answers ``[B, C]`` to the next ``B`` samples."""
        found = top_k_labels(logits, min(k, self.num_classes))
        small = torch.int16 if self.num_classes <= 1 << 15 else torch.int32
        self._parts.append(
            (
                found.classes.to(small).cpu(),
                found.probabilities.to(torch.float16).cpu(),
                torch.tensor(checksums(images), dtype=torch.int64),
            )
        )

    def save(self, path: str | Path) -> None:
        """Write them; the file appears whole or not at all."""
        classes, probabilities, sums = (torch.cat(t) for t in zip(*self._parts, strict=True))
        save_tensors(
            dict(classes=classes, probabilities=probabilities, checksums=sums),
            path,
            dict(stored_labels=1, seed=self.seed, num_classes=self.num_classes),
        )

    @classmethod
    def read(cls, path: str | Path) -> 'StoredLabels':
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        content = read_checkpoint(path)
        meta, tensors = content.get('meta') or {}, content.get('state_dict') or {}
        if 'stored_labels' not in meta or set(tensors) != {'classes', 'probabilities', 'checksums'}:
            raise ValueError(f'{path} holds no stored labels: tools/store_labels.py writes them.')
        labels = cls(int(meta['seed']), int(meta['num_classes']))
        names = ('classes', 'probabilities', 'checksums')
        labels._parts = [tuple(tensors[name] for name in names)]
        return labels

    def check_count(self, wanted: int) -> None:
        """See whether there are labels for all samples of a run.

        Args:
            wanted (int): The run's samples: those of all its steps.

        Raises:
            ValueError: If there are fewer labels.
        """
        if len(self) < wanted:
            raise ValueError(
                f'There are stored labels for {len(self)} samples, and the run wants {wanted}: '
                f'store more (tools/store_labels.py with --num {wanted}), or train for fewer steps.'
            )

    def observe(self, images: Tensor, serials: Sequence[int]) -> Observation:
        """What the teacher said about these samples.

        Its logits are the logarithm of the stored distribution: what was not kept is spread evenly
        over the other classes.

        Args:
            images (Tensor): RGB in [0, 1], ``[B, 3, H, W]``.
            serials (Sequence[int]): The global index ``g`` of each.

        Raises:
            ValueError: If there is no label for a sample, or its image is another one.
        """
        classes, probabilities, sums = self._parts[0]
        last = max(serials)
        if last >= len(classes):
            raise ValueError(
                f'There are stored labels for {len(classes)} samples, and the run wants sample '
                f'{last}: store more, or train for fewer steps.'
            )
        for g, found in zip(serials, checksums(images), strict=True):
            if found != int(sums[g]):
                raise ValueError(
                    f'Sample {g} is another image than the one that its label was stored for. '
                    'Seed, dataset, pipeline, source and image size must be those of the config '
                    'that the labels were stored with.'
                )
        rows = torch.as_tensor(list(serials))
        kept = SparseLabels(classes[rows].long(), probabilities[rows].float())
        logits = dense_labels(kept, self.num_classes).clamp_min(_LEAST).log().to(images.device)
        return answered(images, logits)
