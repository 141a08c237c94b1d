"""Labels partitions on a Ray cluster, by a pool of actors that each have a model (Ray Data).

Ray starts an actor again that was killed, and gives its partition to another one, which continues with the parts that
are not complete. Only the numbers of partitions and errors travel back to the driver; the workers write the labels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from osm.errors import OsmError, RunStopped
from osm.labeling.formats.label_format import LabelFormat
from osm.labeling.label_options import LabelOptions
from osm.labeling.label_processes import AGAIN, for_process
from osm.labeling.parts.part_labeler import PartitionResult, PartLabeler, result_of
from osm.labeling.parts.partitions import LabelPartition
from osm.quiet import quiet_lines
from osm.terminal import message_logger

logger = message_logger(__name__)

_BYTES_OF_MASK = 4000  # more than most RLEs have
_STORE_BYTES = 256 << 20  # at least, Ray's shared memory, if it is started here


class RayWorker:
    """An actor's model. Ray Data calls it with batches of the number of one partition.

    Args:
        options: what is labeled, and how.
        reader: the format of the masks; None if a segmenter finds them.
        partitions: Ray's references to the partitions, by their numbers.
    """

    def __init__(self, options: LabelOptions, reader: type[LabelFormat] | None, partitions: dict[int, Any]) -> None:
        import ray

        self.partitions, self.get = partitions, ray.get
        self.labeler = PartLabeler(for_process(options, 0, 1), reader)
        self.error = ""
        try:
            with quiet_lines():
                self.labeler.load_model()
        except OsmError as error:
            # An error here would let Ray start the actor again and again.
            self.error = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Label the partitions of a batch, and return their results."""
        found = []
        for number in batch["partition"].tolist():
            if self.error:
                found.append(PartitionResult(number, self.error, True))
            else:
                found.append(result_of(self.labeler, self.get(self.partitions[number])))
        columns = zip(PartitionResult._fields, zip(*found, strict=True), strict=True)
        return {name: np.array(values) for name, values in columns}


def label_with_ray(
    options: LabelOptions, reader: type[LabelFormat] | None, left: list[LabelPartition]
) -> Iterator[PartitionResult]:
    """Label partitions on a Ray cluster, and yield their results as they come.

    Raises:
        OsmError: there is no Ray cluster at the address.
        RunStopped: Ray failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default, Ray reports its use to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own files have its other messages
    import ray
    import ray.data

    count = min(options.processes, len(left))
    _connect(ray, options, count, _BYTES_OF_MASK * sum(task.stated_masks for one in left for task in one.tasks))
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = [{"partition": partition.number} for partition in left]
        partitions = {partition.number: ray.put(partition) for partition in left}
        # Each partition is a block of its own, so that it is given to an actor, and repeated, by itself.
        results = ray.data.from_items(rows, override_num_blocks=len(left)).map_batches(
            RayWorker,
            fn_constructor_args=(options, reader, partitions),
            batch_size=1,
            # With more tasks in flight, a busy actor would keep a partition from an idle one.
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
            num_cpus=options.cpus_per_process or 1,
            num_gpus=_gpus(ray, options, count),
        )
        for row in results.iter_rows():
            yield PartitionResult(int(row["number"]), str(row["error"]), bool(row["stopped"]))
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunStopped(f"--engine ray: {type(error).__name__}: {' '.join(lines)[-500:]}; {AGAIN}") from None
    finally:
        ray.shutdown()


def _connect(ray: Any, options: LabelOptions, count: int, size: int) -> None:
    """Connect to a cluster, or start one on this machine with room for partitions of `size` bytes."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    more: dict[str, Any] = {}
    if address == "local":
        # A machine with fewer cores than processes still runs all of them.
        cpus = max(os.cpu_count() or 1, count * (options.cpus_per_process or 1)) + 1
        more = {"num_cpus": cpus, "object_store_memory": max(_STORE_BYTES, size), "include_dashboard": False}
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **more)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OsmError(f"--ray_address {address}: {str(error).splitlines()[0]}") from None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    logger.info(f"Ray: {count} processes on {len(nodes)} nodes")
    cpus = options.cpus_per_process or 1
    fitting = sum(int(node.get("CPU", 0) // cpus) for node in nodes)
    if fitting < count:
        logger.warning(f"Ray has room for {fitting} processes of {cpus} CPUs; the others wait for more nodes")


def _gpus(ray: Any, options: LabelOptions, count: int) -> float:
    """Return the share of a GPU that each process has."""
    if options.gpus_per_process is not None:
        return options.gpus_per_process
    gpus = 0.0 if options.device == "cpu" else ray.cluster_resources().get("GPU", 0.0)
    return min(1.0, gpus / count)
