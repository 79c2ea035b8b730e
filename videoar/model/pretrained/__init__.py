"""Pretrained networks from a local folder, and the fingerprint of such a folder."""
