"""What can be said of synthetic images where there is no real one to compare them with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdfkd.adapters import Adapter, Targets
from mmdfkd.synthesis import SynthesisContext, frozen
from mmdfkd.synthesis.priors.attention_reading import patch_scores
from mmdfkd.synthesis.priors.parts import attention_layers

_THUMBNAIL = 16


@dataclass(frozen=True)
class Seen:
    """What was measured on each of some images; on the CPU.

    Attributes:
        votes: How surely the teacher sees each class, ``[n, classes]`` in [0, 1].
        divergence: ``KL(teacher || student)`` in nats, ``[n]``; None without a student.
        concentration: Of the teacher's attention, ``[n]`` in [0, 1]; None where none can be read.
        verified: Whether the verifier names the teacher's class, ``[n]`` of 0 and 1; None without.
        thumbnails: ``[n, 3, 16, 16]`` in [0, 1].
    """

    votes: Tensor
    divergence: Tensor | None
    concentration: Tensor | None
    verified: Tensor | None
    thumbnails: Tensor

    @staticmethod
    def together(parts: Sequence['Seen']) -> 'Seen':
        """Those of several batches as one."""
        joined = {}
        for field in fields(Seen):
            values = [getattr(part, field.name) for part in parts]
            joined[field.name] = None if values[0] is None else torch.cat(values)
        return Seen(**joined)


def class_attention(ctx: SynthesisContext) -> tuple[Tensor, tuple[int, int]] | None:
    """Where the class token looks in the teacher's last layer of attention over the whole image.

    Without a class token the patches' mean query stands for it.

    Args:
        ctx (SynthesisContext): With :func:`attention_taps` among its taps.

    Returns:
        tuple[Tensor, tuple[int, int]] | None: ``[B, heads, N]``, of sum 1 over the patches, and
            their grid; None where no attention can be read.
    """
    layers = attention_layers(ctx.teacher.net)
    if not layers:
        return None
    scores, grid = patch_scores(ctx, layers[-1], 'class' if layers[-1].class_row else 'mean')
    return scores.squeeze(2).softmax(-1), grid


def attention_taps(teacher: Adapter) -> tuple[str, ...]:
    """What :func:`class_attention` has to tap."""
    return tuple(layer.qkv for layer in attention_layers(teacher.net)[-1:])


def concentration(attention: Tensor) -> Tensor:
    """How few places attention goes to: ``1 - H(a) / log N``, the mean over heads.

    Args:
        attention (Tensor): ``[B, heads, N]``, of sum 1.

    Returns:
        Tensor: ``[B]``; 0 where it prefers nothing, 1 where it goes to a single patch.
    """
    places = attention.shape[-1]
    if places < 2:
        return attention.new_ones(len(attention))
    entropy = torch.special.entr(attention.double()).sum(-1)
    return (1 - entropy / math.log(places)).mean(1).float()


def divergence(ctx: SynthesisContext) -> Tensor:
    """``KL(teacher || student)`` of each image, in nats, ``[B]``.

    At a detector's proposals the mean over the rows, weighted by objectness.
    """
    log_p = ctx.teacher_response.logits.float().log_softmax(-1)
    log_q = ctx.student_response.logits.float().log_softmax(-1)
    return ctx.by_image((log_p.exp() * (log_p - log_q)).sum(-1))


def confidence_histogram(confidence: Tensor, bins: int = 10) -> list[int]:
    """How many values of ``[n]`` in [0, 1] are in each of ``bins`` even parts of [0, 1]."""
    place = (confidence * bins).long().clamp(0, bins - 1)
    return torch.bincount(place, minlength=bins).tolist()


def class_coverage(labels: Tensor, num_classes: int) -> float:
    """How many different classes there are, of those that an even draw would show.

    ``n`` even draws show ``C (1 - (1 - 1 / C)^n)`` of ``C`` classes on average, so that the figure
    does not depend on how many images were looked at.

    Args:
        labels (Tensor): ``[n]``.
        num_classes (int): ``C``.

    Returns:
        float: In [0, 1]; 0 without images.
    """
    if not len(labels):
        return 0.0
    even = num_classes * (1 - (1 - 1 / num_classes) ** len(labels))
    return min(1.0, len(labels.unique()) / even)


def near_duplicates(
    thumbnails: Tensor, tolerance: float = 0.2, least_contrast: float = 0.02
) -> Tensor:
    """Which images have another one that is almost the same.

    Two are, if the root mean square of their difference is at most ``tolerance`` of their mean
    contrast (0.2: a correlation of 0.98 and no difference in brightness). Relative to the contrast,
    since small pictures of noise are all grey, and still no copies of each other.

    Args:
        thumbnails (Tensor): ``[n, ...]`` in [0, 1].
        tolerance (float): Largest difference, relative to the contrast.
        least_contrast (float): Contrast that blank images are taken to have.

    Returns:
        Tensor: bool ``[n]``.
    """
    flat = thumbnails.flatten(1).double()
    apart = torch.cdist(flat, flat, compute_mode='donot_use_mm_for_euclid_dist')
    apart = apart / max(flat.shape[1], 1) ** 0.5
    contrast = flat.std(1, correction=0)
    allowed = tolerance * ((contrast[:, None] + contrast) / 2).clamp_min(least_contrast)
    alike = apart <= allowed
    alike.fill_diagonal_(False)
    return alike.any(1)


def thumbnails_of(images: Tensor, side: int = _THUMBNAIL) -> Tensor:
    """Small copies ``[n, 3, side, side]`` of ``[n, 3, H, W]``; each pixel the mean of its part."""
    return F.adaptive_avg_pool2d(images.float(), side)


@torch.no_grad()
def see(
    images: Tensor,
    teacher: Adapter,
    student: Adapter | None = None,
    verifier: Adapter | None = None,
    batch: int = 32,
) -> Seen:
    """Ask the networks about images, and leave them as they were.

    Args:
        images (Tensor): RGB ``[n, 3, H, W]``, uint8 or in [0, 1].
        teacher (Adapter): The teacher.
        student (Adapter, optional): The student.
        verifier (Adapter, optional): Another network of the same classes.
        batch (int): Images at once.
    """
    device = next(teacher.net.parameters()).device
    nets = [adapter.net for adapter in (teacher, student, verifier) if adapter is not None]
    parts = []
    with frozen(*nets):
        for part in images.split(batch):
            part = part.to(device)
            part = part.float() / 255 if part.dtype == torch.uint8 else part
            ctx = SynthesisContext(part, Targets(), teacher, student, taps=attention_taps(teacher))
            votes = teacher.class_votes(ctx.teacher_memory).float()
            attention = class_attention(ctx)
            differ = verified = None
            if student is not None:
                ctx.probe = teacher.propose(ctx.teacher_memory)
                differ = divergence(ctx).float().cpu()
            if verifier is not None:
                named = verifier.class_votes(verifier.encode(part)).argmax(1)
                verified = (named == votes.argmax(1)).float().cpu()
            parts.append(
                Seen(
                    votes.cpu(),
                    differ,
                    None if attention is None else concentration(attention[0]).cpu(),
                    verified,
                    thumbnails_of(part).cpu(),
                )
            )
    return Seen.together(parts)


def quality_of(
    new: Seen, old_divergence: Tensor | None = None, bins: int = 10
) -> dict[str, float | int | list[int] | None]:
    """The figures of some images.

    Args:
        new (Seen): Of the newest images, at least one.
        old_divergence (Tensor, optional): ``[m]``, of images that were new earlier.
        bins (int): Of the histogram.

    Returns:
        dict: ``images``, ``confidence`` (mean of the teacher's surest votes), ``confidence_low``
            and ``confidence_high`` (their 10th and 90th percentile), ``histogram``, ``classes``
            (how many different ones are named), ``coverage``, ``duplicates`` (share),
            ``concentration``, ``verified`` (share), ``divergence_new``, ``divergence_old`` and
            ``divergence_share`` (the median of the new images', of that of the older ones'); None
            where it was not measured.
    """
    confidence, labels = new.votes.max(1)
    low, high = torch.quantile(confidence.double(), torch.tensor([0.1, 0.9]).double()).tolist()
    return dict(
        images=len(labels),
        confidence=_mean(confidence),
        confidence_low=low,
        confidence_high=high,
        histogram=confidence_histogram(confidence, bins),
        classes=len(labels.unique()),
        coverage=class_coverage(labels, new.votes.shape[1]),
        duplicates=_mean(near_duplicates(new.thumbnails)),
        concentration=_mean(new.concentration),
        verified=_mean(new.verified),
        divergence_new=_mean(new.divergence),
        divergence_old=_mean(old_divergence),
        divergence_share=_share(new.divergence, old_divergence),
    )


def _mean(values: Tensor | None) -> float | None:
    return None if values is None or not len(values) else float(values.double().mean())


def _share(new: Tensor | None, old: Tensor | None) -> float | None:
    """Medians: one older image that is never learnt says nothing of the others."""
    if new is None or old is None or not len(old):
        return None
    new, old = (float(value.double().median()) for value in (new, old))
    return new / old if old > 0 else 1.0


def describe_quality(quality: Mapping, num_classes: int) -> str:
    """The figures of :func:`quality_of` in one line."""
    parts = [
        f'confidence {quality["confidence"]:.2f} ({quality["confidence_low"]:.2f} to '
        f'{quality["confidence_high"]:.2f}; histogram {" ".join(map(str, quality["histogram"]))})',
        f'{quality["classes"]} of {num_classes} classes in {quality["images"]} images '
        f'(coverage {quality["coverage"]:.2f})',
        f'{quality["duplicates"]:.0%} near-duplicates',
    ]
    if quality['concentration'] is not None:
        parts.append(f'attention concentration {quality["concentration"]:.2f}')
    if quality['verified'] is not None:
        parts.append(f'the verifier agrees on {quality["verified"]:.0%}')
    if quality['divergence_new'] is not None:
        old = quality['divergence_old']
        parts.append(
            f'KL(teacher || student) {quality["divergence_new"]:.3g}'
            + ('' if old is None else f', on older images {old:.3g}')
        )
    return ', '.join(parts)
