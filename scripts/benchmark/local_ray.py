"""A small Ray on this machine, for benchmarks and tests."""

import logging

import ray


def start_ray(folder: str | None = None) -> None:
    """Start Ray with two CPUs and little memory, without its dashboard and its words.

    Args:
        folder: for Ray's files; a short path, as names of sockets may not be long. Default: Ray's.
    """
    ray.init(
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
