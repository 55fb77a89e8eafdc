"""Weights of a file into a network: whatever library they come from, and never a part of them."""

import os
from collections.abc import Mapping

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from .checkpoint import read_checkpoint, unwrap_state_dict
from .convert import fit_names
from .key_report import CheckpointMismatchError, check_keys


def read_weights(
    path: str | os.PathLike, net: nn.Module, what: str | None = None
) -> Mapping[str, Tensor]:
    """The weights in a file, under the names of a network where it is another library's.

    Args:
        path (str | os.PathLike): As in :func:`read_checkpoint`.
        net (nn.Module): Whose names.
        what (str, optional): What is loaded, for the log; the path by default.

    Returns:
        Mapping[str, Tensor]: They need not fit.

    Raises:
        CheckpointError: If there are none in the file.
    """
    state = unwrap_state_dict(read_checkpoint(path))
    return fit_names(state, net.state_dict(), what or str(path))


def load_to_test(net: nn.Module, path: str | os.PathLike) -> bool:
    """Load what a test is about.

    The toolboxes load what fits and test the rest as it was drawn, with a warning; here a missing
    parameter or running statistic and one of another shape end the test. What the network's own
    loading hooks convert (embeddings of other positions, older names) fits; what a file has
    besides is left out.

    Args:
        net (nn.Module): The network, or a distiller for its student; may be wrapped.
        path (str | os.PathLike): As in :func:`read_checkpoint`.

    Returns:
        bool: Whether the file has mm's names; if not, mmengine cannot load it again.

    Raises:
        CheckpointMismatchError: If they do not fit; names the file, the keys and the likeliest
            cause.
    """
    net = net.module if is_model_wrapper(net) else net
    plain = unwrap_state_dict(read_checkpoint(path))
    own = net.state_dict()
    state = fit_names(plain, own, str(path))
    try:
        left = net.load_state_dict(state, strict=False)
        lost = sorted(key for key in left.missing_keys if _is_learned(own.get(key)))
        if not lost:
            return state is plain
        reason = f'{len(lost)} weights are missing in the file ({", ".join(lost[:4])}, ...).'
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(f'{path}: {error}') from None
    except RuntimeError as error:
        reason = str(error)
    check_keys(own, state, what=str(path))
    raise CheckpointMismatchError(f'{path}: {reason}')


def _is_learned(value: Tensor | None) -> bool:
    # Indices and counters follow from the config; older files lack some.
    return value is not None and torch.is_floating_point(value)
