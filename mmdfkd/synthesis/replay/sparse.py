"""The few largest probabilities of a classifier instead of all of them."""

from torch import Tensor


def sparse_probabilities(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest probabilities of each row (TinyViT, its sparse soft labels).

    Args:
        logits (Tensor): ``[..., classes]``.
        k (int): How many to keep; all, if there are fewer classes.

    Returns:
        tuple[Tensor, Tensor]: Probabilities ``float16`` and classes ``int32``, both ``[..., min(k,
            classes)]``, largest first.
    """
    values, indices = logits.float().softmax(-1).topk(min(k, logits.shape[-1]), -1)
    return values.half(), indices.int()


def dense_probabilities(values: Tensor, indices: Tensor, classes: int) -> Tensor:
    """All probabilities from the largest: what is left is spread evenly (TinyViT).

    Args:
        values (Tensor): The largest probabilities ``[..., K]``.
        indices (Tensor): Their classes ``[..., K]``.
        classes (int): Number of classes.

    Returns:
        Tensor: ``float32`` ``[..., classes]``; positive, and each row sums to 1.
    """
    values = values.float()
    rest = (1 - values.sum(-1, keepdim=True)).clamp_min(0) / max(1, classes - values.shape[-1])
    dense = rest.expand(*rest.shape[:-1], classes).scatter(-1, indices.long(), values)
    # Half precision rounds: keep the logarithm finite and the sum at 1.
    dense = dense.clamp_min(1e-8)
    return dense / dense.sum(-1, keepdim=True)
