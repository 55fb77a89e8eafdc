"""The share of its teacher's metric that a student keeps, and where it means nothing."""

import math

#: Of a detector that finds less, a share says nothing.
LEAST_AP50 = 0.3


def too_weak(teacher_ap50: float | None) -> str | None:
    """Why a teacher is too weak for a retention.

    Args:
        teacher_ap50 (float, optional): Its box AP at an IoU of 0.5, in [0, 1]; None where it is
            not known or is no detector's.

    Returns:
        str | None: The reason; None where it is not too weak.
    """
    if teacher_ap50 is None or teacher_ap50 >= LEAST_AP50:
        return None
    return f"none: the teacher's AP50, {teacher_ap50:.3f}, is below {LEAST_AP50}"


def retention(student: float, teacher: float, teacher_ap50: float | None = None) -> float | None:
    """Share of the teacher's metric that the student keeps.

    Args:
        student (float): Its metric.
        teacher (float): The same one of the teacher.
        teacher_ap50 (float, optional): The teacher's box AP50, of a detector.

    Returns:
        float | None: None where there is nothing to keep, or the teacher is too weak.
    """
    if too_weak(teacher_ap50) or teacher <= 0 or not math.isfinite(student):
        return None
    return round(student / teacher, 4)
