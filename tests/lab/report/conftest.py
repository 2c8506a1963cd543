"""A made-up race with every kind of ending, and a headless Chromium that is asked over its own pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from math import inf, isfinite, log10
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.lab.made_up import Contestant, raced

from schuss.lab import Budget, Task
from schuss.lab.entries import find
from schuss.lab.racing.assemble import profiles, task_report

EVALUATIONS, BATCH = 30, 64
# optimizer: (best lr, how low the loss gets, how fast, how steep the basin)
ENTRIES = {
    "sgd": (30.0, 0.30, 4.0, 0.5),  # beyond the range that is searched
    "momentum": (0.05, 0.20, 6.0, 0.5),
    "nesterov": (0.05, 0.198, 6.2, 0.5),
    "adagrad": (0.02, 0.34, 5.0, 0.15),
    "rmsprop": (1e-3, 0.24, 8.0, 0.35),
    "adam": (2e-3, 0.21, 9.0, 0.2),
    "adam + cosine": (2e-3, 0.17, 9.0, 0.2),
    "adamw": (2e-3, 0.19, 9.0, 0.2),
}


def finite(x):
    return float(x) if isfinite(x) else None


def made_up_result(run):
    """A loss that falls like an exponential to a floor, faster or higher off the best learning rate."""
    name, stage, parameters = run.contestant.name, run.stage, run.configuration.parameters
    best, floor, speed, steep = ENTRIES[name]
    generator = np.random.default_rng(int(run.id, 16))
    common = np.random.default_rng(run.seed).normal(scale=0.02)
    off = log10(parameters["lr"] / best)
    crashed = name == "rmsprop" and stage == "tune" and run.configuration.index == 3
    diverged = off > 0.75 and steep > 0.3 and not crashed
    time_ = np.linspace(0, 1, EVALUATIONS + 1)
    train = floor * np.exp(steep * off**2) + 2.0 * np.exp(-speed * time_ / (1 + off**2))
    train = train * np.exp(generator.normal(scale=0.03, size=time_.size))
    validation = train * (1.05 + 0.2 * time_) * np.exp(common + generator.normal(scale=0.02))
    accuracy = np.clip(1 - 0.39 * validation + generator.normal(scale=0.004, size=time_.size), 0.1, 1)
    accuracy[0] = 0.1
    rows = 8 if diverged else EVALUATIONS + 1
    if diverged:
        train[4:8] = np.array([5, 80, 9e4, inf])
        validation[4:8], accuracy[4:8] = train[4:8] * 1.2, 0.1
    steps = [20 * i for i in range(rows)]
    rate = parameters["lr"] / (1 + 30 * time_) ** (0.5 if name == "adagrad" else 0.05)
    curve = {
        "steps": steps,
        "examples": [BATCH * s for s in steps],
        "gradients": steps,
        "train_loss": [finite(x) for x in train[:rows]],
        "validation_loss": [finite(x) for x in validation[:rows]],
        "metric": [finite(x) for x in accuracy[:rows]],
        "lr": [parameters["lr"]] * rows,
        "effective_rate": [None, *(finite(x) for x in rate[1:rows])],
    }
    status = "crashed" if crashed else "diverged" if diverged else "finished"
    opened = status == "finished" and stage == "report"
    return {
        "status": status,
        "curve": curve,
        "test": {"loss": float(validation[-1]), "metric": float(accuracy[-1]) - 0.004} if opened else None,
        "divergence": {"step": steps[-1], "reason": "the loss was not finite"} if diverged else None,
        "error": 'Traceback (most recent call last):\n  File "my_task.py"\nValueError: </script><b>&'
        if crashed
        else None,
        "seconds": 1.5,
    }


def contestant(name):
    """An entry of the lab, with the space that the race searches for it."""
    optimizer, _, schedule = name.partition(" + ")
    entry = find(optimizer)
    return Contestant(name, entry, schedule or "constant", BATCH, entry.space)


def make_task(name, names, budget, stages=None):
    """One task's part of a report, as the race puts it together."""
    rows = torch.zeros(100, 3)
    task = Task(
        name=name,
        description="Handwritten digits, 8 × 8 pixels, a small fully connected network.",
        model=lambda: torch.nn.Linear(3, 1),
        loss=lambda model, batch: model(batch).mean(),
        train=rows,
        validation=rows,
        test=rows,
        metric_name="accuracy",
        best="max",
        batch_size=BATCH,
        steps=20 * EVALUATIONS,
    )
    entries = [contestant(each) for each in names]
    calibrations = {
        each: {"bytes_per_weight": 8.0 if "adam" in each else 4.0, "step": {"seconds": 3.4e-4}}
        for each in names
    }
    return task_report(raced(task, entries, budget, made_up_result, calibrations=calibrations, stages=stages))


def make_report(tasks=("digits",), names=tuple(ENTRIES), *, trials, seeds, stages=None):
    """The whole report; all but its tasks and profiles is as it would stand there."""
    budget = Budget(trials, finalists=1, report_seeds=seeds)
    reports = [make_task(name, names, budget, stages) for name in tasks]
    return {
        "format": "schuss-race-report",
        "version": 1,
        "schuss": "0.1.0",
        "title": f"{len(names)} optimizers on {' and '.join(tasks)}",
        "command": f"schuss race {','.join(tasks)} --preset default --out runs/{tasks[0]}",
        "preset": "default",
        "trials": trials,
        "seeds": budget.seeds(0),
        "tasks": reports,
        "profiles": profiles(reports),
        "machine": {
            "system": "Linux",
            "processor": "x86_64",
            "cores": 2,
            "python": "3.12.1",
            "torch": "2.13.0",
            "numpy": "2.2.0",
        },
        "complete": stages is None,
        "seconds": 812.4,
    }


@pytest.fixture(scope="session")
def example():
    """A race of all entries on one task."""
    return make_report(trials=8, seeds=5)


@pytest.fixture(scope="session")
def two_tasks():
    """A small race on two tasks, with profiles."""
    return make_report(("digits", "text"), ("sgd", "momentum", "adam"), trials=4, seeds=2)


@pytest.fixture(scope="session")
def nothing_finished():
    """A race that was interrupted before any run ended."""
    return make_report(trials=5, seeds=5, stages=0)


class Browser:
    """One page of a headless Chromium, driven over its debugging pipe: no port, no network, no driver."""

    def __init__(self, program: str, folder: Path):
        ours_in, theirs_out = os.pipe()
        theirs_in, self.out = os.pipe()
        self.inward = ours_in

        flags = (
            "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
            "disable-component-update disable-sync disable-dev-shm-usage hide-scrollbars "
            "remote-debugging-pipe"
        )
        # The browser looks for its pipe at 3 and 4; a small Python between us moves it there.
        move = (
            "import fcntl, os, sys; a, b = (fcntl.fcntl(int(x), fcntl.F_DUPFD, 10) for x in sys.argv[1:3]); "
        )
        move += "os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-Sc", move, str(theirs_in), str(theirs_out), program),
                *(f"--{flag}" for flag in flags.split()),
                *(f"--user-data-dir={folder / 'profile'}", "about:blank"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.count, self.events, self.session = b"", 0, [], None
        targets = self.ask("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def read(self, seconds: float):
        """The next message, or None if none came in time."""
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, *_ = select.select([self.inward], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self.inward, 1 << 20) if ready else b""
            if not chunk:
                return None
            self.rest += chunk
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def ask(self, method: str, **parameters):
        """Send a command and return its result; events on the way are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.read(60)) is not None:
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)
        raise AssertionError(f"Chromium did not answer {method}.")

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, mobile: bool = False
    ):
        """Open a file and wait until it has loaded."""
        self.events.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.ask("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            event = self.read(60)
            assert event is not None, "The page did not load."
            self.events.append(event)
        return self

    def run(self, script: str):
        """Evaluate JavaScript in the page; a promise is awaited."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str):
        """Whether a condition comes true within a few hundred frames."""
        return self.run(
            f"""(async () => {{
                let frames = 300;
                while (!({condition}) && frames--) await new Promise(requestAnimationFrame);
                return {condition};
            }})()"""
        )

    def press(self, key: str, code: int, text: str = ""):
        """Press and release a key."""
        common = {"key": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def draw_everything(self):
        """Scroll through the page so that every figure is drawn, and wait for them."""
        self.run(
            """(async () => {
                const frame = () => new Promise(requestAnimationFrame);
                const to = async (top) => {
                    scrollTo({top, behavior: "instant"});
                    await frame();
                    await frame();
                };
                for (let y = 0; y < document.body.scrollHeight; y += 700) await to(y);
                await to(0);
            })()"""
        )

    def complaints(self):
        """Errors and warnings in the console, and exceptions."""
        self.run("1")
        wrong = []
        for event in self.events:
            found = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                wrong.append(found["exceptionDetails"])
            if event["method"] == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
                wrong.append(found["args"])
            if event["method"] == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
                wrong.append(found["entry"])
        return wrong

    def requests(self):
        """The addresses that were asked for."""
        sent = [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def picture(self, path: Path, *, whole: bool = True):
        """Save what the page looks like."""
        shot = self.ask(
            "Page.captureScreenshot", captureBeyondViewport=whole, **(self.clip() if whole else {})
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def clip(self):
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def close(self):
        self.process.terminate()
        self.process.wait()
        os.close(self.out)
        os.close(self.inward)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, or a skip that says why not."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None or os.name != "posix":
        pytest.skip("no Chromium is installed here, so the page cannot be opened")
    opened = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
