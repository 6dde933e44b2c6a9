"""Where a job's tasks run: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.terminal.console import say_cpu
from pipeline.store import FeatureStore
from pipeline.tasks import OneProcess, Processes, Tasks
from schemas.records import Plan

WORTH_NNZ = 1 << 24
"""Activations from which on more than one process pays: starting them takes some two seconds."""

MEMORY_OF_A_WORKER = 3 << 29
"""Free memory in bytes that this machine must have for each process."""


def choose_tasks(store: FeatureStore, workers: int | None = None, address: str | None = None) -> Tasks:
    """Tasks for a job over the store; `workers` None: the cores of this machine where it pays, else one."""
    if address is not None:
        from pipeline.executors.on_ray.tasks import RayTasks

        return RayTasks(address, most=workers, root=store.layout.root)
    if workers is None:
        receipts = (receipt for name in store.plans for receipt in store.pass_receipts(name).values())
        workers = 1
        if sum(receipt.nnz for receipt in receipts) >= WORTH_NNZ:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            workers = min(len(os.sched_getaffinity(0)), free // MEMORY_OF_A_WORKER)
    return Processes(workers) if workers > 1 else OneProcess()


def choose_model_tasks(
    store: FeatureStore, plan: Plan, device: str, workers: int | None = None, address: str | None = None
) -> Tasks:
    """Tasks for a job that runs the plan's model on `device`.

    Each worker loads the model, which takes the plan's threads; so there is one unless more are requested,
    and on a Ray cluster a task has as many CPUs and, on `cuda`, a GPU.
    """
    if address is not None:
        from pipeline.executors.on_ray.tasks import RayTasks

        gpus, root = int(device == "cuda"), store.layout.root
        return RayTasks(address, cpus_per_task=plan.threads, gpus_per_task=gpus, most=workers, root=root)
    return Processes(workers) if workers is not None and workers > 1 else OneProcess()


def device_for(plan: Plan, device: str, address: str | None) -> str:
    """`auto`: on a Ray cluster what the pass was made on, here a GPU where torch sees one."""
    if device == "auto" and address is not None:
        return plan.device
    return local_device(device)


def local_device(device: str) -> str:
    """`auto`: a GPU where torch sees one; otherwise the CPU, and a line says why."""
    from pipeline.models.device import why_no_gpu

    if device != "auto":
        return device
    if why := why_no_gpu():
        say_cpu(why)
    return "cpu" if why else "cuda"


@contextmanager
def model_tasks(
    store: FeatureStore,
    site: str,
    device: str = "auto",
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[tuple[Tasks, str]]:
    """Tasks that run the model of the site's pass, and the device that they run it on."""
    plan = store.plans[store.site(site).pass_name]
    on = device_for(plan, device, address)
    with choose_model_tasks(store, plan, on, workers, address) as tasks:
        yield tasks, on
