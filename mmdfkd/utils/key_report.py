"""Strict loading of weights: every key that does not fit is named, and nothing is half loaded."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from mmengine.model import is_model_wrapper
from torch import Tensor, nn

_NAMED = 12
# Written by newer torch only, and without effect in eval mode: older files lack it.
_COUNTER = '*num_batches_tracked'
_LAYER = re.compile(r'(.*?\b(?:layers|blocks|layer|stages))\.(\d+)\.')


class CheckpointMismatchError(RuntimeError):
    """The weights in a file are not those of the network."""


@dataclass
class KeyReport:
    """How the keys of a file compare with those of a network.

    Attributes:
        what: What was loaded, in words.
        missing: Keys of the network that the file lacks.
        unexpected: Keys of the file that the network lacks.
        mismatched: Keys of both with another shape: key to (file's, network's).
        allowed: Missing or unexpected keys that an allow-list let pass.
        matched: How many keys agree.
    """

    what: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    allowed: list[str] = field(default_factory=list)
    matched: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing differs but what was allowed."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        if self.ok:
            extra = f', {len(self.allowed)} allowed to differ' if self.allowed else ''
            return f'{self.what}: {self.matched} tensors match{extra}.'
        shapes = {
            k: f'{k} {list(a)} in the file, {list(b)} in the network'
            for k, (a, b) in self.mismatched.items()
        }
        lines = [f'{self.what}: the weights do not fit the network ({self.matched} tensors match).']
        differences = {
            'missing': self.missing,
            'unexpected': self.unexpected,
            'of another shape': shapes,
        }
        for kind, keys in differences.items():
            if keys:
                lines.append(f'{len(keys)} {kind} in the file:')
                lines += _grouped(keys, shapes)
        return '\n'.join(lines)


def check_keys(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    what: str,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> KeyReport:
    """Compare the keys and shapes of a file with those of a network.

    Args:
        own (Mapping[str, Tensor]): The network's state dict.
        given (Mapping[str, Tensor]): The file's.
        what (str): What is loaded, for the message.
        allow_missing (Sequence[str]): Keys that may lack, as ``fnmatch`` patterns or regular
            expressions for the whole key.
        allow_unexpected (Sequence[str]): Keys that may be there in vain, likewise.

    Returns:
        KeyReport: What matched.

    Raises:
        CheckpointMismatchError: If anything differs that is not allowed; the message names it and
            the likeliest cause.
    """
    allowed_missing = [k for k in own if k not in given and _matches(k, (_COUNTER, *allow_missing))]
    allowed_unexpected = [k for k in given if k not in own and _matches(k, allow_unexpected)]
    report = KeyReport(
        what=what,
        missing=[k for k in own if k not in given and k not in set(allowed_missing)],
        unexpected=[k for k in given if k not in own and k not in set(allowed_unexpected)],
        mismatched={
            k: (_shape(given[k]), _shape(own[k]))
            for k in own
            if k in given and _shape(given[k]) != _shape(own[k])
        },
        allowed=allowed_missing + allowed_unexpected,
    )
    report.matched = sum(k in given for k in own) - len(report.mismatched)
    if not report.ok:
        cause = _likely_cause(own, given, report)
        raise CheckpointMismatchError(f'{report}\nLikely cause: {cause}')
    return report


def load_strict(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    what: str,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> KeyReport:
    """Load weights if all of them fit; otherwise name what does not and leave the module as it was.

    Args:
        module (nn.Module): The network, or its distributed wrapper.
        state_dict (Mapping[str, Tensor]): Plain weights, see ``unwrap_state_dict``.
        what (str): What is loaded, for the message.
        allow_missing (Sequence[str]): As in :func:`check_keys`.
        allow_unexpected (Sequence[str]): As in :func:`check_keys`.

    Returns:
        KeyReport: What was loaded.

    Raises:
        CheckpointMismatchError: If anything differs that is not allowed.
    """
    module = module.module if is_model_wrapper(module) else module
    allow = {'allow_missing': allow_missing, 'allow_unexpected': allow_unexpected}
    own = module.state_dict()
    report = check_keys(own, state_dict, what=what, **allow)
    fitting = type(own)((k, v) for k, v in state_dict.items() if k in own)
    if hasattr(state_dict, '_metadata'):
        fitting._metadata = state_dict._metadata
    left = module.load_state_dict(fitting, strict=False)
    missing = [k for k in left.missing_keys if not _matches(k, (_COUNTER, *allow_missing))]
    if missing or left.unexpected_keys:
        # Hooks of the module renamed keys on the way: its own conversion and its keys disagree.
        lost = missing + left.unexpected_keys
        raise CheckpointMismatchError(f'{what}: a loading hook of the network lost {lost}.')
    return report


def _shape(value: object) -> tuple:
    return tuple(getattr(value, 'shape', ()))


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(key, p) or _full_match(p, key) for p in patterns)


def _full_match(pattern: str, key: str) -> bool:
    try:
        return re.fullmatch(pattern, key) is not None
    except re.error:
        # A pattern for fnmatch, such as '*.weight'.
        return False


def _grouped(keys: Iterable[str], texts: Mapping[str, str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.split('.')[0] if '.' in key else 'top level', []).append(key)
    # The first few of every part rather than twelve of the first.
    share = max(1, _NAMED // len(groups))
    lines = []
    for part, members in list(groups.items())[:_NAMED]:
        rest = f' and {len(members) - share} more' if len(members) > share else ''
        named = ', '.join(texts.get(k, k) for k in members[:share])
        lines.append(f'  {part} ({len(members)}): {named}{rest}')
    if len(groups) > _NAMED:
        lines.append(f'  and {len(groups) - _NAMED} more parts')
    return lines


def _likely_cause(own: Mapping[str, Tensor], given: Mapping[str, Tensor], report: KeyReport) -> str:
    if prefix := _prefix(given, own):
        return f"every key of the file carries '{prefix}' in front: strip it."
    if prefix := _prefix(own, given):
        return f"the keys of the file lack '{prefix}' in front: it holds that part alone."
    causes = []
    deep_file, deep_net = _depths(given), _depths(own)
    for stack in deep_file.keys() & deep_net.keys():
        if deep_file[stack] != deep_net[stack]:
            layers = f'{deep_file[stack]} layers in the file and {deep_net[stack]} in the network'
            causes.append(f'{stack} has {layers}')
    widths = Counter(
        (a, b)
        for shapes in report.mismatched.values()
        if len(shapes[0]) == len(shapes[1])
        for a, b in zip(*shapes, strict=True)
        if a != b
    )
    if widths:
        (a, b), count = widths.most_common(1)[0]
        causes.append(f'a width of {a} in the file where the network has {b} ({count} times)')
    if causes:
        return f'another architecture: {"; ".join(sorted(causes))}.'
    if not report.unexpected and not report.mismatched:
        parts = sorted({k.split('.')[0] for k in report.missing})
        return f'the file is partial: it lacks weights of {", ".join(parts)}.'
    return 'the file belongs to another config; give the one it was made with.'


def _prefix(longer: Mapping, shorter: Mapping) -> str | None:
    """The prefix without which most of the longer keys are the shorter ones."""
    counts = Counter(k[: -len(tail)] for k in longer for tail in _tails(k) if tail in shorter)
    counts.pop('', None)
    if not counts:
        return None
    prefix, count = counts.most_common(1)[0]
    return prefix if count > len(shorter) * 0.8 and not any(k in longer for k in shorter) else None


def _tails(key: str) -> Iterable[str]:
    parts = key.split('.')
    # Two levels of prefix at most: 'module.' and one name.
    return ('.'.join(parts[i:]) for i in (1, 2) if i < len(parts))


def _depths(keys: Iterable[str]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for key in keys:
        if found := _LAYER.match(key):
            depths[found[1]] = max(depths.get(found[1], 0), int(found[2]) + 1)
    return depths
