"""Every key of a store and the versions of its layout, spelled once.

    format.json                                   version of the store format
    tables/<dataset>/_delta_log/<version>.json    Delta log: the commits
    tables/<dataset>/data/<xx>/<sha256>.parquet   rows
    commits/<dataset>/<application id>.json       index of the Delta log, can be rebuilt from it
    objects/<xx>/<sha256><suffix>                 videos and model files
    stages/<dataset>/{shards,loops,reduced}/...   work records: results that wait for a commit
    checkpoints/<dataset>/<fingerprint>/...       training checkpoints
    checks/<dataset>/<fingerprint>.json           expectations of a reduction
    text/<encoder>/<max tokens>/<sha256>.safetensors   features of prompts, can be computed again
    runs/<run>/run.json, events/, progress/       run record
    runs/<run>/cancel/<number>.json               requests to cancel it, by claim of its driver
    runs/<run>/report.html                        report page
    runs/<run>/events.json                        its events until it ended first, derived
    index.html                                    page of the store
    refs/<name>/<number>.json                     refs, one record per move
    leases/<name>/epochs/<number>.json, heartbeats/<number>   owners of a lease, one after another
    claims/<right>/<number>.json                  rights that last as long as a lease
    decisions/<number>.json                       decisions of promotion gates, in their order
    retries/<sha256>/<number>.json                requests to read a rejected source again
    withdrawn/<key>.json, forgotten/<sha256>.json takedowns
    triggers/<pipeline>/<key>/<number>.json       firings of a schedule; .end.json, .released.json
    schedules/<pipeline>/control/<number>.json    since when a schedule counts, pauses
    schedules/<pipeline>/seen/<key>/<number>.json   when new sources were seen
    hooks/<event>/<hook>.json                     events that a hook has got
    serving/jobs/<job>.json                       jobs of the server, newest first
    serving/{open,results,deleted}/<job>.json     what is not finished; how jobs ended
    serving/attempts/<job>/<number>.json          claims of replicas
    serving/inputs/<job>, videos/<job>/<number>.{mp4,tokens}   what jobs read and made
    serving/{prompts,changes}/<job>/<number>.json   prompts sent to a running job; where they hold
    serving/keys/<sha256>.json                    idempotency keys
    gc/plans/<plan>/{plan,<number>}.json          what `gc apply` may delete
    folds/<log>/<first>-<number>.json             entries of a log in one record, derived
    folds/stages/<dataset>/shards/<group>/<sha256>.json   work records in one record, derived
    copy-of                                       in a copy of a store: which one
    doctor/...                                    probes of the store itself

`<xx>` are the first two hex digits of the digest: some file systems slow down with 100,000 entries
in one folder. `tests.checks.literals` fails when a key is spelled in any other module.
"""

import re

FORMAT_VERSION = 2
"""Version of this layout and of the records in it. Raise it when an older version of the code would
misread a store; a record that only gained a field needs no new version, readers ignore it."""
FORMAT_KEY = "format.json"
COPY_KEY = "copy-of"
"""In a copy made by `videoar store copy`: digest of the URL of the original."""
INDEX_PAGE_KEY = "index.html"

LAYOUT_VERSION = "1"
"""Version of token files (`storage.writer`), kept in each Parquet footer."""
READABLE_LAYOUT_VERSIONS = (LAYOUT_VERSION,)

# Prefixes end with a slash: `runs/` must not list keys of a later `runs-archive/`.
TABLES_PREFIX = "tables/"
OBJECTS_PREFIX = "objects/"
COMMITS_PREFIX = "commits/"
STAGES_PREFIX = "stages/"
CHECKPOINTS_PREFIX = "checkpoints/"
RUNS_PREFIX = "runs/"
REFS_PREFIX = "refs/"
DECISIONS_LOG = "decisions"
RETRIES_PREFIX = "retries/"
ACCEPTED = "accepted"
"""Name of the dataset and the ref of clips that are kept in spite of their verdict."""
TEXT_FEATURES_PREFIX = "text/"
WITHDRAWN_PREFIX = "withdrawn/"
TOMBSTONES_PREFIX = "forgotten/"
TRIGGERS_PREFIX = "triggers/"
SCHEDULES_PREFIX = "schedules/"
SCHEDULER_LEASE = "scheduler"
"""Name of the lease of the one process that ticks in a loop."""
JOBS_PREFIX = "serving/jobs/"
OPEN_JOBS_PREFIX = "serving/open/"
JOB_VIDEOS_PREFIX = "serving/videos/"
SERVING_LEASE = "serving"
LEASES_PREFIX = "leases/"
CLAIMS_PREFIX = "claims/"
PLANS_PREFIX = "gc/plans/"
MLFLOW_PREFIX = "mlflow-artifacts/"
FOLDS_PREFIX = "folds/"
COLLECTOR_LEASE = "gc"
"""Name of the lease of the one process that deletes garbage."""
PROBES_PREFIX = "doctor/"
PROBE_PASSED_KEY = f"{PROBES_PREFIX}put-if-absent.json"
ROUND_TRIP_KEY = f"{PROBES_PREFIX}round-trip"
CLOCK_KEY = f"{PROBES_PREFIX}clock"
TEMPORARY_FOLDER = ".tmp"
"""Of a folder store: half-written files. Listings leave it out."""

# fixed by the Delta protocol
_LOG_FOLDER = "_delta_log"
_DATA_FOLDER = "data"
# names of stages and inputs have no dots (core/names.py), so no stage can take such a name
_REJECTS_SUFFIX = ".rejects"
_OBJECT = re.compile(rf"{OBJECTS_PREFIX}[0-9a-f]{{2}}/([0-9a-f]{{64}})[.\w]*")


def rejects_dataset(dataset: str) -> str:
    """Return the name of the dataset that holds the rejected rows of a stage."""
    return f"{dataset}{_REJECTS_SUFFIX}"


def table_folder(dataset: str) -> str:
    """Return the key prefix of a Delta table, without a slash at its end."""
    return f"{TABLES_PREFIX}{dataset}"


def data_path(sha256: str) -> str:
    """Return the path of a data file inside its table, as the Delta log has it."""
    return f"{_DATA_FOLDER}/{sha256[:2]}/{sha256}.parquet"


def data_key(dataset: str, sha256: str) -> str:
    """Return the key of a data file."""
    return f"{table_folder(dataset)}/{data_path(sha256)}"


def data_sha256(key: str) -> str | None:
    """Return the SHA-256 in the key of a data file, None for any other key."""
    parts = key.split("/")
    is_data = len(parts) == 5 and f"{parts[0]}/" == TABLES_PREFIX and parts[2] == _DATA_FOLDER
    return parts[4].removesuffix(".parquet") if is_data and key.endswith(".parquet") else None


def dataset_of(key: str) -> str:
    """Return the dataset of a key under `tables/` or `stages/`."""
    return key.split("/")[1]


def log_prefix(dataset: str) -> str:
    """Return what the keys of a Delta log begin with."""
    return f"{table_folder(dataset)}/{_LOG_FOLDER}/"


def log_version_key(dataset: str, version: int) -> str:
    """Return the key of one version of a Delta log; 20 digits by the Delta protocol."""
    return f"{log_prefix(dataset)}{version:020d}.json"


def is_record(key: str) -> bool:
    """Return whether a key is a record of the ledger, not content, display or a list of keys."""
    first, _, rest = key.partition("/")
    *_, name = key.split("/")
    if f"{first}/" == RUNS_PREFIX and run_of_progress(key):
        return False
    other = (
        OBJECTS_PREFIX, TABLES_PREFIX, TEXT_FEATURES_PREFIX, PROBES_PREFIX, OPEN_JOBS_PREFIX,
        MLFLOW_PREFIX,
    )  # fmt: skip
    is_part = key.startswith(PLANS_PREFIX) and name != "plan.json"
    # a file of a checkpoint is `<step>-<sha256>.json`, its record `<step>.json`
    is_content = re.search(r"[0-9a-f]{64}\.json$", name) and key.startswith(CHECKPOINTS_PREFIX)
    return bool(rest and name.endswith(".json")) and not (
        key.startswith(other) or is_part or is_content
    )


def is_made_again(key: str) -> bool:
    """Return whether a record is made again once it is removed: derived, or of work to repeat."""
    prefixes = (STAGES_PREFIX, COMMITS_PREFIX, FOLDS_PREFIX)
    return key.startswith(prefixes) or is_folded_events(key)


def is_log_version(key: str) -> bool:
    """Return whether a key is a version of a Delta log, not a checkpoint of it or data."""
    folder, _, name = key.rpartition("/")
    # checkpoints are <version>.checkpoint.parquet and _last_checkpoint
    return folder.endswith(f"/{_LOG_FOLDER}") and name.removesuffix(".json").isdigit()


def folds_prefix(log: str) -> str:
    """Return what the keys of `fold_key` begin with, by what those of the log do."""
    return f"{FOLDS_PREFIX}{log.rstrip('/')}/"


def fold_key(log: str, first: int, number: int) -> str:
    """Return the key of a record of some entries of a log, from number `first` on."""
    return f"{folds_prefix(log)}{first:08d}-{number}.json"


def is_log_checkpoint(key: str) -> bool:
    """Return whether a key is a checkpoint of a Delta log."""
    folder, _, name = key.rpartition("/")
    return folder.endswith(f"/{_LOG_FOLDER}") and ".checkpoint." in name


def version_of_log(key: str) -> int:
    """Return the version that a key of a Delta log, or of a checkpoint of it, stands for."""
    return int(key.rpartition("/")[2].partition(".")[0])


def last_checkpoint_key(dataset: str) -> str:
    """Return the key of the hint at the newest checkpoint of a Delta log."""
    return f"{log_prefix(dataset)}_last_checkpoint"


def is_log_leftover(key: str) -> bool:
    """Return whether a key is a half-written version that a killed writer of a folder has left."""
    folder, _, name = key.rpartition("/")
    # what the crate `object_store` appends before it links the file to its name
    return folder.endswith(f"/{_LOG_FOLDER}") and "#" in name


def commit_index_key(dataset: str, app_id: str) -> str:
    """Return the key of the index record of an application id: its version in the Delta log."""
    return f"{COMMITS_PREFIX}{dataset}/{app_id}.json"


def object_key(sha256: str, suffix: str) -> str:
    """Return the key of a content-addressed object."""
    return f"{OBJECTS_PREFIX}{sha256[:2]}/{sha256}{suffix}"


def object_sha256(key: str) -> str | None:
    """Return the SHA-256 in the key of an object, None for any other key."""
    match = _OBJECT.fullmatch(key)
    return match and match[1]


def object_keys_in(text: str) -> list[str]:
    """Return the keys of objects that occur in a text."""
    return [match[0] for match in _OBJECT.finditer(text)]


def shard_records_prefix(dataset: str) -> str:
    """Return what the keys of a map stage's shard records begin with."""
    return f"{STAGES_PREFIX}{dataset}/shards/"


def shard_record_key(dataset: str, fingerprint: str) -> str:
    """Return the key of the work record of one shard."""
    return f"{shard_records_prefix(dataset)}{fingerprint}.json"


def shard_folds_prefix(dataset: str, group: str) -> str:
    """Return what keys of folds of shards begin with; a group has code and options in common."""
    return f"{folds_prefix(shard_records_prefix(dataset))}{group}/"


def record_fold_key(prefix: str, sha256: str) -> str:
    """Return the key of a record of some work records, by their digest."""
    return f"{prefix}{sha256}.json"


def loop_record_key(dataset: str, fingerprint: str) -> str:
    """Return the key of the work record of a training."""
    return f"{STAGES_PREFIX}{dataset}/loops/{fingerprint}.json"


def reduce_record_key(dataset: str, fingerprint: str) -> str:
    """Return the key of the work record of a reduction."""
    return f"{STAGES_PREFIX}{dataset}/reduced/{fingerprint}.json"


def checkpoints_prefix(dataset: str, fingerprint: str) -> str:
    """Return what the keys of a training's checkpoints begin with."""
    return f"{CHECKPOINTS_PREFIX}{dataset}/{fingerprint}/"


def checkpoints_of(key: str) -> str:
    """Return the prefix of the training that a checkpoint key belongs to."""
    return checkpoints_prefix(*key.split("/")[1:3])


def text_features_prefix(encoder: str, max_tokens: int) -> str:
    """Return what the keys of the features of prompts begin with, by digest of the encoder."""
    return f"{TEXT_FEATURES_PREFIX}{encoder}/{max_tokens}/"


def text_features_key(encoder: str, max_tokens: int, sha256: str) -> str:
    """Return the key of a file with features of some prompts."""
    return f"{text_features_prefix(encoder, max_tokens)}{sha256}.safetensors"


def check_key(dataset: str, fingerprint: str) -> str:
    """Return the key of what a reduction's expectations showed."""
    return f"checks/{dataset}/{fingerprint}.json"


def run_key(run_id: str) -> str:
    """Return the key of a run's immutable record."""
    return f"{RUNS_PREFIX}{run_id}/run.json"


def run_of(key: str) -> str:
    """Return the run of a key under `RUNS_PREFIX`."""
    return key.split("/")[1]


def run_events(run_id: str) -> str:
    """Return the log of a run's events, see `log_entry_key`."""
    return f"{RUNS_PREFIX}{run_id}/events"


def folded_events_key(run_id: str) -> str:
    """Return the key of the events that a run had when it ended for the first time, in one."""
    return f"{run_events(run_id)}.json"


def is_folded_events(key: str) -> bool:
    """Return whether a key is one of `folded_events_key`."""
    return key.startswith(RUNS_PREFIX) and key.endswith("/events.json") and key.count("/") == 2


def progress_key(run_id: str, stage: str) -> str:
    """Return the key of a stage's progress: advisory, rewritten, never read for a decision."""
    return f"{RUNS_PREFIX}{run_id}/progress/{stage}.json"


def run_of_progress(key: str) -> str | None:
    """Return the run of a key of `progress_key` or `rank_usage_key`, None for any other key."""
    _, run_id, *rest = key.split("/")
    return run_id if rest[:1] == ["progress"] else None


def rank_usage_prefix(run_id: str, stage: str) -> str:
    """Return what the keys of `rank_usage_key` begin with."""
    # names of stages have no dots
    return f"{RUNS_PREFIX}{run_id}/progress/{stage}.rank-"


def rank_usage_key(run_id: str, stage: str, index: int) -> str:
    """Return the key of what a rank other than the first used; written when the rank has ended."""
    return f"{rank_usage_prefix(run_id, stage)}{index}.json"


def cancel_key(run_id: str, claim: int) -> str:
    """Return the key of the request to cancel a run, to the driver with that claim."""
    return f"{cancel_prefix(run_id)}{claim:08d}.json"


def cancel_prefix(run_id: str) -> str:
    """Return what the keys of all requests to cancel a run begin with."""
    return f"{RUNS_PREFIX}{run_id}/cancel/"


def report_key(run_id: str) -> str:
    """Return the key of a run's report page."""
    return f"{RUNS_PREFIX}{run_id}/report.html"


def ref_log(name: str) -> str:
    """Return the log of a ref's moves, see `log_entry_key`."""
    return f"{REFS_PREFIX}{name}"


def log_entry_key(log: str, number: int) -> str:
    """Return the key of one record of a log, from number 0 on."""
    # leading zeros: listings are sorted by key, and records have to come in order of their numbers
    return f"{log}/{number:08d}.json"


def retries_log(place: str) -> str:
    """Return the log of requests to read a source again, by digest of its address."""
    return f"{RETRIES_PREFIX}{place}"


def withdrawal_key(key: str) -> str:
    """Return the key of the withdrawal record of an object that a takedown removed."""
    return f"{WITHDRAWN_PREFIX}{key}.json"


def key_withdrawn_by(key: str) -> str:
    """Return the key of the object that a withdrawal record is about."""
    return key.removeprefix(WITHDRAWN_PREFIX).removesuffix(".json")


def tombstone_key(source: str) -> str:
    """Return the key of the tombstone of a source, by its SHA-256."""
    return f"{TOMBSTONES_PREFIX}{source}.json"


def triggers_prefix(pipeline: str) -> str:
    """Return what the keys of the firings of a pipeline's schedule begin with."""
    return f"{TRIGGERS_PREFIX}{pipeline}/"


def trigger_key(pipeline: str, key: str, number: int, kind: str = "") -> str:
    """Return the key of a firing, numbered from 0, or of its `end` or `released` record."""
    return f"{triggers_prefix(pipeline)}{key}/{number:04d}{kind and f'.{kind}'}.json"


def trigger_of(key: str) -> tuple[str, str, int, str]:
    """Return pipeline, trigger key, number and kind (`fired` for a firing) of such a key."""
    _, pipeline, trigger, name = key.split("/")
    number, *kind = name.removesuffix(".json").split(".")
    return pipeline, trigger, int(number), kind[0] if kind else "fired"


def schedule_log(pipeline: str) -> str:
    """Return the log of a schedule's changes and pauses, see `log_entry_key`."""
    return f"{SCHEDULES_PREFIX}{pipeline}/control"


def schedule_of(key: str) -> str:
    """Return the pipeline of a key under `SCHEDULES_PREFIX`."""
    return key.split("/")[1]


def seen_log(pipeline: str, key: str) -> str:
    """Return the log of the listings seen before a data trigger fires."""
    return f"{SCHEDULES_PREFIX}{pipeline}/seen/{key}"


def schedule_lease(pipeline: str, key: str = "") -> str:
    """Return the name of the lease on a pipeline's scheduled runs, or on one of them."""
    return f"{SCHEDULES_PREFIX}{pipeline}" + (f"/{key}" if key else "")


def delivery_key(event: str, hook: str) -> str:
    """Return the key of the record that a hook has got an event."""
    return f"hooks/{event}/{hook}.json"


def job_key(job: str) -> str:
    """Return the key of the record by which the server accepts a job."""
    return f"{JOBS_PREFIX}{job}.json"


def job_id_of(key: str) -> str:
    """Return the job of a key under `JOBS_PREFIX` or `OPEN_JOBS_PREFIX`."""
    return key.rpartition("/")[2].removesuffix(".json")


def open_job_key(job: str) -> str:
    """Return the key that exists while something is to be done for a job."""
    return f"{OPEN_JOBS_PREFIX}{job}.json"


def job_attempts_prefix(job: str) -> str:
    """Return what the keys of a job's attempts begin with."""
    return f"serving/attempts/{job}/"


def job_attempt_key(job: str, attempt: int) -> str:
    """Return the key of the record by which a replica claims an attempt, from 1."""
    return f"{job_attempts_prefix(job)}{attempt:04d}.json"


def job_result_key(job: str) -> str:
    """Return the key of the record of how a job ended."""
    return f"serving/results/{job}.json"


def job_deleted_key(job: str) -> str:
    """Return the key of the record that a job was deleted."""
    return f"serving/deleted/{job}.json"


def job_input_key(job: str) -> str:
    """Return the key of the image or video that a job's video begins with."""
    return f"serving/inputs/{job}"


def job_videos_prefix(job: str) -> str:
    """Return what the keys of a job's videos begin with."""
    return f"{JOB_VIDEOS_PREFIX}{job}/"


def job_of_video(key: str) -> str:
    """Return the job of a key under `JOB_VIDEOS_PREFIX`."""
    return key.removeprefix(JOB_VIDEOS_PREFIX).partition("/")[0]


def job_video_key(job: str, attempt: int) -> str:
    """Return the key of the video that an attempt made."""
    return f"{job_videos_prefix(job)}{attempt:04d}.mp4"


def job_tokens_key(job: str, attempt: int) -> str:
    """Return the key of the tokens of that video."""
    return f"{job_videos_prefix(job)}{attempt:04d}.tokens"


def job_prompts_log(job: str) -> str:
    """Return the log of the prompts that were sent to a running job."""
    return f"serving/prompts/{job}"


def job_changes_prefix(job: str) -> str:
    """Return what the keys of the prompts that a replica has taken begin with."""
    return f"serving/changes/{job}/"


def job_change_key(job: str, number: int) -> str:
    """Return the key of the record from which second a prompt of the log holds."""
    return f"{job_changes_prefix(job)}{number:08d}.json"


def idempotency_key(sha256: str) -> str:
    """Return the key of the record that maps an idempotency key to its job."""
    return f"serving/keys/{sha256}.json"


def lease_log(name: str) -> str:
    """Return the log of the owners of a lease, see `log_entry_key`."""
    return f"{LEASES_PREFIX}{name}/epochs"


def heartbeat_key(name: str, epoch: int) -> str:
    """Return the key that an owner of a lease rewrites while it lives."""
    return f"{LEASES_PREFIX}{name}/heartbeats/{epoch:08d}"


def claim_log(right: str) -> str:
    """Return the log of who has claimed a right."""
    return f"{CLAIMS_PREFIX}{right}"


def run_claim(run_id: str) -> str:
    """Return the name of the right to drive a run."""
    return f"{RUNS_PREFIX}{run_id}"


def number_of(key: str) -> int:
    """Return the number of an entry of a log, or of a heartbeat."""
    return int(key.rpartition("/")[2].removesuffix(".json"))


def is_numbered(key: str) -> bool:
    """Return whether a key can be that of an entry of a log; people leave other files, too."""
    return key.rpartition("/")[2].removesuffix(".json").isdecimal()


def lease_of(key: str) -> str:
    """Return the lease of a key under `LEASES_PREFIX`."""
    return key.removeprefix(LEASES_PREFIX).rsplit("/", 2)[0]


def right_of(key: str) -> str:
    """Return the right of a key under `CLAIMS_PREFIX`."""
    return key.removeprefix(CLAIMS_PREFIX).rpartition("/")[0]


def claimed_run(right: str) -> str | None:
    """Return the run that a right is about, None for rights of other kinds."""
    return right.removeprefix(RUNS_PREFIX) if right.startswith(RUNS_PREFIX) else None


def plan_key(plan: str) -> str:
    """Return the key of the record of a plan of `gc`."""
    return f"{PLANS_PREFIX}{plan}/plan.json"


def plan_part_key(plan: str, number: int) -> str:
    """Return the key of a part of a plan."""
    return log_entry_key(f"{PLANS_PREFIX}{plan}", number)


def plan_of(key: str) -> str:
    """Return the plan of a key under `PLANS_PREFIX`."""
    return key.removeprefix(PLANS_PREFIX).partition("/")[0]
