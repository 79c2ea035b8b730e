"""Video files: list, fetch, inspect, decode, measure and encode them.

    sources         list the files of an input, with labels and captions
    fetch           one source to a local path, with its SHA-256
    probe           which demuxer may open a file, from its content
    source_decoder  frames of one source, tolerant of damage
    scan            frames to clips: shots, transitions, frame_resizer, clip_scores
    sandbox         fetch and scan in child processes that can be killed
    transcode       clips to MP4 through ffmpeg, started by process
    clip_reader     frames of a stored clip; clip_prefetch reads ahead
    synthetic       the synthetic corpus

This package knows no table and no stage, and decides nothing about quality: bounds on scores are in
`videoar.curation`. It reads objects of a store where sources and clips live there (`sources`,
`fetch`, `clip_reader`), and writes none.

A video that cannot be used raises `MediaError` with a code of `reject_codes`.
"""
