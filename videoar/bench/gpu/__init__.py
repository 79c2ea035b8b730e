"""All that only a GPU can show, in order of value, in a given number of minutes.

    videoar bench gpu --minutes 8 --out FILE.json
    python -m videoar.bench.gpu          the same from a bare checkout: torch, einops, numpy,
                                         safetensors and pydantic, no network

Each section (`plan`) runs in its own process (`section`) with its share of the time; the result is
written after every case. Peaks and rates are taken in the same run.
"""
