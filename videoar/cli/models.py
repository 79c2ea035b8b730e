"""Verbs on models: reports, gate decisions, and the refs that they move."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from videoar import api
from videoar.cli.data import Name
from videoar.cli.output import Block, Table, emit, local_time
from videoar.cli.runs import OptionalRun, Overrides, watch
from videoar.cli.session import session, verb
from videoar.core.errors import ConfigError, ContractError, GateError, StorageError
from videoar.core.printable import printable
from videoar.core.settings import settings

app = typer.Typer()
_PANEL = "Models"


@verb(app, _PANEL, 'generate --model champion --prompt "a red circle moving left" --out FOLDER')
def generate(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="A name of the store, or path of an export.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New or empty, or of the same call.")],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the videos show.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="A prompt per line, or .jsonl.")
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="A,B", help="Classes that the model was trained on.")
    ] = "",
    num: Annotated[int, typer.Option(min=1, help="Samples of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of all samples; each has its own.")] = 0,
    init: Annotated[
        str, typer.Option(metavar="FILE", help="Image or video that the samples continue.")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option(help="Duration; default: that of the training clips.")
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(metavar="NAME|NUMBER", help="ucf, t2v or a constant.")
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="FIRST,LAST", help="Scales that are guided, from 0 to 1; all: 0,1."),
    ] = None,
    apg: Annotated[
        str | None,
        typer.Option(metavar="ETA,THRESHOLD", help="Adaptive projected guidance, e.g. 0,0.05."),
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Of every bit; one, or A,B,... by scale.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likelier value of every bit.")
    ] = False,
    text_encoder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Of the frozen text encoder, if it has one.")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="Samples at once.")] = 4,
) -> None:
    """Generate videos: MP4 files, manifest.jsonl and samples.parquet.

    An interrupted call is completed by the same call.
    """
    loaded = api.load(model, text_encoder=text_encoder, store=session.open)
    sampler: dict[str, Any] = {
        "guidance": _numbers(guidance),
        "guidance_interval": _numbers(guidance_interval),
        "apg": _numbers(apg),
        "temperature": _numbers(temperature),
        "greedy": greedy or None,
    }
    result = api.generate(
        loaded,
        out,
        {
            "prompt": prompt,
            "prompts": prompts,
            "labels": [label.strip() for label in labels.split(",")] if labels else (),
            "num": num,
            "seed": seed,
            "batch": batch,
        },
        seconds=seconds,
        init=init,
        **sampler,
    )
    # a seed as text, without separators: it is copied into `sample(seed=...)`
    rows = [(made["path"], made["prompt"], str(made["seed"])) for made in result["samples"]]
    emit(result, lambda: [Table(("file", "prompt", ">seed"), rows)])


@verb(app, _PANEL, "serve --model champion")
def serve(
    model: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="A name of the store, or path of an export; repeatable."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="API keys, a SHA-256 and a name per line.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Most replicas of each model.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Most videos in one batch.")] = 8,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a replica; default: one if there is any.")
    ] = None,
    text_encoder: Annotated[
        str, typer.Option(metavar="FOLDER", help="Of the frozen text encoder, if it has one.")
    ] = "",
    drain_s: Annotated[
        float, typer.Option(min=0, help="Seconds for running jobs after SIGTERM.")
    ] = 30,
    max_queue: Annotated[int, typer.Option(min=0, help="Jobs that may wait.")] = 100,
    rate: Annotated[float, typer.Option(min=0.01, help="Requests per second of a key.")] = 20,
) -> None:
    """Serve models over HTTP, as the OpenAI videos API.

    Runs until SIGTERM. Accepted jobs are in the store: after a restart the server takes up those
    that are unfinished.
    Exit code 5 if another server works on the jobs of this store.
    """
    api.serve(
        session.open(),
        model,
        target=session.target or settings().target,
        host=host,
        port=port,
        keys=keys,
        max_replicas=replicas,
        max_batch=batch,
        text_encoder=text_encoder,
        gpus=gpus,
        drain_s=drain_s,
        max_queue=max_queue,
        requests_per_s=rate,
    )


def _numbers(text: str | None) -> object:
    """Return a number, several, or a text without numbers as it is."""
    try:
        numbers = [float(part) for part in (text or "").split(",")]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


@verb(app, _PANEL, "evaluate --samples last/samples --reference quickstart --metrics rendered")
def evaluate(
    samples: Annotated[
        str, typer.Option(metavar="NAME", help="A name of the store, or a folder of generate.")
    ],
    reference: Annotated[
        str,
        typer.Option(metavar="NAME", help="Frozen set, clips, or a folder or URL of videos."),
    ],
    metrics: Annotated[
        str, typer.Option(metavar="A,B", help="Metrics, or rendered, recon, proxy, vbench.")
    ],
    protocol: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: that of the set.")
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=2, help="Clips of the reference; default: as samples.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="Classifier of frechet_domain, kvd_domain.")
    ] = None,
    train: Annotated[
        str | None, typer.Option(metavar="NAME", help="Clips of the training, for memorisation.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Score samples against a reference; print the score card.

    Runs as a pipeline: features of an unchanged reference are found again.
    Exit code 3 if a requested metric was not evaluated.
    """
    store = session.open()
    with redirect_stdout(sys.stderr):  # Ray prints there, see `run`
        card = api.evaluate(
            store,
            samples,
            reference,
            [name.strip() for name in metrics.split(",")],
            overrides or [],
            target=session.target or settings().target,
            watch=watch,
            protocol=protocol,
            num=num,
            domain=domain,
            train=train,
        )
    emit(card, lambda: _score_blocks(card))
    if missing := card["not_evaluated"]:
        texts = "; ".join(f"{metric}: {reason}" for metric, reason in missing.items())
        print(printable(f"error: {card['snapshot']}: not evaluated: {texts}"), file=sys.stderr)
        raise typer.Exit(ContractError.exit_code)


def _score_blocks(card: api.Document) -> list[Block]:
    """Return the scores as a table; the floor of a distance is in its row."""
    rows = [
        (
            row["metric"],
            row["value"],
            row["ci_low"],
            row["ci_high"],
            card["floors"].get(row["metric"]),
            row["num_samples"] or None,
            row["num_reference"] or None,
            json.loads(row["lock_json"]).get("preset"),
            row["reason"]
            or ("not above chance" if row["metric"] in card["not_above_chance"] else None),
        )
        for row in card["scores"]
        if "/floor" not in row["metric"] or row["reason"]
    ]
    titles = ("metric", ">value", ">from", ">to", ">floor", ">samples", ">reference", "preset", "")
    head = f"{card['samples']} against {card['evalset']}, protocol {card['protocol']}"
    return [head, "", Table(titles, rows), "", f"scores: {card['snapshot']}, run {card['run_id']}"]


@verb(app, _PANEL, "report last --out page.html")
def report(
    run_id: OptionalRun = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: in the store.")] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Of the store: runs, champions, schedules, storage.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="With --index: newest runs to show; 0 shows all.")
    ] = 50,
) -> None:
    """Write the page of a run, or of the store, one HTML file.

    What is damaged is named on the page, and the rest is shown; with --index exit code 7.
    """
    if index and run_id is not None:
        raise ConfigError(f"--index {run_id}", "is of the whole store", "leave out the run")
    store = session.open()
    path = api.report_index(store, out, limit=limit or None) if index else None
    path = path or api.report(store, run_id, out)
    emit({"path": path}, lambda: [path])


@verb(app, _PANEL, "compare RUN_A RUN_B --out page.html")
def compare(
    old: Annotated[str, typer.Argument(metavar="A", help="Run or snapshot.")],
    new: Annotated[str, typer.Argument(metavar="B", help="Run or snapshot.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("comparison.html"),
) -> None:
    """Compare two runs or snapshots on one page, one HTML file.

    Counts, distributions, scores with intervals, samples side by side.
    """
    result = api.compare(session.open(), old, new, out)
    rows = [
        (c["metric"], c["old"], c["new"], c["delta"], c["ci_low"], c["ci_high"])
        for c in result["changes"]
        if c["comparable"]
    ]
    titles = ("metric", ">A", ">B", ">change", ">from", ">to")
    emit(result, lambda: [Table(titles, rows), f"page: {result['path']}"])


@verb(app, _PANEL, "gate last")
def gate(run_id: OptionalRun = None) -> None:
    """Show the decision of a promotion gate.

    Exit code 4 if it blocked, or if there is no decision.
    """
    decision = api.gate(session.open(), run_id)
    rows = [
        ("pass" if r["passed"] else "FAIL", r["name"], r["value"], r["bound"], r["reason"])
        for r in decision["rules"]
    ]

    def blocks() -> list[Block]:
        verdict = "passed" if decision["passed"] else "blocked"
        head = f"{decision['candidate']} for {decision['ref']}: {verdict}"
        return [head, Table(("result", "rule", ">value", ">bound", "reason"), rows)]

    emit(decision, blocks)
    if not decision["passed"]:
        raise typer.Exit(GateError.exit_code)


@verb(app, _PANEL, "promote last/model")
def promote(
    model: Name,
    to: Annotated[str, typer.Option(metavar="REF", help="Ref to move.")] = "champion",
) -> None:
    """Point a ref at a model that its gate has passed."""
    result = api.promote(session.open(), model, to)
    emit(result, lambda: [f"{result['ref']} -> {result['snapshot']}"])


@verb(app, _PANEL, "rollback champion")
def rollback(
    ref: Annotated[str, typer.Argument(metavar="REF", help="E.g. champion.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Snapshot that it pointed at; default: the one before."),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the move.")] = "",
) -> None:
    """Point a ref back at what it pointed at before.

    A second time, it goes one further back.
    """
    result = api.rollback(session.open(), ref, to, reason)
    emit(result, lambda: [f"{result['ref']}: {result['was']} -> {result['snapshot']}"])


@verb(app, _PANEL, "freeze last/evalset --as demo-evalset")
def freeze(
    name: Name,
    ref: Annotated[str, typer.Option("--as", metavar="REF", help="New ref: ref://REF.")],
) -> None:
    """Pin a snapshot under a name that then stays.

    Exit code 2 if the ref points at another snapshot.
    """
    _emit_refs(api.freeze(session.open(), name, ref))


@verb(app, _PANEL, "refs champion")
def refs(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="E.g. champion; default: all.")
    ] = None,
) -> None:
    """Show the history of a ref, or what each ref points at.

    Exit code 7 if a record is damaged; the others are shown.
    """
    _emit_refs(api.refs(session.open(), ref))


def _emit_refs(result: api.Document) -> None:
    rows = [
        (
            entry["name"],
            entry["seq"],
            entry["target"],
            entry["by"],
            entry["at"] and local_time(entry["at"]),
            entry.get("damaged")
            or ", ".join(f"{key} {value}" for key, value in entry["evidence"].items() if value),
        )
        for entry in result["refs"]
    ]
    table = Table(("ref", ">seq", "target", "by", "at", "evidence"), rows)
    emit(result, lambda: [table if rows else "no refs"])
    if any("damaged" in entry for entry in result["refs"]):
        raise typer.Exit(StorageError.exit_code)
