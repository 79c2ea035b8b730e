"""Video files: finding, judging, reading each exactly once, and writing clips.

`sources` lists them, `fetch` brings one here, `probe` refuses hostile ones, `scan` reads one (both
in killable children of `isolate`), `transcode` writes clips (through `process`), `policy` says
which clips are good and `duplicates` which repeat a better one.

Nothing here knows a store, a table or a stage's name; every failure of one video is a `MediaError`
with a typed code from `codes.py`.
"""
