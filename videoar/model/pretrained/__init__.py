"""Pretrained networks out of a local folder, and the identity of such a folder."""
