"""A run's phases as a Kubernetes JobSet: one indexed Job per phase, each started once the previous one has succeeded.

JobSet (jobset.x-k8s.io) gives the pods of a phase stable names, and restarts the whole set when a Job fails. Every start
resumes from the run's latest checkpoint, and a finished phase exits immediately.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from launcher.plan import EVALUATE, check_batch
from onediff.config.run import RunConfig
from onediff.errors import EXIT_BAD_INPUT, EXIT_NOT_A_NUMBER, UserError

PORT = 29500
SETTINGS = PurePosixPath("/etc/onediff")
"""Mount point of the run's configuration."""
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class Pods:
    """The resources of a run on the cluster."""

    image: str
    """Container image with OneDiff installed."""
    claim: str
    """PersistentVolumeClaim that every pod can write; it holds data, weights and the run's folder."""
    mount: PurePosixPath
    """Mount point of the claim and working directory; relative paths of the configuration start here."""
    nodes: int = 1
    """Pods per training phase."""
    gpus: int = 8
    """GPUs, and therefore ranks, per pod; 0 for one rank on the CPU."""
    restarts: int = 20
    """Number of failures after which the set fails."""
    grace_seconds: int = 600
    """Time to write a checkpoint when a pod is evicted."""


def manifests(config: RunConfig, phases: Sequence[str], pods: Pods) -> str:
    """The YAML for `kubectl apply`: the JobSet, and a ConfigMap with the configuration.

    Raises UserError for names that Kubernetes does not accept.
    """
    name = label(config.name, "name")
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"config.yaml": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)},
    }
    jobs: list[dict[str, Any]] = []
    for phase in phases:
        after = [{"name": jobs[-1]["name"], "status": "Complete"}] if jobs else []
        jobs.append(
            {
                "name": label(phase, "phases"),
                "replicas": 1,
                **({"dependsOn": after} if after else {}),
                "template": {"spec": job(config, name, phase, pods)},
            }
        )
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": pods.restarts,
                # A Job that its own failure policy ended would only fail again.
                "rules": [
                    {"name": "notByRestart", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": jobs,
        },
    }
    return yaml.dump_all([settings, jobset], Dumper=Readable, sort_keys=False, width=120)


class Readable(yaml.SafeDumper):
    """Writes multi-line strings as YAML blocks."""


def represented(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A string node, in block style if the text has several lines."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Readable.add_representer(str, represented)


def job(config: RunConfig, name: str, phase: str, pods: Pods) -> dict[str, Any]:
    """The specification of a phase's Job (batch/v1)."""
    nodes = 1 if phase == EVALUATE else pods.nodes
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "onediff",
                        "operator": "In",
                        "values": [EXIT_BAD_INPUT, EXIT_NOT_A_NUMBER],
                    },
                }
            ]
        },
        "template": {"spec": pod(name, script(config, name, phase, pods), pods)},
    }


def pod(name: str, work: str, pods: Pods) -> dict[str, Any]:
    """The specification of a pod that runs `work`, a shell script."""
    resources = {"resources": {"limits": {"nvidia.com/gpu": pods.gpus}}} if pods.gpus else {}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pods.grace_seconds,
        "containers": [
            {
                "name": "onediff",
                "image": pods.image,
                "workingDir": str(pods.mount),
                "command": ["sh", "-c", work],
                "ports": [{"containerPort": PORT}],
                **resources,
                "volumeMounts": [
                    {"name": "shared", "mountPath": str(pods.mount)},
                    {"name": "settings", "mountPath": str(SETTINGS)},
                    {"name": "memory", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": pods.claim}},
            {"name": "settings", "configMap": {"name": name}},
            # Data workers and NCCL exchange data there; the default in a pod is 64 MB.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def script(config: RunConfig, name: str, phase: str, pods: Pods) -> str:
    """The script of a pod. The first pod copies the configuration into the run's folder."""
    run = pods.mount / "runs" / config.name
    ranks = max(1, pods.gpus)
    if phase == EVALUATE:
        scores = run / "evaluation" / "scores.json"
        words = ["evaluate", str(run), "--report", str(scores), "--processes", str(ranks)]
        return f"set -e\nmkdir -p {quoted(scores.parent)}\nexec onediff {shlex.join(words)}\n"
    tensor = config.of_phase(phase).parallel.tensor
    batch = [config.phases[phase].global_batch, config.phases[phase].micro_batch]
    check_batch(phase, {"nodes": [pods.nodes] * 2, "tasks_per_node": ranks, "tensor": tensor, "batch": batch})
    words = ["train", str(run / "config.yaml"), "--run", str(run), "--phases", phase, "--resume"]
    words += ["--processes", str(ranks)]
    place = ""
    if pods.nodes > 1:
        place = f' --node "$JOB_COMPLETION_INDEX/{pods.nodes}" --meet {name}-{label(phase, "phases")}-0-0.{name}:{PORT}'
    return (
        "set -e\n"
        f"mkdir -p {quoted(run)}\n"
        f'own={quoted(run)}/config."$HOSTNAME"\n'
        f'cp {SETTINGS}/config.yaml "$own"\n'
        f'ln "$own" {quoted(run / "config.yaml")} 2>/dev/null || true  # another pod was first\n'
        'rm "$own"\n'
        f"exec onediff {shlex.join(words)}{place}\n"
    )


def quoted(path: PurePosixPath) -> str:
    """The path, quoted for a shell."""
    return shlex.quote(str(path))


def label(text: str, key: str) -> str:
    """A Kubernetes name made from `text`, the value of `key`. Raises UserError if that is impossible."""
    made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not LABEL.fullmatch(made) or len(made) > 40:
        raise UserError(f"{key}: {text!r} is not a valid Kubernetes name; use at most 40 letters, digits and hyphens")
    return made
