"""How tokens lie in memory."""

from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H, W, C), contiguous: a view where the memory is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()
