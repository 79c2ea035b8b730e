"""All that only a GPU can show, in order of value, in a given number of minutes.

    videoar bench gpu --minutes 8 --out FILE.json
    python -m videoar.bench.gpu          the same from a bare checkout: torch, einops, numpy,
                                         safetensors and pydantic, no network

Sections (`plan`) run in a child process (`worker`), each with its share of the time; the result
(`record`) is written after every case. Peaks and rates are taken in the same run.
"""
