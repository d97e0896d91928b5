"""What in the UNet looks beyond one frame: norms, convolutions, resampling, self-attention.

All of them go through a `Frames`. This one computes every frame of the clip; `diffusion.stretch`
has those that keep what other frames need, and that compute a part of the frames.
"""

from torch import Tensor, nn

from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.plan import Attend


class Frames:
    """All frames of the clip. Feature maps are b c f t."""

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return norm(x)

    def conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 3x3 convolution, of stride 1 or 2."""
        return conv(x)

    def upsample(self, upsample: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """`layers.Upsample` to a size of f and t."""
        return upsample(x, size)

    def attention(self, module: SelfAttention, attend: Attend) -> Attend:
        """What a self-attention runs in place of `attend`."""
        return attend


ALL_FRAMES = Frames()
