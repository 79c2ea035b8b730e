"""Ranks of a process group on the CPU, a process each."""

import os
import sys

import torch


def run_ranks(function, num_ranks, *args):
    """Call `function(rank, *args)` in a process per rank; raise if one of them fails."""
    torch.multiprocessing.spawn(_run, args=(function, args), nprocs=num_ranks)


def _run(rank, function, args):
    function(rank, *args)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Without the exit of the interpreter: a thread of Gloo that releases its last tensor meanwhile
    # aborts the process ("terminate called without an active exception").
    os._exit(0)
