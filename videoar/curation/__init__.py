"""Decisions on rows of clips: which are good (`policy`), which repeat a better one (`duplicates`).

Pure functions of columns; no file is opened here but the policies themselves.
"""
