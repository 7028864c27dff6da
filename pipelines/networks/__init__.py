"""Networks that a UNet2DModel cannot be; each file stands alone and is shipped beside the weights."""
