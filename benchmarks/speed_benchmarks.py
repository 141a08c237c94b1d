"""The table of all benchmarks that measure speed, which `benchmarks/all.sh` runs.

The flags of a benchmark may contain inputs in braces, which `speed_inputs.py` finds: `{photos}`, `{nano}`, `{queries}`,
`{sets}` and `{old}`. `{work}` is an empty folder for the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STDOUT = "stdout"
WALL_TIME = "wall time"


@dataclass(frozen=True)
class SpeedBenchmark:
    """A command that measures speed, and how to read its figures.

    Attributes:
        name: its name in the results.
        command: a script of this repository, or `-m osm COMMAND`, with the flags of the docs' figures.
        small: the flags of a small run instead, which shows that the command works. Its values are no figures.
        figures: the paths of the figures in its JSON document (`raw_figures.py`), and their units.
        page: the page in docs/ with the figures, or empty if no page has them.
        runs: how often the command is run. A figure is the median of all runs.
        result: where the JSON document is: `stdout` (at its end), a file in `{work}`, or `wall time` if the command has
            none, and its time is the figure.
        threads: the OpenMP threads of a process. 0: one for each core.
        gpu: whether it needs a GPU.
        kept: the file in docs/benchmarks with the JSON document of one run, from which the pages are made.
    """

    name: str
    command: str
    small: str
    figures: tuple[tuple[str, str], ...]
    page: str
    runs: int = 3
    result: str = STDOUT
    threads: int = 0
    gpu: bool = False
    kept: str = ""

    @property
    def script(self) -> str:
        """The script, or `-m osm COMMAND`."""
        words = self.command.split()
        return " ".join(words[:3]) if words[0] == "-m" else words[0]

    def words(self, small: bool) -> list[str]:
        """The words of the command after the Python interpreter, with the inputs still in braces."""
        return [*self.script.split(), *self.small.split()] if small else self.command.split()

    def inputs(self, small: bool) -> list[str]:
        """The names of the inputs that the command needs."""
        return [name for name in re.findall(r"\{(\w+)\}", " ".join(self.words(small))) if name != "work"]


_FAST_MODELS = ("random", "osm_small", "osm_small_queries")
_NAMES = (("cases[masks].names_per_second.*", "names/s"), ("floor.share_reached", "share of the bound"))
_STEP = "cases[masks_per_image,compile,checkpointing]"
_STEPS = ((f"{_STEP}.names_per_second", "names/s"), (f"{_STEP}.step_seconds", "s"))
_PAIRED = (("cases.*.old_ms", "ms"), ("cases.*.new_ms", "ms"), ("cases.*.new_over_old", "new / old"))
_SERIES = tuple(
    (f"{command}.{value}", unit)
    for command in ("label", "generate")
    for value, unit in (("seconds", "s"), ("masks_per_second", "masks/s"), ("peak_mib", "MiB"))
)
_LOAD = (
    ("load[pictures,clients].requests_per_second", "requests/s"),
    ("load[pictures,clients].p50_ms", "ms"),
    ("load[pictures,clients].p95_ms", "ms"),
    ("load[pictures,clients].p99_ms", "ms"),
    ("load[pictures,clients].resident_mib", "MiB"),
    ("batching[pictures,clients].gain", "times"),
)
_COSTS = (("ms.*.median", "ms"), ("ms.*.mean", "ms"))
_DRAWN = "--images 1 --sizes 64x48 --input_size 112"
_FEW_REQUESTS = "--clients 1 --seconds 1 --compared 2 --pictures shared"

BENCHMARKS = (
    SpeedBenchmark(
        "quickstart",
        "-m osm quickstart {work}/run --full",
        "{work}/run --short",
        (("seconds.*", "s"),),
        "quickstart.md",
        runs=1,
        result="{work}/run/stages.json",
        kept="osm_nano/stages_42.json",
    ),
    SpeedBenchmark(
        "loader",
        "benchmarks/loader.py",
        f"--samples 8 {_DRAWN}",
        (
            ("cases[set,layout,size].samples_per_second.*", "samples/s"),
            ("cases[set,layout,size].times_faster.*", "times"),
            ("cases[set,layout,size].ms.ours.*", "ms"),
        ),
        "training.md",
        kept="loader/loader.json",
    ),
    SpeedBenchmark(
        "loader_paired",
        "benchmarks/loader_paired.py {old} .",
        f"{{old}} . --rounds 2 --samples 8 {_DRAWN}",
        _PAIRED,
        "",
        runs=1,
        kept="loader/paired.json",
    ),
    SpeedBenchmark(
        "model_paired",
        "benchmarks/model_paired.py {old} .",
        "{old} . --rounds 2 --times 1",
        _PAIRED,
        "",
        runs=1,
        kept="tree/model_paired.json",
    ),
    SpeedBenchmark(
        "shard_reading",
        "benchmarks/shard_reading.py",
        "--shards 4 --rounds 2 --samples 8",
        (("speed.*.local_ms", "ms"), ("speed.*.cached_over_local", "cached / local")),
        "training.md",
        kept="loader/reading.json",
    ),
    SpeedBenchmark(
        "train_step_queries",
        "benchmarks/train_step.py --config osm_small_queries --masks 1,4,8 --threads 1 --rounds 5",
        "--config osm_small_queries --masks 1 --batch_size 1 --threads 1 --rounds 1",
        _STEPS,
        "training.md",
        runs=1,
        kept="train_step/osm_small_queries_cpu.json",
    ),
    SpeedBenchmark(
        "train_step_small",
        "benchmarks/train_step.py --config osm_small --masks 1,4,8 --threads 1 --rounds 5",
        "--config osm_small --masks 1 --batch_size 1 --threads 1 --rounds 1",
        _STEPS,
        "training.md",
        runs=1,
        kept="train_step/osm_small_cpu.json",
    ),
    SpeedBenchmark(
        "train_step_gpu",
        "benchmarks/train_step.py --config osm_flamingo_instructblip --random_weights --compile off,on",
        "--config osm_flamingo_instructblip --random_weights --tiny --masks 1 --rounds 1 --compile off",
        (*_STEPS, (f"{_STEP}.mfu", "share of the peak"), (f"{_STEP}.peak_memory_gib", "GiB")),
        "training.md",
        gpu=True,
        kept="train_step/osm_flamingo_h200.json",
    ),
    SpeedBenchmark(
        "recognition_random",
        "benchmarks/recognition.py",
        "--tiny --masks 1 --rounds 1",
        _NAMES,
        "recognition.md",
        kept="recognition/random_cpu.json",
    ),
    SpeedBenchmark(
        "recognition_queries",
        "benchmarks/recognition.py --config osm_small_queries --many 500",
        "--config osm_small_queries --masks 1 --rounds 1 --many 2",
        (*_NAMES, ("many.seconds", "s"), ("many.names_per_second", "names/s"), ("many.gib.*", "GiB")),
        "recognition.md",
        kept="recognition/osm_small_queries_cpu.json",
    ),
    SpeedBenchmark(
        "recognition_small",
        "benchmarks/recognition.py --config osm_small",
        "--config osm_small --masks 1 --rounds 1",
        _NAMES,
        "recognition.md",
        kept="recognition/osm_small_cpu.json",
    ),
    SpeedBenchmark(
        "fast_paired",
        "benchmarks/fast_paired.py random osm_small osm_small_queries",
        "random osm_small osm_small_queries --tiny --masks 1 --rounds 1",
        (
            *((f"models.{name}[masks].gain", "times") for name in _FAST_MODELS),
            *((f"models.{name}[masks].names_per_second.*", "names/s") for name in _FAST_MODELS),
        ),
        "experiments.md",
        runs=1,
        kept="recognition/fast_paired.json",
    ),
    SpeedBenchmark(
        "packed_training",
        "benchmarks/packed_training.py osm_small",
        "osm_small --masks 1 --rounds 1",
        (
            ("cases[masks_per_image].gain", "times"),
            ("cases[masks_per_image].gain_in_total", "times"),
            ("cases[masks_per_image].names_per_second.*", "names/s"),
        ),
        "experiments.md",
        runs=1,
        kept="train_step/packed.json",
    ),
    SpeedBenchmark(
        "once_per_image",
        "benchmarks/once_per_image.py",
        "--tiny --rounds 1",
        (
            *((f"{part}[{key}].median_seconds.*", "s") for part, key in (("mean", "model"), ("decoding", "namer"))),
            *((f"{part}[{key}].gain", "times") for part, key in (("mean", "model"), ("decoding", "namer"))),
        ),
        "experiments.md",
        runs=1,
        kept="recognition/once_per_image.json",
    ),
    SpeedBenchmark(
        "zoom_windows",
        "benchmarks/zoom_windows.py",
        "--masks 1 --rounds 1",
        (
            *((f"cases[masks].parts.{part}.median_seconds.*", "s") for part in ("resizing", "tower", "naming")),
            *((f"cases[masks].parts.{part}.gain", "times") for part in ("resizing", "tower", "naming")),
            ("cases[masks].names_per_second.*", "names/s"),
        ),
        "experiments.md",
        runs=1,
        kept="recognition/zoom_windows.json",
    ),
    SpeedBenchmark(
        "checkpoint_speed",
        "benchmarks/checkpoint_speed.py osm_small --earlier {old}/osm/weights/osm_small",
        "osm_small --masks 1 --rounds 1",
        (("cases[masks].names_per_second.*", "names/s"),),
        "recognition.md",
        runs=1,
        kept="recognition/checkpoint_speed.json",
    ),
    SpeedBenchmark(
        "recognition_flamingo",
        "benchmarks/recognition.py --config osm_flamingo_small --masks 8,32",
        "--config osm_flamingo_small --masks 1 --rounds 1",
        _NAMES,
        "results.md",
        kept="recognition/osm_flamingo_small.json",
    ),
    SpeedBenchmark(
        "recognition_gpu",
        "benchmarks/recognition.py --config osm --random_weights",
        "--config osm --random_weights --tiny --masks 1 --rounds 1",
        _NAMES,
        "recognition.md",
        gpu=True,
    ),
    SpeedBenchmark(
        "startup",
        "benchmarks/startup.py",
        "--rounds 1",
        (("seconds.here.*", "s"),),
        "recognition.md",
        runs=1,
        kept="startup/loading.json",
    ),
    SpeedBenchmark(
        "plan",
        "-m osm plan osm_dinov3_24gb --gpu RTX4090 --no_search",
        "osm_nano --gpu RTX4090 --no_search",
        (("seconds", "s"),),
        "planning.md",
        result=WALL_TIME,
    ),
    SpeedBenchmark(
        "segmenters",
        "benchmarks/segmenters.py osm_small --folder {photos}",
        "osm_small --folder {photos} --images 1",
        (("median_seconds.*", "s"),),
        "demos.md",
        runs=1,
    ),
    SpeedBenchmark(
        "finetune",
        "benchmarks/finetune.py {work}/out {photos}",
        "{work}/out {photos} --photos 10",
        (("minutes", "min"), ("stages.seconds.*", "s")),
        "finetuning.md",
        runs=1,
        kept="finetune/finetune.json",
    ),
    SpeedBenchmark(
        "vocabularies",
        "benchmarks/vocabularies.py {queries} --datasets {sets}",
        "{queries} --datasets {sets} --limit 1 --ways free --modes any",
        (("cases[set,way].seconds", "s"), ("cases[set,way].names_per_second", "names/s")),
        "results.md",
        runs=1,
        kept="vocabularies/osm_small_queries.json",
    ),
    SpeedBenchmark(
        "label_series_nano",
        "benchmarks/label_series.py {nano} {photos} --name osm_nano --pictures 2000",
        "{nano} {photos} --name osm_nano --pictures 9 --masks 2",
        _SERIES,
        "labeling.md",
        runs=1,
        kept="labeling/osm_nano.json",
    ),
    SpeedBenchmark(
        "label_series_small",
        "benchmarks/label_series.py osm_small {photos} --pictures 200",
        "osm_small {photos} --pictures 6 --masks 1",
        _SERIES,
        "labeling.md",
        runs=1,
        kept="labeling/osm_small.json",
    ),
    SpeedBenchmark(
        "label_costs_nano",
        "benchmarks/label_costs.py {nano} {photos} --name osm_nano --pictures 40",
        "{nano} {photos} --name osm_nano --pictures 2",
        _COSTS,
        "scaling.md",
        threads=1,
        kept="scale/costs_osm_nano.json",
    ),
    SpeedBenchmark(
        "label_costs_small",
        "benchmarks/label_costs.py osm_small {photos} --pictures 40",
        "osm_small {photos} --pictures 2 --masks 1",
        _COSTS,
        "scaling.md",
        threads=1,
        kept="scale/costs_osm_small.json",
    ),
    SpeedBenchmark(
        "label_scale",
        "benchmarks/label_scale.py {nano} {photos} --name osm_nano --series workers,overhead",
        "{nano} {photos} --name osm_nano --series overhead --pairs 1 --pictures 4 --masks 2 --part 1",
        (
            ("local.seconds", "s"),
            ("overhead.seconds.*", "s"),
            ("overhead.ms_per_picture_between_parts.*", "ms"),
            ("overhead.median_extra_seconds", "s"),
        ),
        "scaling.md",
        runs=1,
        threads=1,
        kept="scale/ray_osm_nano.json",
    ),
    SpeedBenchmark(
        "serve_load_nano",
        "benchmarks/serve_load.py {nano}",
        f"{{nano}} {_FEW_REQUESTS}",
        _LOAD,
        "serving.md",
        runs=1,
        threads=1,
        kept="serving/load_osm_nano.json",
    ),
    SpeedBenchmark(
        "serve_load_small",
        "benchmarks/serve_load.py osm_small",
        f"osm_small {_FEW_REQUESTS}",
        _LOAD,
        "serving.md",
        runs=1,
        threads=1,
        kept="serving/load_osm_small.json",
    ),
    SpeedBenchmark(
        "serve_soak",
        "benchmarks/serve_load.py {nano} --soak 10000",
        "{nano} --soak 1000",
        (("soak[requests].resident_mib", "MiB"), ("growth_percent", "%")),
        "serving.md",
        runs=1,
        threads=1,
        kept="serving/soak_default.json",
    ),
    SpeedBenchmark(
        "gpu_speed",
        "benchmarks/gpu_speed.py {work}/gpu_speed.json",
        "{work}/gpu_speed.json --tiny",
        (("cases.*.document.cases[masks].names_per_second.ours", "names/s"), ("cases.*.seconds", "s")),
        "recognition.md",
        runs=1,
        result="{work}/gpu_speed.json",
        gpu=True,
    ),
    SpeedBenchmark(
        "gpu_smoke",
        "scripts/gpu_smoke.py --out {work}/smoke.json",
        "--cases fp32 --steps 6 --out {work}/smoke.json",
        (("seconds", "s"), ("cases.*.seconds_per_step", "s"), ("cases.*.memory_gib", "GiB")),
        "long_runs.md",
        runs=1,
        result="{work}/smoke.json",
        gpu=True,
        kept="gpu_smoke/h200.json",
    ),
)

NOT_SPEED = {
    # What they measure is not speed.
    "bench_layouts": "writes layouts of benchmarks",
    "cluster_simulation": "simulates clusters from the costs that label_costs.py measures",
    "families": "tests LLMs",
    "import_graph": "draws imports",
    "label_formats": "compares masks",
    "linear_probe": "measures accuracy",
    "plan_check": "measures memory",
    "risk_coverage": "measures probabilities",
    "serve_clients": "tests clients",
    "serve_faults": "tests faults",
    "several_views": "measures accuracy",
    # Modules and tables.
    "all_speed": "runs this table",
    "families_checks": "module of families.py",
    "families_llms": "module of families.py",
    "families_table": "module of families.py",
    "judged_metrics": "module of scripts/judged.py",
    "judged_report": "module of scripts/judged.py",
    "judgements": "module of scripts/judged.py",
    "left_out_classes": "module of scripts/open_ended.py",
    "loader_shards": "module of loader.py",
    "meter": "module of loader.py and train_step.py",
    "bench_tables": "writes tables",
    "page_tables": "module of the tables",
    "everyday_names": "module of scripts/imagenet_regions.py and imagenet_mosaics.py",
    "photo_folds": "module of scripts/experiments.py",
    "plan_tables": "writes tables",
    "rater_agreement": "module of scripts/judged.py",
    "rater_files": "module of scripts/judged.py",
    "rater_plan": "module of scripts/judged.py",
    "rater_statistics": "module of scripts/judged.py",
    "rating_page": "module of scripts/judged.py",
    "raw_figures": "module of all_speed.py",
    "scale_tables": "writes tables",
    "serve_tables": "writes tables",
    "shipped_tables": "writes tables",
    "small_tokenizer": "module of loader.py and recognition.py",
    "speed_benchmarks": "this table",
    "speed_inputs": "module of all_speed.py",
    "speed_machine": "module of all_speed.py",
    "speed_tables": "writes tables",
    "tower_cases": "module of scripts/tower_families.py",
    "tower_trials": "module of scripts/tower_families.py",
    "train_step_models": "module of train_step.py",
    "train_step_parts": "module of train_step.py",
}
"""All other files of benchmarks/, and what they are. A test fails if a file is neither here nor in the table."""
