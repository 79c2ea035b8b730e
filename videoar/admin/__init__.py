"""Operations on a store that run no stage: takedown, export, lineage, validation, diagnosis.

Nothing here needs an engine.
"""
