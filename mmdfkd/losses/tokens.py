"""Tokens of two networks, brought to one list of places."""

from torch import Tensor


def patch_tokens(tokens: Tensor, prefix_tokens: int, who: str = 'network') -> Tensor:
    """Tokens without those before the patches (class, distillation, registers).

    Args:
        tokens (Tensor): ``[B, P + N, D]``, or ``[B, H, W, D]`` (then flattened, without prefix).
        prefix_tokens (int): ``P``.
        who (str): Whose they are, for the message.

    Returns:
        Tensor: ``[B, N, D]``.

    Raises:
        ValueError: If they are no tokens, or nothing would be left.
    """
    if tokens.dim() == 4 and prefix_tokens == 0:
        return tokens.flatten(1, 2)
    if tokens.dim() != 3:
        raise ValueError(
            f'Relations compare tokens [B, N, D], or maps [B, H, W, D] without prefix tokens, but '
            f"the {who}'s are {tuple(tokens.shape)} with {prefix_tokens}."
        )
    if not 0 <= prefix_tokens < tokens.shape[1]:
        raise ValueError(
            f'The {who} has {tokens.shape[1]} tokens: {prefix_tokens} of them cannot precede the '
            'patches.'
        )
    return tokens[:, prefix_tokens:]


def merge_patches(patches: Tensor, grid: tuple[int, int], merged: tuple[int, int]) -> Tensor:
    """Fewer, wider tokens: each neighbourhood concatenated along the channels.

    ``merge`` of fine-grained manifold distillation (papers.md Part 2.1), for grids of any
    proportions: no value is lost, and a cosine of merged tokens is a cosine of neighbourhoods.

    Args:
        patches (Tensor): ``[B, H * W, D]``, row by row.
        grid (tuple[int, int]): ``(H, W)``.
        merged (tuple[int, int]): ``(h, w)``, divisors of ``H`` and ``W``.

    Returns:
        Tensor: ``[B, h * w, (H / h) * (W / w) * D]``; as they are where the grids agree.

    Raises:
        ValueError: If the patches do not fill the grid, or it cannot be divided so.
    """
    (rows, columns), (h, w) = grid, merged
    if patches.dim() != 3 or patches.shape[1] != rows * columns:
        raise ValueError(
            f'Patches {tuple(patches.shape)} do not fill a grid of {rows} x {columns}: prefix '
            'tokens still in, or another grid.'
        )
    if h < 1 or w < 1 or rows % h or columns % w:
        raise ValueError(
            f'A grid of {rows} x {columns} patches cannot be merged to {h} x {w}: name divisors of '
            'both sides.'
        )
    if (h, w) == (rows, columns):
        return patches
    blocks = patches.unflatten(1, (h, rows // h, w, columns // w))
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


def check_same_places(student: Tensor, teacher: Tensor) -> None:
    """Relations of tokens can be compared where there are as many images and tokens.

    Args:
        student (Tensor): ``[B, N, D_s]``.
        teacher (Tensor): ``[B, N, D_t]``; of any width.

    Raises:
        ValueError: Otherwise.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f'Relations need the same images and tokens [B, N] of both, not {tuple(student.shape)} '
            f'of the student and {tuple(teacher.shape)} of the teacher: take off the prefix tokens '
            'of each, and merge unequal grids to one.'
        )
