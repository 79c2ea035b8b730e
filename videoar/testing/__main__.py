"""`python -m videoar.testing [PACKAGE]`: print the crash points of a package and their modules."""

import sys

from videoar.testing.crash_points import crash_points

if __name__ == "__main__":
    for point in crash_points(*sys.argv[1:]):
        sys.stdout.write(f"{point.name:24} {point.module}\n")
