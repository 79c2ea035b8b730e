"""Training data: the order of an epoch, loaders of tokens and of clips, caches and buffers."""
