"""`videoar evaluate`: what it prints and finds again; a line and exit code per bad input."""

import hashlib
import json
from typing import NamedTuple

import pyarrow as pa
import pytest
import yaml

from tests.support.clip_rows import clip_row, clips_of, stored
from tests.support.committed_rows import RowWriter
from tests.support.feature_runs import sample_row
from tests.support.published_model import digest_of, tokenizer, transformer
from tests.support.sample_folder import sample_folder
from tests.support.small_pipeline import ROOT, environment, in_this_process
from tests.support.stage_chain import commit
from tests.support.token_runs import damaged
from videoar import api
from videoar.admin.forget import forget
from videoar.contracts.contract import load_contract
from videoar.evaluation import i3d
from videoar.evaluation.evalset import prompt_rows
from videoar.evaluation.scorecard import score_row
from videoar.media.synthetic import draw, scenes
from videoar.pipeline.context import StageContext
from videoar.pipeline.stage import Output
from videoar.stages.evalset import EvalsetConfig, EvalsetStage

pytestmark = pytest.mark.slow

NUM = 4
DISTANCE, MEAN = "kvd_lite0", "temporal_flickering"
IMAGENET = b"1" * i3d.NUM_BYTES  # stands for that checkpoint, which no test can have


def clip_rows(store, count, shape=(9, 32), rate_fps=8.0, first=0):
    """Rows of drawn clips of (frames, side in px), each of a source of its own."""
    chosen = scenes()[first : first + count]
    videos = stored(store, [draw(scene, *shape, 8.0) for scene in chosen])
    fixed = {"rate_fps": rate_fps, "split": "val"}
    return [
        clip_row(f"{first + i}", **{**video, **fixed}, caption=scene.prompt)
        for i, (scene, video) in enumerate(zip(chosen, videos, strict=True))
    ]


def commit_samples(store, rows, prompts=()):
    """Commit samples of the videos of clips; of their captions, or of prompts of a set."""
    schema = load_contract("samples@1").arrow_schema
    samples = []
    for i, row in enumerate(rows):
        given = {"prompt": row["caption"], "seed": i}
        if prompts:
            given = {key: prompts[i][key] for key in ("prompt_id", "prompt", "index", "seed")}
        samples.append({**sample_row(row), "sample_id": f"{i:032x}", **given})
    output = Output(pa.Table.from_pylist(samples, schema))
    return commit(store, "samples", "samples@1", [output], rows=samples).id


def commit_set(store, name, clips, **options):
    """Choose an evaluation set and freeze it."""
    options = {"num_reference": NUM, "num_floor": 0, "num_prompts": 0, **options}
    (output,) = EvalsetStage(EvalsetConfig(**options)).reduce({"clips": clips}, StageContext(store))
    chosen = commit(store, name, "evalsets@1", [output], clips=clips.id, **options)
    api.freeze(store, chosen.id, name)
    return chosen


def write_gate(store, folder):
    """Write a pipeline that compares scores with those of a champion under another preset."""
    writer = RowWriter(store)
    for i, (name, preset) in enumerate({"champion": "common_metrics", "new": "stylegan-v"}.items()):
        model = {"kind": "transformer", "config_json": "{}", "history_json": "[]"}
        model["digest"] = f"{i:064x}"
        writer.commit(f"{name}_model", "models@1", [model])
        key = store.put_object(b"", ".mp4").key
        sample = {"sample_id": "0" * 32, "video_sha256": "0" * 64, "video_key": key}
        writer.commit(f"{name}_samples", "samples@1", [sample], {"model": f"{name}_model"})
        row = score_row("fvd", 1.0, lock={"preset": preset}, num_samples=32, num_reference=32)
        writer.commit(f"{name}_scores", "scores@1", [row], {"samples": f"{name}_samples"})
    champion = writer.ids["champion_model"]
    store.refs.advance("best", champion, expect=None, evidence={}, by_run="r")
    ports = {"model": "new_model", "scores": "new_scores", "champion_scores": "champion_scores"}
    rules = [{"metric": "fvd", "max_regression": 9.0}]
    document = {
        "pipeline": "gate",
        "inputs": {
            f"given_{port}": f"snapshot://{writer.ids[name]}" for port, name in ports.items()
        },
        "stages": {
            "release": {
                "stage": "promote",
                "from": {port: f"given_{port}" for port in ports},
                "ref": "best",
                "rules": rules,
            }
        },
    }
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


class World(NamedTuple):
    """A store with samples that fit its frozen set, and others that do not."""

    url: str
    names: dict[str, str]
    """Snapshots and files, for `{name}` in arguments."""

    def call(self, text: str, **extra: str) -> tuple[int, str, str]:
        arguments = [part.format(**self.names) for part in text.split()]
        call = ["--store", self.url, "--target", "inline", *arguments]
        return in_this_process(call, environment(**extra))

    def evaluate(self, samples: str, reference: str, metrics: str, extra: str = "", **env: str):
        given = f"--samples {samples} --reference {reference} --metrics {metrics} {extra}"
        return self.call(f"evaluate {given}", **env)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("evaluate")
    url = (folder / "store").as_uri()
    store = api.open_store(url)
    rows = clip_rows(store, 2 * NUM)
    real, own = rows[:NUM], rows[NUM:]
    clips = clips_of(store, real)
    commit_set(store, "real", clips)
    prompted = commit_set(store, "prompted", clips, num_prompts=NUM)
    lost = commit_set(store, "lost", clips_of(store, clip_rows(store, NUM, first=20)))
    forget(store, lost.table(["source_id"])["source_id"][0].as_py())
    prompts = prompt_rows(prompted)
    (folder / "empty").mkdir()
    (folder / "wrong").write_bytes(bytes(i3d.NUM_BYTES))
    (folder / "imagenet").write_bytes(IMAGENET)
    return World(url, {
        "good": commit_samples(store, own),
        "corrupt": commit_samples(store, [*own[1:], damaged(store, own[0])]),
        "eight": commit_samples(store, rows),
        "few": commit_samples(store, own[1:]),
        "longer": commit_samples(store, clip_rows(store, NUM, (13, 32))),
        "faster": commit_samples(store, clip_rows(store, NUM, rate_fps=16.0)),
        "larger": commit_samples(store, clip_rows(store, NUM, (9, 48))),
        "mixed": commit_samples(store, [*own[1:], *clip_rows(store, 1, (9, 48))]),
        "incomplete": commit_samples(store, own[1:], prompts[1:]),
        "other": commit_samples(store, own[1:], [{**prompt, "seed": 1} for prompt in prompts[1:]]),
        "clips": clips.id,
        "gate": write_gate(store, folder),
        "folder": str(folder),
    })  # fmt: skip


GOOD = "{good} real"
BAD = {
    "corrupt sample": (f"{{corrupt}} real {MEAN}", 3, "missing for"),
    "other frame count": (f"{{longer}} real {DISTANCE}", 3, "samples have 13 frames of 32 x 32"),
    "other frame rate": (f"{{faster}} real {DISTANCE}", 3, "32 x 32 px at 16 fps, 4 reference"),
    "other frame size": (f"{{larger}} real {DISTANCE}", 3, "samples have 9 frames of 48 x 48 px"),
    "mixed sizes": (f"{{mixed}} real {MEAN}", 3, "several forms: 9 frames of 32 x 32 px"),
    "missing prompts": (f"{{incomplete}} prompted {MEAN}", 3, "1 of 4 are missing"),
    "other seeds": (f"{{other}} prompted {MEAN}", 3, "3 of 3 samples are of no prompt and seed"),
    "unequal N": (f"{{few}} real {DISTANCE}", 3, "3 samples, 4 reference clips"),
    "more than there are samples": (
        f"{{few}} {{clips}} {MEAN} --num {NUM}", 2, f"--num {NUM}: there are 3 samples",
    ),
    "more than there are clips": (
        f"{{eight}} {{clips}} {MEAN} --num 8", 3, "4 clips of the split val, 8 are needed",
    ),
    "N of the set": (f"{GOOD} {MEAN} --num 9", 2, "--num 9: real has 4"),
    "protocol of the set": (f"{GOOD} {MEAN} --protocol fvd2048_16f", 2, "real has default"),
    "protocol of more N": (
        f"{{good}} {{clips}} {DISTANCE} --protocol fvd2048_16f", 3, "needs 2048 clips on each side",
    ),
    "unknown protocol": (f"{GOOD} {MEAN} --protocol fvd2048", 2, "did you mean fvd2048_16f?"),
    "unknown metric": (f"{GOOD} frechet_lite", 2, "frechet_lite: unknown metric (did you mean"),
    "set taken down": (f"{{good}} lost {MEAN}", 4, "evaluation set lost: its source"),
    "no weights": (f"{GOOD} fvd", 2, "set VIDEOAR_I3D_WEIGHTS"),
    "weights of the right size": (f"{GOOD} fvd", 2, "this is unknown content", "wrong"),
    "rgb_imagenet": (f"{GOOD} fvd", 2, "this is rgb_imagenet", "imagenet"),
    "damaged weights": (f"{GOOD} fvd", 2, "bytes, not 50818176", "gate.yaml"),
    "no such samples": (f"nobody real {MEAN}", 2, "nobody: no such name"),
    "no such reference": (f"{{good}} nobody {MEAN}", 2, "nobody: no such name"),
    "samples that are clips": (f"{{clips}} real {MEAN}", 2, "is clips@1, not samples@1"),
    "reference of samples": (f"{{good}} {{good}} {MEAN}", 2, "is samples@1"),
    "folder of something else": (f"{{folder}}/empty real {MEAN}", 2, "has no samples.parquet"),
    "reference without videos": (f"{{good}} {{folder}}/empty {MEAN}", 2, "has no files"),
    "no classifier": (f"{GOOD} frechet_domain", 2, "--domain: a requested metric needs it"),
    "no training clips": (f"{GOOD} memorisation", 2, "--train: a requested metric needs it"),
    "reason of a missing value": (f"{GOOD} vbench", 3, "no scores of stage vbench"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_has_one_line_and_its_exit_code(world, monkeypatch, case):
    arguments, code, words, *weights = case
    blob = hashlib.sha1(b"blob %d\0" % len(IMAGENET) + IMAGENET).hexdigest()
    monkeypatch.setitem(i3d._OTHER_CHECKPOINTS, blob, "rgb_imagenet")
    env = {"VIDEOAR_I3D_WEIGHTS": f"{world.names['folder']}/{weights[0]}"} if weights else {}
    samples, reference, metrics, *extra = arguments.split()
    got, _, err = world.evaluate(samples, reference, metrics, " ".join(extra), **env)
    lines = [line for line in err.splitlines() if not line.startswith("{")]  # log lines are JSON
    assert (got, len(lines)) == (code, 1), err
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_promotion_under_another_lock_is_blocked_and_compare_leaves_it_out(world):
    code, _, err = world.call("run {gate}")
    assert code == 4
    assert "the champion's protocol differs in preset" in err.splitlines()[-1]
    code, out, _ = world.call("compare champion_scores new_scores --out {folder}/c.html --json")
    (change,) = json.loads(out)["changes"]
    assert (code, change["comparable"], change["delta"]) == (0, False, None)


def features_of(world, run):
    """Return each stage of features with its status and the networks of its rows."""
    store = api.open_store(world.url)
    return {
        stage.name: (stage.status, {*store.snapshot(stage.snapshot).table()["network"].to_pylist()})
        for stage in api.status(store, run).stages
        if stage.type == "features"
    }


def test_card_has_rows_of_scores_and_finds_the_reference_again(world, tmp_path):
    store = api.open_store(world.url)
    commit_set(store, "fresh", clips_of(store, clip_rows(store, NUM, first=30)))
    folder = sample_folder(tmp_path / "out", NUM)
    code, out, _ = world.evaluate(str(folder), "ref://fresh", f"{DISTANCE},rendered", "--json")
    card = json.loads(out)
    assert code == 0
    table = pa.Table.from_pylist(card["scores"], load_contract("scores@1").arrow_schema)
    load_contract("scores@1").conform(table, "card")
    assert {row["metric"] for row in card["scores"]} >= {DISTANCE, "rendered/all_acc"}
    assert card["snapshot"] == api.status(store, card["run_id"]).outputs["scores"]
    assert card["protocol"] == "default"
    assert not card["not_above_chance"]
    assert not card["not_evaluated"]
    # no more than the metrics need
    assert features_of(world, card["run_id"]) == {
        "sample_features": ("SUCCEEDED", {"lite0", "synthetic"}),
        "reference_features": ("SUCCEEDED", {"lite0"}),
    }
    code, out, _ = world.evaluate("{good}", "fresh", f"rendered,{DISTANCE}", "--json")
    again = json.loads(out)
    assert features_of(world, again["run_id"])["reference_features"][0] == "CACHED"
    assert {row["lock_digest"] for row in again["scores"]} != {
        row["lock_digest"] for row in card["scores"]
    }  # other prompts


def test_metrics_of_samples_alone_need_no_features_of_the_reference(world):
    code, out, _ = world.evaluate("{good}", "real", "rendered,proxy/lite0_consistency", "--json")
    card = json.loads(out)
    assert code == 0
    assert not card["not_evaluated"]
    assert features_of(world, card["run_id"]).keys() == {"sample_features"}


def test_table_names_what_chance_explains(world):
    store = api.open_store(world.url)
    rows = clip_rows(store, NUM)
    wrong = commit_samples(store, [row | {"caption": scenes()[-1].prompt} for row in rows])
    code, out, _ = world.evaluate(wrong, "real", f"rendered,{DISTANCE}")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert lines["rendered/all_acc"].endswith("not above chance")
    assert "mean4" in lines[DISTANCE]
    assert f"{DISTANCE}/floor" in lines  # without further real clips: the reason


def test_videos_become_a_reference_of_the_form_of_the_samples(world):
    url = "rendered://shapes?num_videos=12&seed=0"
    code, out, _ = world.evaluate("{good}", url, MEAN, "--json")
    card = json.loads(out)
    chosen = api.open_store(world.url).snapshot(card["evalset"]).table().to_pylist()
    clips = [json.loads(row["clip_json"]) for row in chosen]
    assert code == 0
    assert {(c["num_frames"], c["height_px"], c["width_px"], c["rate_fps"]) for c in clips} == {
        (9, 32, 32, 8.0)
    }
    assert [row["role"] for row in chosen].count("reference") == NUM
    before = world.call(f"status {card['run_id']} --json")
    resumed = world.call(f"resume {card['run_id']} --json")
    assert resumed[0] == 0
    assert json.loads(resumed[1])["stages"] == json.loads(before[1])["stages"]


def test_pipeline_scores_a_model_once_per_set_and_others_under_the_same_lock(world):
    store = api.open_store(world.url)
    trained_on = digest_of(tokenizer(store))
    networks = "[pixels, synthetic]"  # fewer than in the file, which need a minute

    def score(model):
        changes = {
            "inputs.model": f"snapshot://{model.id}",
            "inputs.frozen": "ref://prompted",
            "inputs.videos": "rendered://shapes?num_videos=6&seed=0",
            "stages.clips.resources.workers": "1",
            "stages.samples.num_frames": "9",
            "stages.sample_features.networks": networks,
            "stages.reference_features.networks": networks,
        }
        overrides = [f"{key}={value}" for key, value in changes.items()]
        path = ROOT / "pipelines" / "evaluate.yaml"
        run = api.run(store, path, overrides, target="inline")
        rows = store.snapshot(run.outputs["scores"]).table().to_pylist()
        locks = {row["metric"]: row["lock_digest"] for row in rows if row["status"] == "ok"}
        return {stage.name: stage.status for stage in run.stages}, locks

    first, locks = score(transformer(store, trained_on))
    assert set(first.values()) == {"SUCCEEDED"}
    again, _ = score(transformer(store, trained_on))
    assert set(again.values()) == {"CACHED"}
    other, other_locks = score(transformer(store, trained_on, name="other", heads=2))
    assert other["reference_features"] == "CACHED"
    assert other["scores"] == "SUCCEEDED"
    assert {"temporal_flickering", "rendered/all_acc"} <= locks.keys()
    assert other_locks == locks
