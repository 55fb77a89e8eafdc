"""What memory the machine has left."""

from pathlib import Path


def available_memory(source: Path = Path('/proc/meminfo')) -> int | None:
    """Bytes that can be taken without swapping; None where the system does not say (not Linux)."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(':')
        if name == 'MemAvailable':
            # In kB, by proc(5).
            return 1024 * int(rest.split()[0])
    return None


def check_memory(need: int, what: str, remedy: str) -> None:
    """Stop before memory is taken that is not there.

    Args:
        need (int): Bytes.
        what (str): What needs them, for the message.
        remedy (str): What to do about it.

    Raises:
        ValueError: If fewer are available.
    """
    left = available_memory()
    if left is not None and need > left:
        raise ValueError(
            f'{what} need {need / 2**30:.1f} GiB, and of memory {left / 2**30:.1f} GiB are left: '
            f'{remedy}.'
        )
