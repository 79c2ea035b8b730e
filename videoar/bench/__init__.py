"""Measurements against peers and physical limits: interleaved, in CPU time, ratios reported.

Machines are noisy, so a number is only ever reported beside the number that it is compared with,
taken in the same minutes by the same process tree.
"""
