"""Faults for tests of pipelines, stages and stores: crash points, a faulty store, clocks, signals.

Nothing in the product imports it. Stages of your own call `crash_point` (`videoar.core`) between
two writes; a test kills them there, and compares what a resumed run commits with an undisturbed
one.
"""
