"""Which blocks of the teacher the student keeps."""

from collections.abc import Callable, Sequence
from itertools import combinations

#: Up to this many choices are tried one by one.
_EXHAUSTIVE = 48


def uniform_layers(teacher: Sequence[str], student: Sequence[str]) -> list[int]:
    """Evenly spread blocks of the right kinds.

    Args:
        teacher (Sequence[str]): Kind of each of the teacher's blocks.
        student (Sequence[str]): Kind of each of the student's blocks.

    Returns:
        list[int]: The teacher's block for each of the student's, ascending.
    """
    n, k = len(teacher), len(student)
    goal = [(i + 1) * n / k - 1 for i in range(k)]
    return _best_match(teacher, student, lambda layer, slot: -((layer - goal[slot]) ** 2))


def _best_match(
    teacher: Sequence[str], student: Sequence[str], gain: Callable[[int, int], float]
) -> list[int]:
    """The ascending assignment of blocks of equal kind with the largest sum of gains."""
    lowest = float('-inf')
    best = [[0.0] + [lowest] * len(student)]
    for layer, kind in enumerate(teacher):
        row = list(best[-1])
        for slot, wanted in enumerate(student):
            if kind == wanted and best[-1][slot] > lowest:
                row[slot + 1] = max(row[slot + 1], best[-1][slot] + gain(layer, slot))
        best.append(row)
    if best[-1][-1] == lowest:
        raise ValueError(
            f"The student's blocks ({', '.join(student)}) cannot be taken in order from the "
            "teacher's "
            f'({", ".join(teacher)}): give it global_indices that leave a window block for each '
            'window block and a global '
            'one for each global one.'
        )
    kept, slot = [], len(student)
    for layer in range(len(teacher) - 1, -1, -1):
        if slot and best[layer + 1][slot] != best[layer][slot]:
            kept.append(layer)
            slot -= 1
    return kept[::-1]


def choose_layers(
    teacher: Sequence[str], student: Sequence[str], change: Callable[[tuple[int, ...]], float]
) -> list[int]:
    """The blocks without whose companions the teacher's output changes least.

    Every choice is tried where there are few; otherwise blocks are ranked by the change that each
    alone makes when removed.

    Args:
        teacher (Sequence[str]): Kind of each of the teacher's blocks.
        student (Sequence[str]): Kind of each of the student's blocks.
        change (Callable): How much the teacher's output changes when only the given blocks are run.

    Returns:
        list[int]: The teacher's block for each of the student's, ascending.
    """
    everything = tuple(range(len(teacher)))
    if len(student) == len(teacher):
        return _best_match(teacher, student, lambda layer, slot: 0.0)
    options = []
    for option in combinations(everything, len(student)):
        if all(teacher[layer] == kind for layer, kind in zip(option, student, strict=True)):
            options.append(option)
            if len(options) > _EXHAUSTIVE:
                break
    if options and len(options) <= _EXHAUSTIVE:
        return list(min(options, key=change))
    alone = [change(everything[:i] + everything[i + 1 :]) for i in everything]
    return _best_match(teacher, student, lambda layer, slot: alone[layer])
