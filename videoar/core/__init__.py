"""The vocabulary of the platform: errors, value types, ids, settings and logging.

Standard library and pydantic only, so that everything may import it and nothing heavy comes along.
"""
