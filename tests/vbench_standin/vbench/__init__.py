"""Stands in for the package vbench: the interface of 0.1.5, scores by arithmetic, and faults.

The file `fault.json` in the folder of weights maps a dimension to a fault.
"""

import json
import os
import time
import urllib.request
from pathlib import Path


def score(dimension, name):
    return (sum(name.encode()) + len(dimension)) % 100 / 100


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.entries = json.loads(Path(full_info_dir).read_text())
        self.out = Path(output_path)

    def evaluate(self, videos_path, name, dimension_list, local, read_frame, mode, **kwargs):
        (dimension,) = dimension_list
        cache = Path(os.environ["VBENCH_CACHE_DIR"])
        with (cache / "calls").open("a") as file:
            file.write(f"{dimension}\n")
        names = {path.name for path in Path(videos_path).iterdir()}
        prompts = dict.fromkeys(e["prompt_en"] for e in self.entries if dimension in e["dimension"])
        wanted = [f"{prompt}-{i}.mp4" for prompt in prompts for i in range(5)]
        results = [
            {"video_path": f"{videos_path}/{video}", "video_results": score(dimension, video)}
            for video in wanted if video in names
        ]  # fmt: skip
        value = sum(r["video_results"] for r in results) / len(results)
        faults = json.loads((cache / "fault.json").read_text())
        document = json.dumps({dimension: [value, results]})
        match faults.get(dimension):
            case "crash":
                raise RuntimeError("CUDA error: out of memory")
            case "hang":
                time.sleep(600)
            case "bad json":
                document = document[:-20]
            case "nan":
                document = json.dumps({dimension: [float("nan"), results]})
            case "missing video":
                document = json.dumps({dimension: [value, results[1:]]})
            case "other dimension":
                document = json.dumps({"beauty": [value, results]})
            case "no file":
                return
            case "download":
                urllib.request.urlopen("http://example.com/weights.pth", timeout=60)
            case None:
                pass
        (self.out / f"{name}_eval_results.json").write_text(document)
