"""Decisions on rows of clips: which meet the policy (`policy`), which repeat others (`duplicates`).

Pure functions of columns. The only files opened here are the shipped policies.
"""
