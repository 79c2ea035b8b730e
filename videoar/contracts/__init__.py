"""Data contracts: schema and checks of every table, declared once in `schemas/`."""
