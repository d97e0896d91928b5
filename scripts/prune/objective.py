"""What a pruned UNet has to predict: what the whole one does, and the noise."""

import torch
from torch import Tensor, nn

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.models.unet import UNet
from audiolitefocus.training.objective import Batch, NoiseLoss

TEACHING = 0.9  # share of the teacher's noise in what is predicted


class DistillationLoss(NoiseLoss):
    """Squared error against a teacher's noise and against that of the clip, by min-SNR.

    TinyFusion (Fang et al., CVPR 2025) has a |s - t|^2 + (1 - a) |s - n|^2, of the student's, the
    teacher's and the clip's noise, a = 0.9. This is |s - (a t + (1 - a) n)|^2 and what does not
    depend on the student, which is left out here. The teacher's noise is not guided: guidance
    remains a choice of each call.

    Args:
        unet: trained, called as `UNet.forward` is.
        teacher: evaluated.
        schedule, attention, gamma: as in `NoiseLoss`.
    """

    def __init__(
        self,
        unet: nn.Module,
        teacher: UNet,
        schedule: ScheduleConfig,
        attention: Attention,
        gamma: float,
    ):
        teacher.requires_grad_(False)
        super().__init__(unet, schedule, attention, gamma, teacher)  # type: ignore[arg-type]

    @torch.no_grad()
    def target(self, noisy: Tensor, batch: Batch) -> Tensor:
        assert self.teacher is not None
        return torch.lerp(batch.noise, self.predict(self.teacher, noisy, batch), TEACHING)
