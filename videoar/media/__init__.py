"""Video files: list, fetch, inspect, decode, measure and encode them.

    sources         list the files of an input (listing), with labels (labels) and captions
    fetch           one source to a local path, with its SHA-256
    probe           which demuxer may open a file, from its content
    source_decoder  frames of one source, tolerant of damage
    source_stream   its packets (transport_stream: without those sent twice), its container
    scan            frames to clips: shots, transitions (on luma_frames), frame_resizer, clip_scores
    frame_resizer   a frame at clip size; active_area (bars), deinterlacing, tone_mapping, color
    sandbox         fetch and scan in child processes that can be killed
    transcode       clips to MP4
    ffmpeg_program  what the program ffmpeg shows of a source, to check a clip against
    decode          frames of an MP4 that transcode wrote; thumbnails
    clip_reader     frames of a clip, from its MP4 or its source; clip_prefetch reads ahead
    synthetic       the synthetic corpus

It returns frames and rows, commits no table and is independent of stages. It does not decide on
quality: bounds on scores are in `videoar.curation`. Three modules read objects of a
store, where sources and clips may be (`listing`, `fetch`, `clip_reader`); none writes there.

A video that cannot be used raises `MediaError` with a code of `reject_codes`.
"""
