"""Fine-tuning of the UNet on one's own sounds; needs the extra `train`."""
