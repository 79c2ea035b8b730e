"""`bench train`: the pretrain stage compared with a bare loop of the same steps.

    stage        the whole stage from a token store: loader, progress, history, average of weights
    bare loop    the same network, objective and optimizer on batches that are in memory already

Wall time of steps; the start of a stage is left out. Goals: the stage takes at most 5 % more, and
waits for data at most 2 % of the time. Latents are random; speed does not depend on them. `bench
gpu` measures steps on a GPU alone.
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._dynamo.utils import counters

from videoar.bench.loader_cell import token_tables
from videoar.bench.result import BenchResult, compare, in_turns
from videoar.bench.stores import commit, commit_tokenizer, run_stages
from videoar.contracts.names import TOKENS
from videoar.core.scratch import Scratch
from videoar.engine.inline import InlineEngine, finished_loop
from videoar.model.device import device
from videoar.model.tokenizer.config import TOKENIZERS
from videoar.model.tokenizer.network import VideoTokenizer
from videoar.model.transformer.config import OF_TOKENIZER
from videoar.model.transformer.loss import bit_loss
from videoar.model.transformer.network import VideoAR
from videoar.pipeline.work.progress import Curve, ProgressWriter
from videoar.pipeline.work.rank import run_rank
from videoar.pipeline.work.task import StageTask, WorkRecord
from videoar.stages.pretrain.stage import PretrainConfig
from videoar.storage.layout import LAYOUT_VERSION
from videoar.storage.snapshot import Snapshot
from videoar.storage.store import Store, open_store
from videoar.storage.token_codec import bytes_per_frame
from videoar.training.data.token_loader import TokenLoader
from videoar.training.optimizer import MovingAverage, make_adamw
from videoar.training.transformer import TransformerTrainer

_BARE = "bare loop"
_FRAMES = 17


class Shape(NamedTuple):
    """What is trained."""

    tokenizer: str
    model: dict[str, Any]
    batch: int
    steps: int
    clips: int = 256


# the transformer of the quickstart pipeline; L at the paper's shape for UCF
_ON_CPU = Shape("demo", {"depth": 4, "width": 128, "heads": 2, "ff_width": 384}, 8, 400)
_ON_GPU = Shape("ucf", {"preset": "L"}, 16, 100)


def run(rounds: int, shape: Shape | None = None) -> BenchResult:
    """Measure in turns."""
    shape = shape or (_ON_GPU if device() == "cuda" else _ON_CPU)
    with Scratch() as folder:
        contest = _Contest(open_store(Path(folder).as_uri()), shape)
        steps = in_turns({"ours": contest.stage, _BARE: contest.bare}, rounds)
        details = contest.details()
    pairs = list(zip(steps["ours"], steps[_BARE], strict=True))
    overhead = {
        "overhead_percent": _percent_more([ours.wall_s / bare.wall_s for ours, bare in pairs]),
        "overhead_cpu_percent": _percent_more([ours.cpu_s / bare.cpu_s for ours, bare in pairs]),
    }
    unit = f"training steps of {shape.batch} clips per second"
    figures = {name: [1 / step.wall_s for step in own] for name, own in steps.items()}
    return compare("train", unit, figures, cases={"stage": overhead | details})


class _Step(NamedTuple):
    """Time of a step."""

    wall_s: float
    cpu_s: float
    """Of all threads; unlike the wall time it hardly depends on what else runs on the machine."""

    @classmethod
    def mean(cls, first: "_Step", last: "_Step", steps: int) -> "_Step":
        """Return the mean over the steps between two readings of the clocks."""
        return cls(*((b - a) / steps for a, b in zip(first, last, strict=True)))


def _clocks() -> _Step:
    return _Step(time.perf_counter(), time.process_time())


def _percent_more(ratios: list[float]) -> float:
    return round(100 * (float(np.median(ratios)) - 1), 2)


class _Contest:
    """A token store, and the contestants."""

    def __init__(self, store: Store, shape: Shape) -> None:

        self.store, self.shape = store, shape
        torch.manual_seed(0)
        self.net = VideoTokenizer(TOKENIZERS[shape.tokenizer]).eval()
        self.tokenizer = commit_tokenizer(store, self.net)
        self.tokens = _committed_tokens(store, self.tokenizer, self.net, shape.clips)

    def details(self) -> dict[str, float]:
        """Return the share of waiting for data, and graph breaks."""
        trainer, started = self._trainer(), time.perf_counter()
        trainer.run(lambda _: None)
        percent = 100 * self.loader.waited_s / (time.perf_counter() - started)
        return {"data_wait_percent": round(percent, 3)} | _graphs(self._trainer())

    def stage(self, turn: int) -> _Step:
        """Run the stage; return the time of a step."""
        inputs, engine = {"tokens": self.tokens, "tokenizer": self.tokenizer}, _TimedEngine()
        # Another stage name per turn: nothing is reused.
        run_stages(self.store, inputs, {f"model{turn}": self._options()}, engine)
        return engine.step

    def _options(self) -> dict[str, Any]:
        model = dict(self.shape.model)
        phase = {"steps": self.shape.steps, "batch_size": self.shape.batch}
        training = {"phases": [phase], "validation": {"points": 0}, "precision": self._precision}
        return {
            "stage": "pretrain", "preset": model.pop("preset", "tiny"), "model": model,
            "training": training,
        }  # fmt: skip

    @property
    def _precision(self) -> str:

        return "bf16" if device() == "cuda" else "fp32"

    def _trainer(self) -> TransformerTrainer:
        """Return the trainer that the stage would build, with a loader whose time is counted."""
        options = {key: value for key, value in self._options().items() if key != "stage"}
        config = PretrainConfig.model_validate(options)
        of_tokens = {name: getattr(self.net.cfg, name) for name in OF_TOKENIZER}
        torch.manual_seed(config.training.seed)
        model = VideoAR(config.model_for(of_tokens)).to(device())
        self.loader = _TimedLoader(self.tokens, self.shape.batch, config.training.seed)
        return TransformerTrainer(model, config.training, self.loader)

    def bare(self, _: int) -> _Step:
        """Take the steps with nothing around them; return the time of one."""
        trainer = self._trainer()
        model, objective, training = trainer.model, trainer.objective, trainer.training
        (phase,) = training.phases
        # copies: a loader reuses the memory of its batches
        batches = [
            {**batch, "latent_BTKHW": batch["latent_BTKHW"].clone()}
            for batch in trainer.data.train(phase)
        ]
        optimizer = make_adamw(model, training.optimizer)
        average = MovingAverage(model, training.optimizer.ema)
        started, loss = _Step(0.0, 0.0), torch.zeros(())
        for step in range(self.shape.steps):
            rows = objective.rows(batches[step % len(batches)], None, seed_of=(step,))
            predicted = objective.predict(rows, phase, is_training=True, flips=True)
            weight_l = predicted.layout.weight_l
            loss = bit_loss(predicted.logits_BLK2, predicted.bits_BLK, weight_l).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.optimizer.clip_norm)
            optimizer.step()
            average.update(model, step)
            # as in the stage, whose first report follows the first step: see `_TimedEngine`
            started = started if step else _clocks()
        float(loss.detach())  # waits for the device
        return _Step.mean(started, _clocks(), self.shape.steps - 1)


class _TimedEngine(InlineEngine):
    """Measures the steps of a loop from the first report to the last."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, _Step]] = []

    @property
    def step(self) -> _Step:
        """The mean step after the first report."""
        (first, began), (last, ended) = self._reports[0], self._reports[-1]
        return _Step.mean(began, ended, last - first)

    def loop(self, task: StageTask) -> WorkRecord:
        """Run the loop as a single rank."""
        write = ProgressWriter(task)

        def sink(step: int, total: int, metrics: Mapping[str, float], _: Curve) -> None:
            write(step, total, metrics)
            self._reports.append((step, _clocks()))

        run_rank(task, 0, 1, sink)
        return finished_loop(task)


class _TimedLoader(TokenLoader):
    """The data of a training without val rows; counts the seconds in which a step waits for it."""

    waited_s = 0.0

    def train(self, _: object) -> "_TimedLoader":
        """Return itself."""
        return self

    def held_out(self, _: object) -> dict[str, TokenLoader]:
        """Return no val rows."""
        return {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch."""
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def _graphs(trainer: TransformerTrainer) -> dict[str, float]:
    """Return graph breaks and graphs of a step with compiled layers; no code is generated."""
    torch._dynamo.reset()
    counters.clear()
    trainer.model.compile_layers(backend="eager")
    (phase,) = trainer.training.phases
    trainer.take_step(next(iter(trainer.data.train(phase))), phase, 0)
    breaks = sum(counters["graph_break"].values())
    return {"graph_breaks": breaks, "graphs": counters["stats"]["unique_graphs"]}


def _committed_tokens(
    store: Store, tokenizer: Snapshot, net: VideoTokenizer, clips: int
) -> Snapshot:
    """Commit random latents, and random bytes as bits: only their number matters."""
    cfg, random = net.cfg, np.random.default_rng(0)
    shape = (cfg.num_latent_frames(_FRAMES), cfg.num_bits, *cfg.scales[-1])
    bits = random.integers(0, 256, (clips, shape[0] * bytes_per_frame(cfg.scales, cfg.num_bits)))
    latents = (2 * random.standard_normal((clips, *shape))).astype("<f2")
    metadata = {
        "tokenizer_digest": tokenizer.table()["digest"][0].as_py(),
        "scales": json.dumps(cfg.scales),
        "layout_version": LAYOUT_VERSION,
    }
    tables = token_tables([bits.astype(np.uint8), latents.reshape(clips, -1).view(np.uint8)], shape)
    annotated = (table.replace_schema_metadata(metadata) for table in tables)
    return commit(store, "tokens", TOKENS, annotated)
