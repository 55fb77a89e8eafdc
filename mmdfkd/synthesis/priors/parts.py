"""What priors look for in a teacher: attention, batch norms, patches."""

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

#: Attention that is softmax(q k^T / sqrt(d) [+ relative positions]) of the output of ``qkv``.
_PLAIN = ('MultiheadAttention', 'WindowAttention')
#: Attention within windows.
_WINDOWED = ('WindowMSA', 'WindowMSAV2')


@dataclass(frozen=True)
class AttentionLayer:
    """One layer of self-attention over the whole image that can be read through taps.

    Attributes:
        name: Dotted name of the attention module.
        depth: Place of its block, ``(index + 1) / blocks``, in (0, 1].
        num_heads: Number of heads.
        prefix_tokens: Tokens before the patches.
        class_row: Whether the first token's answer is what the network uses.
        module: The attention module.
    """

    name: str
    depth: float
    num_heads: int
    prefix_tokens: int
    class_row: bool
    module: nn.Module = field(repr=False, compare=False)

    @property
    def qkv(self) -> str:
        """Tap of queries, keys and values."""
        return f'{self.name}.qkv'

    @property
    def heads_out(self) -> str:
        """Tap of the heads' outputs, side by side."""
        return f'{self.name}.proj:input'

    @property
    def block(self) -> str:
        """Tap of the block's output."""
        return self.name.rpartition('.')[0]


def attention_layers(net: nn.Module) -> list[AttentionLayer]:
    """The layers of attention over the whole image, in order; empty if none can be read.

    Args:
        net (nn.Module): With one of mmpretrain's plain transformers (ViT, DeiT, MAE), or a ViTDet,
            of which the blocks with global attention are taken.
    """
    for name, module in net.named_modules():
        prefix = getattr(module, 'num_extra_tokens', None)
        if hasattr(module, 'global_indices') and hasattr(module, 'blocks'):
            blocks, wanted, prefix = 'blocks', set(module.global_indices), 0
        elif isinstance(prefix, int) and hasattr(module, 'layers'):
            blocks, wanted = 'layers', None
        else:
            continue
        found = []
        children = list(getattr(module, blocks))
        uses_class = prefix > 0 and getattr(module, 'out_type', 'cls_token') == 'cls_token'
        for index, block in enumerate(children):
            attention = getattr(block, 'attn', None)
            if (
                (wanted is None or index in wanted)
                and type(attention).__name__ in _PLAIN
                and isinstance(getattr(attention, 'qkv', None), nn.Linear)
            ):
                path = '.'.join(part for part in (name, blocks, str(index), 'attn') if part)
                depth = (index + 1) / len(children)
                found.append(
                    AttentionLayer(path, depth, attention.num_heads, prefix, uses_class, attention)
                )
        if found:
            return found
    return []


def windowed_layers(net: nn.Module) -> int:
    """Number of layers whose attention stays in windows."""
    count = 0
    for module in net.modules():
        if hasattr(module, 'global_indices') and hasattr(module, 'blocks'):
            count += len(module.blocks) - len(module.global_indices)
        count += type(module).__name__ in _WINDOWED
    return count


def batch_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms of backbone and neck that keep statistics, by dotted name.

    Of a network of timm all: it is not divided.
    """
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and name.split('.')[0] in ('backbone', 'neck', 'model')
    }


def patch_size(net: nn.Module) -> tuple[int, int] | None:
    """Height and width in pixels of the patches an image is cut into; None if it is not."""
    for name, module in net.named_modules():
        if name.rpartition('.')[2] != 'patch_embed':
            continue
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                size = tuple(layer.kernel_size)
                return size if size == tuple(layer.stride) and min(size) > 1 else None
    return None


def without_attention(net: nn.Module, who: str = 'teacher') -> str | None:
    """Why a term of attention maps does not apply, and which would do; None where it does.

    Args:
        net (nn.Module): The network.
        who (str): Whose it is, for the message.
    """
    if attention_layers(net):
        return None
    if windowed_layers(net):
        why = f'the attention of the {who} stays in windows: there is no map of the whole image'
    else:
        why = f'the {who} has no attention that can be read (qkv layers of a plain transformer)'
    if batch_norms(net):
        return f'{why}; mmdfkd.BatchNormPrior would do, it has batch norms'
    return f'{why}; mmdfkd.TotalVariationPrior and mmdfkd.ContrastivePrior would do'
