"""Errors, value types, ids, settings, logging and retries, used by every other package.

Imports the standard library, pydantic and PyYAML only: every command starts with these modules.
"""
