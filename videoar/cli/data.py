"""Verbs on data: snapshots, their lineage and their contracts."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import typer

from videoar import api
from videoar.cli.output import Block, Table, emit, facts, to_json
from videoar.cli.session import VerbGroup, print_help_without_verb, session, verb
from videoar.core.errors import ConfigError

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Snapshot id or prefix, dataset (newest), ref, RUN/STAGE, or any id."
    ),
]
app = typer.Typer()
_PANEL = "Data"
_LISTED = 20
"""chosen: videos or sources that fit one screen."""
_VALUE_CHARS, _RANGE_CHARS = 80, 16
"""chosen: longer values of a row and longer bounds of a column are cut; --json has them in full."""

_SCORE_TITLES = ("score", ">value", ">95 % interval", ">N", "protocol lock", "gate")


@verb(app, _PANEL, "show clips --rows 1")
def show(
    name: Name,
    rows: Annotated[int, typer.Option(min=0, help="Rows to print.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Of a clip: a PNG of its frames beside those of its source.")
    ] = None,
) -> None:
    """Describe a snapshot: origin, columns, metrics, first rows.

    Of scores, also protocol and gate.
    """
    if out is not None:
        made = api.strip(session.open(), name, out)
        emit(made, lambda: [facts(made)])
        return
    result = api.show(session.open(), name, rows)
    emit(result, lambda: _show_blocks(result))


def _show_blocks(result: dict[str, Any]) -> list[Block]:
    provenance = result["provenance"]
    parents = ", ".join(f"{port} {parent}" for port, parent in provenance["parents"].items())
    head = {
        "snapshot": result["snapshot"],
        "contract": result["contract"],
        "rows": result["rows"],
        "bytes": result["bytes"],
        "files": len(result["shards"]),
        "rejects": result["rejects"],
        "created by": f"run {provenance['run_id']}, stage {provenance['stage'] or 'input'}",
        "parents": parents or None,
        "fingerprint": provenance["fingerprint"],
    }
    ranges = result["statistics"]
    columns = [
        (
            name,
            _short(kind, _RANGE_CHARS),
            *(_short(ranges.get(name, {}).get(key), _RANGE_CHARS) for key in ("min", "max")),
            ranges.get(name, {}).get("nulls"),
        )
        for name, kind in result["schema"].items()
    ]
    metrics = list(result["metrics"].items())
    titles = ("column", "type", "min", "max", ">nulls")
    blocks: list[Block] = [facts(head), "", Table(titles, columns)]
    if "scores" in result:
        lines = [_score_line(row) for row in result["scores"]]
        blocks += ["", Table(_SCORE_TITLES, lines)]
    elif metrics:
        blocks += ["", Table(("metric", ">value"), metrics)]
    for number, row in enumerate(result["first_rows"], 1):
        cells = {key: _short(value, _VALUE_CHARS) for key, value in row.items()}
        blocks += ["", f"row {number}", facts(cells)]
    return blocks


def _score_line(row: dict[str, Any]) -> tuple[object, ...]:
    """Return the cells of a score; in the column of the gate its rules, else the whole decision."""
    has_interval = row["ci_low"] is not None and row["ci_high"] is not None
    interval = f"{row['ci_low']:.4g} to {row['ci_high']:.4g}" if has_interval else None
    value = row["value"] if row["status"] == "ok" else f"not evaluated: {row['reason']}"
    decided = [
        f"{'pass' if rule['passed'] else 'FAIL'} {rule['rule']}"
        for decision in row["gate"]
        for rule in decision["rules"] or [{**decision, "rule": "(no rule on it)"}]
    ]
    sides = dict.fromkeys(filter(None, (row["num_samples"], row["num_reference"])))
    return (
        row["metric"],
        value,
        interval,
        " / ".join(map(str, sides)),
        row["lock_digest"][:12],
        "; ".join(decided) or "no decision",
    )


def _short(value: object, limit: int) -> object:
    text = str(value)
    return f"{text[:limit]}..." if len(text) > limit else value


@verb(app, _PANEL, "diff RUN/clips clips")
def diff(old: Name, new: Name) -> None:
    """Compare two snapshots: videos, rows, files and metrics."""
    result = api.diff(session.open(), old, new)
    emit(result, lambda: _diff_blocks(result))


def _diff_blocks(result: dict[str, Any]) -> list[Block]:
    files = (f"-{len(result['only_old'])}", f"+{len(result['only_new'])}")
    videos = (f"-{len(result['videos_removed'])}", f"+{len(result['videos_added'])}")
    rows = result["rows"]
    overview = [
        ("snapshot", result["old"], result["new"]),
        ("rows", rows["old"], rows["new"]),
        ("files", *files),
        ("videos", *videos),
    ]
    metrics = [(entry["name"], entry["old"], entry["new"]) for entry in result["metrics"]]
    if result["same"]:
        return [f"same content: {result['old']} and {result['new']}"]
    return [
        Table(("", "old", "new"), overview),
        *_listing("removed", result["videos_removed"]),
        *_listing("added", result["videos_added"]),
        "",
        Table(("metric", ">old", ">new"), metrics),
    ]


def _listing(title: str, names: Sequence[str]) -> list[Block]:
    if not names:
        return []
    return ["", f"{title}:", *(f"  {name}" for name in names[:_LISTED]), *_more(len(names))]


def _more(count: int) -> list[str]:
    return [f"... and {count - _LISTED} more; --json has all"] if count > _LISTED else []


class LineageForm(StrEnum):
    """What `lineage` prints."""

    GRAPH = "graph"
    OPENLINEAGE = "openlineage"


@verb(app, _PANEL, "lineage champion")
def lineage(
    name: Name,
    up: Annotated[bool, typer.Option("--up", help="Its ancestors (the default).")] = False,
    down: Annotated[bool, typer.Option("--down", help="Its descendants.")] = False,
    form: Annotated[
        LineageForm, typer.Option("--format", help="openlineage: events of a run, a line each.")
    ] = LineageForm.GRAPH,
) -> None:
    """Trace anything to its source videos, or forwards."""
    if up and down:
        raise ConfigError("--up --down", "exclude each other", "give one of them")
    if form is LineageForm.OPENLINEAGE:
        if up or down:
            raise ConfigError("--format openlineage", "is of one run", "leave out --up and --down")
        events = list(api.openlineage(session.open(), name))
        lines = [to_json(event, indent=None) for event in events]
        emit({"events": events}, lambda: lines)
        return
    graph = api.lineage(session.open(), name, down=down)
    emit(graph, lambda: _lineage_blocks(graph, down=down))


def _lineage_blocks(graph: dict[str, Any], *, down: bool) -> list[Block]:
    end, other_end = ("from", "to") if down else ("to", "from")
    linked: dict[str, list[str]] = {}
    for edge in graph["edges"]:
        linked.setdefault(edge[end], []).append(edge[other_end])
    snapshots = [node for node in graph["nodes"] if node["kind"] == "snapshot"]
    sources = [node for node in graph["nodes"] if node["kind"] == "source"]
    rows = [
        (n["id"], n["contract"], n["rows"], _linked(linked.get(n["id"], []))) for n in snapshots
    ]
    title = "children" if down else "parents"
    blocks: list[Block] = [Table(("snapshot", "contract", ">rows", title), rows)]
    if sources:
        listed = [
            (
                _file_name(node),
                node["licence"],
                node["origin"],
                _short(node["sha256"], _RANGE_CHARS),
            )
            for node in sources[:_LISTED]
        ]
        columns = ("source video", "licence", "origin", "sha256")
        blocks += ["", Table(columns, listed), *_more(len(sources)), "", _licences(sources)]
    return blocks


def _licences(sources: Sequence[dict[str, Any]]) -> str:
    counts = Counter(node["licence"] or "unknown" for node in sources)
    licences = ", ".join(f"{licence} {count}" for licence, count in sorted(counts.items()))
    return f"{len(sources)} source videos by licence: {licences}"


def _linked(ids: Sequence[str]) -> str:
    sources = sum(name.startswith("source:") for name in ids)
    others = dict.fromkeys(name for name in ids if not name.startswith("source:"))
    return ", ".join([*others, *([f"{sources} source videos"] if sources else [])])


def _file_name(node: dict[str, Any]) -> str:
    if node["forgotten"] or not node["uri"]:
        return "(taken down)"
    name: str = node["uri"].rstrip("/").rpartition("/")[2]
    return name or node["uri"]


@verb(app, _PANEL, "validate tokens --deep")
def validate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Pipeline file or snapshot name.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Every byte: hashes, pages, layout, payload, objects.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --deep: tokenizer that the tokens must be of."),
    ] = None,
) -> None:
    """Check a pipeline file, or the rows of a snapshot."""
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and deep:
        raise ConfigError("--deep", "is for snapshots", "leave it out for a pipeline file")
    if tokenizer is not None and not deep:
        raise ConfigError("--tokenizer", "is compared by a deep check only", "add --deep")
    errors = (
        api.validate_pipeline(Path(name))
        if is_file
        else api.validate(session.open(), name, deep=deep, tokenizer=tokenizer)
    )
    lines = [_mistake_line(name, error["path"], error["message"]) for error in errors]
    emit({"ok": not errors, "errors": errors}, lambda: lines or [f"{name}: ok"])
    if errors:
        raise typer.Exit(2 if is_file else 3)


def _mistake_line(name: str, path: str, message: str) -> str:
    # a file that is no YAML has `file:line` for a path, and so its name already
    return ": ".join(filter(None, (name if not path.startswith(name) else "", path, message)))


@verb(app, _PANEL, "stages ingest")
def stages(
    name: Annotated[str | None, typer.Argument(metavar="STAGE", help="Stage type.")] = None,
) -> None:
    """Describe stage types: options, ports, products."""
    references = api.stages(name)
    document = {"stages": [reference.model_dump(mode="json") for reference in references]}
    emit(document, lambda: _stage_blocks(references[0]) if name else _stage_list(references))


def _stage_list(references: Sequence["api.StageReference"]) -> list[Block]:
    rows = [(r.name, ", ".join(p.name for p in r.ports), r.produces, r.meaning) for r in references]
    return [Table(("stage", "ports", "makes", "meaning"), rows)]


def _stage_blocks(reference: "api.StageReference") -> list[Block]:
    ports = [
        (port.name, port.contract, "optional" if port.optional else "required")
        for port in reference.ports
    ]
    options = [
        (
            option.name,
            option.type_text,
            "required" if option.required else option.default_text,
            option.unit,
            option.meaning,
        )
        for option in reference.options
    ]
    head = {"stage": reference.name, "shape": reference.shape, "makes": reference.produces}
    return [
        reference.meaning,
        "",
        facts(head),
        "",
        Table(("port", "contract", ""), ports),
        "",
        Table(("option", "type", "default", "unit", "meaning"), options),
    ]


@verb(app, _PANEL, "schema clips@1")
def schema(
    name: Annotated[str, typer.Argument(metavar="CONTRACT", help="Contract, e.g. clips@1.")],
) -> None:
    """Print a data contract."""
    contract = api.schema(name)
    rows = [(column.name, column.type, column.description) for column in contract.columns]
    emit(contract.model_dump(mode="json"), lambda: [Table(("column", "type", "description"), rows)])


@verb(app, _PANEL, "export tokens --format webdataset --to /data/tokens")
def export(
    name: Name,
    form: Annotated[
        str, typer.Option("--format", help="webdataset or parquet; for a model: safetensors.")
    ],
    to: Annotated[str, typer.Option(help="Empty folder; of tokens also s3://bucket/prefix.")],
    shard_mib: Annotated[
        float, typer.Option(min=0.001, help="Stored bytes per file; a tar adds its headers.")
    ] = 256,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Of a model: both networks in one file.")
    ] = False,
) -> None:
    """Write tokens for other readers, or a model to use elsewhere.

    Of tokens, manifest.json comes last: a folder without it is an export that did not finish. A
    model has its tokenizer and its card beside it, and its folder appears when it is complete;
    videoar.load reads it in Python.
    """
    manifest = api.export(
        session.open(), name, form, to, shard_mib=shard_mib, single_file=single_file
    )
    rows = [(file["name"], file["rows"], file["size_bytes"]) for file in manifest["files"]]
    emit(manifest, lambda: [Table(("file", ">rows", ">bytes"), rows)] if rows else ["no rows"])


RejectedBy = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Run or snapshot; default: last run.")
]
ReasonCode = Annotated[
    str | None, typer.Option(metavar="CODE", help="Only this reason, e.g. TOO_SHORT.")
]
quarantine = typer.Typer(cls=VerbGroup, invoke_without_command=True)


@quarantine.callback()
def _quarantine(ctx: typer.Context) -> None:
    """Rejected rows: list them, try again, accept."""
    print_help_without_verb(ctx)


@verb(quarantine, _PANEL, "quarantine ls last --reason TOO_SHORT", name="ls")
def quarantine_ls(
    name: RejectedBy = None,
    reason: ReasonCode = None,
) -> None:
    """List rejected rows with their reasons."""
    _emit_rejects(api.quarantine(session.open(), name, reason))


@verb(quarantine, _PANEL, "quarantine retry last --reason TIMEOUT")
def retry(
    name: RejectedBy = None,
    reason: ReasonCode = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the record.")] = "",
) -> None:
    """Read rejected sources again in the next run."""
    _emit_rejects(api.quarantine_retry(session.open(), name, reason, why))


@verb(quarantine, _PANEL, "quarantine accept 3f2a... --why 'a dark scene, as meant'")
def accept(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP", help="Ids of rejected clips.")],
    why: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the record.")],
    of: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run or snapshot; default: last run.")
    ] = None,
) -> None:
    """Keep rejected clips in the next run."""
    _emit_rejects(api.quarantine_accept(session.open(), clips, why, of))


def _emit_rejects(result: dict[str, Any]) -> None:
    rows = [
        (r["stage"], ",".join(r["reasons"]), r["item_id"], _place(r), r["detail"])
        for r in result["rows"]
    ]
    removed = result.get("withdrawn", 0)
    notes = [f"{removed} rows were removed by a takedown"] if removed else []

    def blocks() -> list[Block]:
        table = Table(("stage", "reasons", "item", "where", "detail"), rows)
        return [table if rows else "no rejected rows", *notes]

    emit(result, blocks)


def _place(row: dict[str, Any]) -> str:
    """Return the file of a rejected clip, and its seconds; the item of a source is its file."""
    if row["kind"] != "clip" or not row["uri"]:
        return ""
    name = posixpath.basename(unquote(row["uri"]))
    if row["span_start_us"] is None:  # rejected by an earlier version
        return name
    return f"{name}, {row['span_start_us'] / 1e6:.2f} to {row['span_end_us'] / 1e6:.2f} s"


app.add_typer(quarantine, name="quarantine", rich_help_panel=_PANEL)
