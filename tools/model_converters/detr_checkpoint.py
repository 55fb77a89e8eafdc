r"""Give the DETR authors' checkpoints (detr-r50, detr-r101, ...) mmdet's names and classes.

    python tools/model_converters/detr_checkpoint.py checkpoints/detr-r101-2c7b67e5.pth \
        checkpoints/detr_r101_8xb2-500e_coco.pth

Their heads number COCO's categories by id, 91 of them; mmdet's know the 80 that are used.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmdfkd.utils.checkpoint import (  # noqa: E402
    read_checkpoint,
    save_tensors,
    unwrap_state_dict,
)

#: Ids between 1 and 90 that COCO gives to no category.
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
RULES = (
    (r'^backbone\.0\.body\.', 'backbone.'),
    (r'^input_proj\.', 'neck.convs.0.conv.'),
    (r'^query_embed\.', 'query_embedding.'),
    (r'^class_embed\.', 'bbox_head.fc_cls.'),
    (r'^bbox_embed\.layers\.0\.', 'bbox_head.reg_ffn.layers.0.0.'),
    (r'^bbox_embed\.layers\.1\.', 'bbox_head.reg_ffn.layers.1.'),
    (r'^bbox_embed\.layers\.2\.', 'bbox_head.fc_reg.'),
    (r'^transformer\.decoder\.norm\.', 'decoder.post_norm.'),
    (r'^transformer\.', ''),
    (r'\.self_attn\.', '.self_attn.attn.'),
    (r'\.multihead_attn\.', '.cross_attn.attn.'),
    (r'\.linear1\.', '.ffn.layers.0.0.'),
    (r'\.linear2\.', '.ffn.layers.1.'),
)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the weights.

    Args:
        state (Mapping[str, Tensor]): As the authors name them.

    Returns:
        dict[str, Tensor]: As mmdet's ``DETR`` names them; 80 classes and the background.

    Raises:
        ValueError: If it is no DETR of theirs.
    """
    if 'class_embed.weight' not in state or 'query_embed.weight' not in state:
        raise ValueError('This is no checkpoint of the DETR authors: it has no class_embed.')
    made = {}
    for name, value in state.items():
        for pattern, new in RULES:
            name = re.sub(pattern, new, name)
        # Encoder: norm1 and norm2; decoder: norm1 to norm3.
        name = re.sub(r'\.norm(\d)\.', lambda m: f'.norms.{int(m[1]) - 1}.', name)
        if name.startswith('bbox_head.fc_cls.') and len(value) == 92:
            value = value[[i for i in range(1, 91) if i not in UNUSED] + [91]]
        made[name] = value
    return made


def main() -> None:
    """Convert a file, or say in one line why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--overwrite', action='store_true', help='replace out')
    args = parser.parse_args()
    if args.out.exists() and not args.overwrite:
        sys.exit(f'error: {args.out} exists; give --overwrite to replace it')
    try:
        state = convert(unwrap_state_dict(read_checkpoint(str(args.source))))
        # What mmdet's batch norm keeps, frozen or not.
        for name in [n for n in state if n.endswith('.running_var')]:
            count = name.replace('running_var', 'num_batches_tracked')
            state.setdefault(count, torch.zeros((), dtype=torch.int64))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(state, args.out)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(state)} tensors: {args.out}')


if __name__ == '__main__':
    main()
