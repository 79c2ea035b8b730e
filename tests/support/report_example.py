"""Report data with every section filled, hostile strings included."""

import numpy as np

from videoar.contracts.expectations import Expectation
from videoar.report.data import (
    BlockTable,
    Card,
    Change,
    Clip,
    Confusion,
    ContactSheet,
    Curve,
    DataCheck,
    DatasetSize,
    DuplicatePair,
    FolderSize,
    FunnelStep,
    Gallery,
    Gate,
    GateRule,
    Histogram,
    Index,
    IndexedRun,
    Licence,
    LineageNode,
    Lock,
    RefEntry,
    ReportData,
    ScheduleState,
    Score,
    StageReport,
    Thumbnail,
    VBench,
)

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'
_COLOURS = {
    "red": (222, 66, 55),
    "green": (70, 170, 90),
    "blue": (70, 110, 220),
    "yellow": (230, 190, 60),
}


def moving_square(colour: str, *, noise: float = 0.0, num_frames: int = 17, size_px: int = 64):
    """Return frames_THWC uint8 of a square that crosses the picture."""
    frames = np.full((num_frames, size_px, size_px, 3), 34, dtype=np.float32)
    for t in range(num_frames):
        left = 4 + t * (size_px - 24) // num_frames
        frames[t, 22:42, left : left + 18] = _COLOURS[colour]
    frames += noise * np.random.default_rng(0).standard_normal(frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


def _stages() -> tuple[StageReport, ...]:
    chain = [
        ("videos", "input", "SUCCEEDED", (), None, 120, None),
        ("clips", "ingest", "SUCCEEDED", ("videos",), 120, 214, 18.2),
        ("good", "filter", "SUCCEEDED", ("clips",), 214, 180, 2.1),
        ("tokenizer", "train_tokenizer", "CACHED", ("good",), 180, 1, 0.1),
        ("tokens", "tokenize", "SUCCEEDED", ("good", "tokenizer"), 180, 180, 9.4),
        ("model", "pretrain", "SUCCEEDED", ("tokens", "tokenizer"), 180, 1, 214.0),
        ("samples", "generate", "SUCCEEDED", ("model", "tokenizer", "good"), 180, 64, 41.0),
        ("scores", "score", "SUCCEEDED", ("samples", "good", "tokenizer"), 64, 9, 11.3),
        ("release", "promote", "GATE_BLOCKED", ("model", "scores"), 10, 3, 0.2),
    ]
    return tuple(
        StageReport(
            name=name,
            kind=kind,
            status=status,
            parents=parents,
            rows_in=rows_in,
            rows_out=rows_out,
            seconds=seconds,
            snapshot=f"{name}:0123456789abcdef",
            metrics={"accelerator_busy_percent": 93.25} if kind == "tokenize" else {},
        )
        for name, kind, status, parents, rows_in, rows_out, seconds in chain
    )


def _scores() -> tuple[Score, ...]:
    exact = {"colour_acc": (0.83, 0.75), "shape_acc": (0.61, 0.5), "motion_acc": (0.72, 0.62)}
    return (
        Score(
            metric="temporal_flickering",
            status="ok",
            value=0.9721,
            ci_low=0.968,
            ci_high=0.976,
            num_samples=64,
        ),
        Score(
            metric="fvd",
            status="not_evaluated",
            reason="no I3D weights: set VIDEOAR_I3D_WEIGHTS",
            higher_is_better=False,
        ),
        Score(
            metric="frechet_random_i3d",
            status="ok",
            value=213.4,
            ci_low=187.2,
            ci_high=240.1,
            higher_is_better=False,
            num_samples=64,
            num_reference=64,
            protocol="common_metrics, N = 64",
            change=Change(
                metric="frechet_random_i3d",
                old=200.0,
                new=213.4,
                higher_is_better=False,
                delta=13.4,
                ci_low=1.5,
                ci_high=25.3,
                method="paired, 64 samples",
            ),
        ),
        *(
            Score(
                metric=f"rendered/{name}",
                status="ok",
                value=value,
                ci_low=low,
                ci_high=min(1, 2 * value - low),
                chance=0.25,
                num_samples=64,
                num_reference=64,
                change=Change(
                    metric=f"rendered/{name}", reason=f"the protocols differ in {HOSTILE}"
                ),
            )
            for name, (value, low) in exact.items()
        ),
        Score(metric="proxy/frame_diff_top5", status="ok", value=31.5, num_samples=64),
    )


def example(real: bytes, generated: bytes, picture: bytes = b"jpeg-bytes") -> ReportData:
    """Return a full report around two videos.

    Args:
        real: MP4 of a real clip.
        generated: MP4 of a generated one.
    """
    prompts = [
        "a red square moves right",
        HOSTILE,
        "a large blue circle moves down quickly past a small one",
    ]
    loss = tuple(
        (float(step), 0.68 * 0.985 ** (step / 4) + 0.03 * np.sin(step / 9))
        for step in range(0, 600, 4)
    )
    return ReportData(
        name="01jd5vq3kq8e7x2m9a",
        pipeline="quickstart",
        status="GATE_BLOCKED",
        started_at="2026-11-22 16:20:04 UTC",
        seconds=298.4,
        hardware="2 CPU cores, 24 GiB memory, no GPU",
        code_version="8ae7e15",
        error="gate release: fvd <= 300: not evaluated (nothing was promoted)",
        stages=_stages(),
        funnel=(
            FunnelStep(name="found", unit="videos", count=120),
            FunnelStep(
                name="clips",
                unit="videos",
                count=114,
                reasons=(("truncated_file", 4), ("too_short", 2)),
            ),
            FunnelStep(name="clips", unit="clips", count=214),
            FunnelStep(
                name="good",
                unit="clips",
                count=180,
                reasons=(("static", 21), ("duplicate", 9), ("black", 4)),
            ),
        ),
        histograms=(
            Histogram(
                score="motion_mean",
                unit="grey level",
                edges=(0.0, 1.0, 2.0, 4.0),
                counts=(21, 0, 193),
                bounds=((0.31, "min 0.31"),),
            ),
            Histogram(
                score="luma_mean",
                unit="grey level",
                edges=(90.0, 110.0, 130.0),
                counts=(100, 114),
                bounds=((235.0, "max 235"), (16.0, "min 16")),
            ),
        ),
        contact_sheets=(
            ContactSheet(title="kept", count=180, thumbnails=(Thumbnail(jpeg=picture),) * 8),
            ContactSheet(
                title="LOW_MOTION",
                count=21,
                thumbnails=(
                    Thumbnail(jpeg=picture),
                    Thumbnail(error="IO_PERMANENT: <No> such file"),
                ),
            ),
            ContactSheet(title="BLACK", count=4, thumbnails=()),
        ),
        duplicates=(
            DuplicatePair(
                reason="DUPLICATE_NEAR",
                clip_id="d" * 32,
                kept_id="e" * 32,
                thumbnail=Thumbnail(jpeg=picture),
                kept_thumbnail=Thumbnail(jpeg=picture),
            ),
        ),
        checks=(
            DataCheck(
                stage="good",
                success=False,
                expectations=(
                    Expectation(
                        name="expect_column_values_to_be_unique",
                        on="clip_id",
                        passed=False,
                        observed=HOSTILE,
                    ),
                    Expectation(
                        name="expect_table_row_count_to_be_between",
                        on="min_value=2, max_value=214",
                        passed=True,
                        observed="180",
                    ),
                ),
            ),
        ),
        blocks=(
            BlockTable(
                title="model: held-out blocks, clean history",
                step=600,
                cells=(((0.31, 0.9), (0.52, 0.74)), ((0.12, 0.97), None)),
            ),
        ),
        curves=(
            Curve(
                title="model: loss",
                x_label="steps",
                unit="nats",
                series={"train": loss, "val": tuple((x, y + 0.04) for x, y in loss[::10])},
            ),
            Curve(
                title="tokenizer: psnr",
                x_label="steps",
                unit="nats",
                series={"val": tuple((x, 31 - 14 * y) for x, y in loss)},
            ),
            Curve(
                title="diverged",
                x_label="steps",
                unit="nats",
                series={"train": ((0.0, float("nan")),)},
            ),
        ),
        generated=tuple(
            Card(
                clips=(
                    Clip(label="generated", video=generated),
                    Clip(label="real", video=real)
                    if i % 4 < 3
                    else Clip(label="no real clip with this prompt"),
                ),
                text=prompt,
                note=f"seed {i}",
            )
            for i, prompt in enumerate(prompts * 3)
        ),
        num_generated=64,
        reconstructions=(
            Card(
                clips=(Clip(label="real", video=real), Clip(label="recon", video=generated)),
                note=f"{0:032x}",
            ),
        )
        * 3,
        scale_series=(
            Card(
                clips=(
                    *(Clip(label=f"up to {n} x {n}", video=generated) for n in (1, 2, 3, 4, 6, 8)),
                    Clip(label="real", video=real),
                ),
                note=f"{0:032x}",
            ),
        ),
        scores=_scores(),
        vbench=VBench(dimensions={"color": 0.8, "scene": 0.4}, reason=f"no scorer for {HOSTILE}"),
        galleries=(
            Gallery(
                metric="temporal_flickering",
                protocol="clip, N = 64",
                text="The worst of 64 samples.",
                cards=tuple(
                    Card(
                        clips=(Clip(label=f"{0.9 + i / 100:.4g}", video=generated),),
                        text=HOSTILE,
                        note=f"seed {i}",
                    )
                    for i in range(4)
                ),
            ),
            Gallery(
                metric="memorisation",
                protocol="mean4, N = 64",
                text="The samples that are nearest to training clips, beside these.",
                cards=(
                    Card(
                        clips=(
                            Clip(label="sample, distance 0.5", video=generated),
                            Clip(label="training clip: withdrawn"),
                        )
                    ),
                ),
            ),
        ),
        score_curves=(
            Curve(
                title=f"frechet_random_i3d {HOSTILE}",
                x_label="N, clips",
                unit="no unit",
                series={"distance": ((16.0, 300.0), (64.0, 213.4)), "floor": ((16.0, 9.0),)},
            ),
        ),
        confusions=(
            Confusion(
                title="rendered/colour_acc",
                prompted=("red", "blue"),
                predicted=("red", "blue", "none"),
                counts=((26, 4, 2), (5, 27, 0)),
            ),
            Confusion(
                title="rendered/motion_acc",
                prompted=("left", "right"),
                predicted=("left", "right", "none"),
                counts=((23, 6, 3), (2, 23, 7)),
            ),
        ),
        gates=(
            Gate(
                ref="champion",
                candidate="model:1b",
                champion="model:0a",
                champion_seq=3,
                rules=(
                    GateRule(
                        rule="rendered/colour_acc >= 0.3",
                        value=0.83,
                        bound=0.3,
                        passed=True,
                        reason="0.83 is at least 0.3",
                    ),
                    GateRule(
                        rule="fvd <= 300",
                        value=None,
                        bound=300.0,
                        passed=False,
                        reason="missing: fvd was not evaluated",
                    ),
                ),
            ),
        ),
        licences=(
            Licence(name="CC-BY-4.0", num_videos=96),
            Licence(name="not stated", num_videos=24),
        ),
        lineage=(
            LineageNode(snapshot="release:1a", stage="release", rows=3),
            LineageNode(snapshot="model:1b", stage="model", rows=1, depth=1, port="model"),
            LineageNode(snapshot="tokens:1d", stage="tokens", rows=180, depth=2, port="tokens"),
            LineageNode(snapshot="scores:1c", stage="scores", rows=9, depth=1, port="scores"),
            LineageNode(
                snapshot="model:1b", stage="model", rows=1, depth=2, port="model", is_repeated=True
            ),
        ),
        config="pipeline: quickstart\n"
        "inputs: {videos: 'rendered://shapes?num_videos=120&seed=0'}\n"
        "stages:\n  clips: {stage: ingest}\n",
        locks=(
            Lock(
                metrics={"rendered/colour_acc": "ab" * 32, "rendered/motion_acc": "cd" * 32},
                text='{\n  "num_samples": 64,\n  "reference": "good:0123456789abcdef"\n}',
            ),
        ),
    )


def index_example() -> Index:
    """Return the page of a store with every text hostile."""
    text = HOSTILE
    run = IndexedRun(
        name=text, pipeline=text, status=text, started_at=text, seconds=1.0, reason=text,
        made=((text, 1),), moved=(text,), page=f'"{text}',
    )  # fmt: skip
    entry = RefEntry(
        ref=text, seq=0, target=text, is_model=True, at=1.0, when=text, by=text, run=text, why=text,
        evidence=text, scores=(Score(metric=text, status="ok", value=0.5),),
    )  # fmt: skip
    schedule = ScheduleState(
        pipeline=text, trigger=text, concurrency=text, is_paused=True, next=text, missed=1,
        last=text, last_run=text,
    )  # fmt: skip
    dataset = DatasetSize(
        name=text, contract=text, num_snapshots=1, rows=1, size_bytes=1, num_files=1,
        added_rows=None, added_bytes=None, written_bytes=1,
    )  # fmt: skip
    curve = Curve(title=text, x_label=text, unit=text, series={text: ((0, 1), (1, 2))})
    return Index(
        url=text,
        rendered_at=text,
        runs=(run,),
        num_runs=2,
        entries=(entry,),
        score_curves=(curve,),
        schedules=(schedule,),
        datasets=(dataset,),
        growth=(curve,),
        folders=(FolderSize(name=text, num_files=1, size_bytes=1),),
    )
