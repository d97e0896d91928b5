"""Parts of the UNet that a step takes from an earlier step instead of computing them."""
