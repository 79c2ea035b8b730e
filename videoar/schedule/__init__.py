"""Runs that start by themselves: cron windows and new data, each exactly once.

`decide` returns what is due, a pure function of trigger, state and time; `records` keeps in the
store what has fired; `tick` does what is due; `hooks` tells others; `serve` is a loop.
"""
