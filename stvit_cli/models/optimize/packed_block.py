"""A fused block with packed weights as one function, in which no residual connection costs a pass over the tokens.

Shapes as in `super_token`: tokens (B, C, H, W) in channels-last memory.
"""

from __future__ import annotations

from torch import Tensor, nn

from stvit_cli.models.layers import ConvPosEnc, gelu
from stvit_cli.models.optimize.mkldnn import PackedConv, PackedConv2d
from stvit_cli.models.stvit import Block
from stvit_cli.models.super_token import SuperTokenAttention

CACHE = 8 * 2**20
"""Bytes of hidden tokens, of all images, up to which ConvFFN takes all images at once."""
MIN_TOKENS = 784
"""Tokens below which products are slower than what the cache saves."""


class PackedBlock(nn.Module):
    """The same function as a fused `stvit.Block` whose convolutions are packed: (B, C, H, W) -> (B, C, H, W).

    Args:
        block: see `can_pack_block`; its layers are used, not copied.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.cpe, self.norm1, self.attn, self.mlp = block.cpe, block.norm1, block.attn, block.mlp
        self.ratio = block.mlp.ratio

    def forward(self, x: Tensor) -> Tensor:
        x, normalized = self._encode(x)  # new tensors: what follows adds to x in place
        x = self._attend(x, normalized)
        fc2 = self.mlp.fc2
        assert isinstance(fc2, PackedConv)
        for images in x.split(self._images_at_once(x)):
            fc2.add_to(images, self._hidden(images))
        return x

    def _images_at_once(self, x: Tensor) -> int:
        """Return for how many images ConvFFN runs at once: its hidden tokens are to stay in the processor's cache."""
        tokens = x.shape[2] * x.shape[3]
        if x.numel() * x.element_size() * self.ratio <= CACHE:
            return len(x)
        return max(1, -(-MIN_TOKENS // tokens))

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens with their position encoding, and the layer norm of them."""
        cpe = self.cpe
        if not isinstance(cpe, ConvPosEnc):
            return x.clone(), self.norm1(x)
        if cpe.kernels is not None and cpe.kernels.supports(x):
            return cpe.kernels.conv_pos_enc_layer_norm(x, cpe.conv, cpe.residual, self.norm1)
        x = cpe(x)
        return x, self.norm1(x)

    def _attend(self, x: Tensor, normalized: Tensor) -> Tensor:
        """Return x + super token attention of its layer norm."""
        attn = self.attn
        if attn.grid_size == (1, 1):
            assert isinstance(attn.proj, PackedConv)
            return attn.proj.add_to(x, attn.mix_tokens(normalized))
        if (kernels := attn.sampling_kernels(x)) is not None:
            super_tokens, association = kernels.sample(normalized, attn.grid_size, attn.num_iters)
            super_tokens = attn.attend_channels_last(super_tokens)
            return kernels.upsample_add(association, super_tokens, x, attn.grid_size)
        return x + attn(normalized)

    def _hidden(self, x: Tensor) -> Tensor:
        """Return the hidden tokens of ConvFFN (B, ratio * C, H, W)."""
        fc1, conv, kernels = self.mlp.fc1, self.mlp.conv, self.mlp.kernels
        assert isinstance(fc1, PackedConv)
        if kernels is not None and isinstance(conv, ConvPosEnc) and kernels.supports(x, conv.conv.in_channels):
            assert fc1.bias is not None
            return kernels.gelu_conv_pos_enc(fc1.multiply(x), fc1.bias, conv.conv, conv.residual)
        return conv(gelu(fc1(x)))


def can_pack_block(block: nn.Module) -> bool:
    """Return whether nothing is left of a block's norms, layer scales and drop path but what `fuse` folds, and all is packed."""
    if type(block) is not Block or type(block.attn) is not SuperTokenAttention:
        return False
    is_folded = all(isinstance(part, nn.Identity) for part in (block.norm2, block.ls1, block.ls2, block.drop_path))
    products = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    depthwise = [part.conv for part in (block.cpe, block.mlp.conv) if isinstance(part, ConvPosEnc)]
    are_packed = all(isinstance(part, PackedConv) for part in products)
    return is_folded and are_packed and all(isinstance(part, PackedConv2d) for part in depthwise)


def pack_blocks(model: nn.Module) -> None:
    """Replace the blocks of a packed model, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if can_pack_block(child):
                assert isinstance(child, Block)
                setattr(parent, name, PackedBlock(child))
