"""A clear message for a setting that a class does not take, before anything runs."""

import difflib
import functools
import inspect
from collections.abc import Iterable

from torch import nn

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def accepted_arguments(cls: type, start: type | None = None) -> list[str] | None:
    """Keywords that a class can be built with.

    Where an ``__init__`` takes ``**kwargs``, those of the next class in the resolution order are
    added: that is whom it forwards them to.

    Args:
        cls (type): The class.
        start (type, optional): Begin with this base of it. Defaults to ``cls``.

    Returns:
        list[str] | None: In order of declaration; None if it keeps ``**kwargs`` for itself.
    """
    order = cls.__mro__
    names: dict[str, None] = {}
    keeps = False
    for base in order[order.index(start or cls) :]:
        if base is nn.Module:
            return list(names)
        init = base.__dict__.get('__init__')
        if init is None or inspect.unwrap(init) is object.__init__:
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        names.update(dict.fromkeys(p.name for p in parameters if p.kind in _NAMED))
        keeps = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        if not keeps:
            break
    return None if keeps else list(names)


def check_arguments(what: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse settings that do not exist and offer those that do.

    Args:
        what (str): What is configured, for the message.
        given (Iterable[str]): Names of the settings.
        valid (Iterable[str]): Names that there are.

    Raises:
        TypeError: If a name is unknown; the message gives the nearest ones.
    """
    valid = list(valid)
    unknown = [name for name in given if name not in valid]
    if not unknown:
        return
    parts = []
    for name in unknown:
        near = difflib.get_close_matches(name, valid, n=3)
        hint = f' (did you mean {" or ".join(map(repr, near))}?)' if near else ''
        parts.append(f"'{name}'{hint}")
    takes = ', '.join(valid) or 'nothing'
    raise TypeError(f'{what} does not know {", ".join(parts)}. It takes: {takes}.')


def checked(cls: type) -> None:
    """Make a class check the names of its arguments; signature and subclasses stay as they are.

    Args:
        cls (type): Changed in place.
    """
    own = cls.__dict__.get('__init__')

    @functools.wraps(cls.__init__)
    def __init__(self, *args, **kwargs) -> None:
        valid = accepted_arguments(type(self), cls)
        if valid is not None:
            check_arguments(cls.__name__, kwargs, valid)
        if own is None:
            super(cls, self).__init__(*args, **kwargs)
        else:
            own(self, *args, **kwargs)

    cls.__init__ = __init__
