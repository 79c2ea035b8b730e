"""The video tokenizer: causal 3D network, multi-scale bitwise quantizer, losses, discriminator."""
