"""Training runs that are killed: a server, as importing takes longer than the runs, which forks a process for each.

A line of JSON on stdin asks for a run: {"config", "folder", "tiny": with TinyFlow, "seconds": kill it then,
"operation": kill it before that durable operation (a write: half way)}. The answer is {"status": exit code, -9: kill}.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import sklearn.datasets  # noqa: F401  what a run would import, imported once
import torch._dynamo  # noqa: F401
from tiny_flow import TinyFlow

from fastflow.training import checkpoint, start, train
from fastflow.training.build import load_data
from fastflow.training.config_file import parse_config


def serve() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run(request))
        print(json.dumps({"status": os.waitstatus_to_exitcode(_wait(child, request.get("seconds")))}), flush=True)


def _run(request: dict) -> int:
    with Path(request["folder"]).with_suffix(".log").open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        if request.get("tiny"):
            train.build_model = start.build_model = lambda config, about, units=None: TinyFlow(
                about["levels"], 64, about["classes"])
        if "operation" in request:
            _arm(request["operation"])
        try:
            config = parse_config(request["config"], "config")
            train.train(config, Path(request["folder"]), load_data(config.data))
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def _wait(child: int, seconds: float | None) -> int:
    if seconds is not None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _arm(operation: int) -> None:
    left = [operation]

    def dying(call, half=None):
        def counted(*args, **options):
            if left[0] == 0:
                if half:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*args, **options)

        return counted

    os.fsync, os.rename, os.replace = dying(os.fsync), dying(os.rename), dying(os.replace)
    shutil.rmtree = dying(shutil.rmtree)
    checkpoint._write = dying(checkpoint._write, lambda path, content: path.write_bytes(content[: len(content) // 2]))


if __name__ == "__main__":
    serve()
