"""Data contracts: schema and checks of every table, declared in `schemas/` only."""
