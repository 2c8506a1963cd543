"""A made-up race with every kind of ending, and a headless Chromium that is asked over its own pipe."""

import base64
import hashlib
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

from schuss.lab.statistics import (
    budget_curve,
    claims_of,
    compare_with_leader,
    cost_to_target,
    fixed_targets,
    lr_basin,
    mean_interval,
    median_interval,
    pairwise_profiles,
    performance_profiles,
    sample,
    time_to_target,
)

EVALUATIONS = 30
AXES = ("steps", "examples", "gradients")
# optimizer: (lowest lr, highest lr, best lr, how low the loss gets, how fast, how steep the basin)
ENTRIES = {
    "sgd": (1e-3, 1.0, 0.2, 0.30, 4.0, 0.5),
    "momentum": (1e-3, 1.0, 0.05, 0.20, 6.0, 0.5),
    "nesterov": (1e-3, 1.0, 0.05, 0.198, 6.2, 0.5),
    "adagrad": (1e-4, 1e-1, 0.02, 0.34, 5.0, 0.15),
    "rmsprop": (1e-5, 1e-2, 1e-3, 0.24, 8.0, 0.35),
    "adam": (1e-5, 1e-2, 2e-3, 0.21, 9.0, 0.2),
    "adam + cosine": (1e-5, 1e-2, 2e-3, 0.17, 9.0, 0.2),
    "adamw": (1e-5, 1e-2, 2e-3, 0.19, 9.0, 0.2),
}


def plain(x):
    return float(x) if x is not None and isfinite(x) else None


def as_interval(values):
    found = mean_interval(values)
    return {
        "mean": plain(found.centre),
        "low": plain(found.low),
        "high": plain(found.high),
        "sd": plain(found.sd),
        "n": found.n,
    }


def as_spread(values):
    found = median_interval(values)
    return {
        "mean": float(np.mean(values)),
        "median": found.centre,
        "low": plain(found.low),
        "high": plain(found.high),
        "coverage": found.coverage if isfinite(found.low) else None,
        "sd": float(np.std(values, ddof=1)),
        "n": found.n,
    }


def make_run(task, name, stage, seed, parameters, configuration):
    """A loss that falls like an exponential to a floor, faster or higher off the best learning rate."""
    _, _, best, floor, speed, steep = ENTRIES[name]
    key = f"{task} {name} {stage} {seed} {configuration}"
    identity = hashlib.sha256(key.encode()).hexdigest()[:16]
    generator = np.random.default_rng(int(identity, 16))
    common = np.random.default_rng(seed).normal(scale=0.02)
    off = log10(parameters["lr"] / best)
    crashed = name == "rmsprop" and stage == "tune" and configuration.endswith("3")
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
    status = "crashed" if crashed else "diverged" if diverged else "finished"
    curve = {
        "steps": steps,
        "examples": [64 * s for s in steps],
        "gradients": steps,
        "train_loss": [plain(x) for x in train[:rows]],
        "validation_loss": [plain(x) for x in validation[:rows]],
        "metric": [plain(x) for x in accuracy[:rows]],
        "lr": [parameters["lr"]] * rows,
        "effective_rate": [None, *(plain(x) for x in rate[1:rows])],
    }
    ended = status == "finished"
    return {
        "id": identity,
        "entry": name,
        "configuration": configuration,
        "stage": stage,
        "seed": seed,
        "status": status,
        "parameters": parameters,
        **{axis: curve[axis][-1] for axis in AXES},
        **{key: curve[key][-1] if ended else None for key in ("train_loss", "validation_loss", "metric")},
        "test": {"loss": curve["validation_loss"][-1], "metric": curve["metric"][-1] - 0.004}
        if ended and stage == "report"
        else None,
        "curve": curve,
        "divergence": {"step": steps[-1], "reason": "the loss was not finite"} if diverged else None,
        "error": 'Traceback (most recent call last):\n  File "my_task.py"\nValueError: </script><b>&'
        if crashed
        else None,
        "command": f"schuss race {task} --run {identity} --out runs/{task}",
        "seconds": 1.5,
    }


def cost_row(steps):
    return {
        "steps": plain(steps),
        "examples": plain(64 * steps),
        "gradients": plain(steps),
        "seconds": plain(1e-3 * steps),
    }


def make_task(name, names, trials, seeds):
    runs, configurations, report_runs = [], [], {}
    spaces = {e: {"lr": (*ENTRIES[e][:2], True), "1 - beta1": (0.02, 0.5, True)} for e in names}
    entries = [
        {
            "name": e,
            "optimizer": e.split(" + ")[0],
            "schedule": e.split(" + ")[1] if "+" in e else "constant",
            "batch_size": 64,
            "space": {d: {"low": x[0], "high": x[1], "log": x[2]} for d, x in spaces[e].items()},
            "fixed": {"nesterov": True} if e == "nesterov" else {},
            "trials": trials,
            "widened": ["lr"] if e == "sgd" else [],
            "space_limited": ["lr"] if e == "sgd" else [],
            "parameters": 50_890,
            "bytes_per_weight": 8.0 if "adam" in e else 4.0,
            "step": {"seconds": 3.4e-4},
        }
        for e in names
    ]
    for e in names:
        tuned = []
        for index, parameters in enumerate(sample(spaces[e], trials)):
            identity = f"{name}-{e}-{index}"
            run = make_run(name, e, "tune", 0, parameters, identity)
            runs.append(run)
            tuned.append(-1 if run["metric"] is None else run["metric"])
            configurations.append(
                {
                    "id": identity,
                    "entry": e,
                    "index": index,
                    "parameters": parameters,
                    "tune": run["metric"],
                    "confirm": None,
                    "chosen": False,
                }
            )
        best = configurations[len(configurations) - trials + int(np.argmax(tuned))]
        confirming = [make_run(name, e, "confirm", s, best["parameters"], best["id"]) for s in (1, 2, 3)]
        best["chosen"] = True
        best["confirm"] = as_spread([run["metric"] or 0.1 for run in confirming])
        report_runs[e] = [make_run(name, e, "report", s, best["parameters"], best["id"]) for s in seeds]
        runs += confirming + report_runs[e]
    scores = {e: [run["metric"] or 0.1 for run in rs] for e, rs in report_runs.items()}
    order = sorted(names, key=lambda e: -np.mean(scores[e]))
    found = compare_with_leader({e: -np.array(scores[e]) for e in order}) if order else {}
    ties = [e for e, c in found.items() if c.verdict == "tie"]
    bests = {
        e: [max(x for x in r["curve"]["metric"] if x is not None) for r in runs if r["stage"] == "confirm"]
        for e in names
    }
    values = fixed_targets(0.1, bests, lower_is_better=False) if names else []
    targets = []
    for q, value in zip((0.5, 0.9, 1.0), values, strict=bool(values)):
        rows = {}
        for e, rs in report_runs.items():
            times = [
                cost_to_target(
                    [np.nan if x is None else x for x in r["curve"]["metric"]],
                    r["curve"]["steps"],
                    value,
                    lower_is_better=False,
                )
                for r in rs
            ]
            summary = time_to_target(times, [r["steps"] for r in rs])
            columns = [cost_row(t) for t in times]
            rows[e] = {
                "reached": summary.reached,
                "n": summary.n,
                "median": cost_row(summary.median),
                "ert": cost_row(summary.ert),
                "seeds": list(seeds),
                "times": {axis: [c[axis] for c in columns] for axis in (*AXES, "seconds")},
            }
        targets.append({"q": q, "value": value, "ranking": q == 0.9, "entries": rows})
    sensitivity, curves = {}, {}
    for e in names:
        pool = [(c, r) for c in configurations for r in runs if c["id"] == r["configuration"]]
        pool = sorted(
            (r["parameters"]["lr"], r["status"], r["metric"])
            for c, r in pool
            if r["entry"] == e and r["stage"] == "tune"
        )
        metric = [np.nan if x is None else x for *_, x in pool]
        basin = lr_basin([x for x, *_ in pool], metric, lower_is_better=False, initial=0.1)
        sensitivity[e] = {
            "lr": [x for x, *_ in pool],
            "metric": [plain(x) for x in metric],
            "status": [s for _, s, _ in pool],
            "best_lr": basin and basin.best_lr,
            "low": basin and basin.low,
            "high": basin and basin.high,
            "decades": basin and basin.decades,
        }
        curve = budget_curve(metric, lower_is_better=False)
        curves[e] = {
            "n": curve.n.tolist(),
            **{k: [plain(x) for x in getattr(curve, k)] for k in ("expected", "low", "high")},
        }
    ranking_target = next((t["entries"] for t in targets if t["ranking"]), {})
    chosen = {c["entry"]: c for c in configurations if c["chosen"]}
    ranking = [
        {
            "rank": 1 if e == order[0] or e in ties else 1 + order.index(e),
            "tied": bool(ties) and (e == order[0] or e in ties),
            "entry": e,
            "configuration": chosen[e]["id"],
            "parameters": chosen[e]["parameters"],
            "metric": as_spread(scores[e]),
            "test_metric": as_spread([x - 0.004 for x in scores[e]]),
            "validation_loss": as_spread([r["validation_loss"] or 2.3 for r in report_runs[e]]),
            "train_loss": as_spread([r["train_loss"] or 2.3 for r in report_runs[e]]),
            "cost": ranking_target[e]["median"],
            "ert": ranking_target[e]["ert"],
            "reached": ranking_target[e]["reached"] / ranking_target[e]["n"],
            "sensitivity": sensitivity[e]["decades"],
            "bytes_per_weight": 8.0 if "adam" in e else 4.0,
            "step": {"seconds": 3.4e-4},
        }
        for e in order
    ]
    task = {
        "name": name,
        "spec": name,
        "description": "Handwritten digits, 8 × 8 pixels, a small fully connected network.",
        "metric": {"name": "accuracy", "best": "max", "bounds": [0.0, 1.0]},
        "optimum": None,
        "parameters": 50_890,
        "batch_size": 64,
        "horizon": {"steps": 600, "examples": 38_400, "gradients": 600},
        "evaluations": EVALUATIONS,
        "splits": {"train": 1078, "validation": 359, "test": 360, "how": "Split by hash."},
        "fingerprint": "3f2a9c",
        "entries": entries,
        "configurations": configurations,
        "runs": runs,
        "ranking": ranking,
        "verdict": {
            "text": f"Take {order[0]}: on {len(seeds)} fresh seeds it has the highest validation accuracy. "
            f"It ties with {', '.join(ties) or 'nobody'}; the others are behind by more than a seed's luck."
            if order
            else "Nothing finished. Look at what diverged.",
            "winner": order[0] if order else None,
            "headline": "No result" if not order else "A tie" if ties else "Decided",
            "notes": ["The intervals are over seeds."] if order else [],
            "kind": "none" if not order else "tie" if ties else "better",
            "tied": ties,
            "take": order[0] if order else None,
            "rank_by": "metric",
            "comparisons": [
                {
                    "leader": c.leader,
                    "other": e,
                    "unit": "accuracy",
                    "difference": {
                        "mean": plain(c.gap),
                        "low": plain(c.low),
                        "high": plain(c.high),
                        "sd": None,
                        "n": c.seeds,
                    },
                    "adjusted_low": plain(c.low),
                    "adjusted_high": plain(c.high),
                    "p": c.p,
                    "p_adjusted": c.p,
                    "verdict": c.verdict,
                    "seeds_needed": c.further_seeds,
                    "settles_as": c.settles_as,
                    "gap_needed": c.threshold,
                    "test": as_interval(np.array(scores[c.leader]) - scores[e]),
                    "test_agrees": True,
                }
                for e, c in found.items()
            ],
        },
        "budget_curves": curves,
        "targets": targets,
        "sensitivity": sensitivity,
        "claims": [],
        "diverged": [
            {k: r[k] for k in ("entry", "stage", "seed", "parameters")} | {"run": r["id"]} | r["divergence"]
            for r in runs
            if r["divergence"]
        ],
        "crashed": [
            {k: r[k] for k in ("entry", "stage", "seed", "parameters", "error")} | {"run": r["id"]}
            for r in runs
            if r["error"]
        ],
        "settings": [
            {
                "entry": e,
                "code": f"import schuss\n\noptimizer = schuss.torch.{e.title()}(model.parameters(), "
                f"lr={chosen[e]['parameters']['lr']:.6g})",
                "command": f"schuss race {name} --entries '{e}' --stage report --out runs/{name}",
            }
            for e in order
        ],
    }
    task["claims"] = claims_of(task)
    return task


def make_report(tasks=("digits",), names=tuple(ENTRIES), trials=20, seeds=tuple(range(10, 20))):
    reports = [make_task(name, names, trials, seeds) for name in tasks]
    profiles = None
    if len(reports) > 1:
        costs = {
            e: [
                inf if x is None else x
                for t in reports
                for x in t["targets"][1]["entries"][e]["times"]["gradients"]
            ]
            for e in names
        }
        found = performance_profiles(costs, points=61)
        profiles = {
            "cost": "gradients",
            "tau": found.tau.tolist(),
            "share": {e: x.tolist() for e, x in found.share.items()},
            "score": found.score,
            "pairs": [
                {"a": a, "b": b, "a_share": p.share[a].tolist(), "b_share": p.share[b].tolist()}
                for (a, b), p in pairwise_profiles(costs, points=61).items()
            ],
        }
    return {
        "format": "schuss-race-report",
        "version": 1,
        "schuss": "0.1.0",
        "title": f"{len(names)} optimizers on {' and '.join(tasks)}",
        "command": f"schuss race {','.join(tasks)} --preset default --out runs/{tasks[0]}",
        "preset": "default",
        "trials": trials,
        "seeds": {"tune": [0], "confirm": [1, 2, 3], "report": list(seeds)},
        "tasks": reports,
        "profiles": profiles,
        "machine": {
            "system": "Linux",
            "processor": "x86_64",
            "cores": 2,
            "python": "3.12.1",
            "torch": "2.13.0",
            "numpy": "2.2.0",
        },
        "complete": True,
        "seconds": 812.4,
    }


@pytest.fixture(scope="session")
def example():
    """A race of all entries on one task."""
    return make_report(trials=8, seeds=(10, 11, 12, 13, 14))


@pytest.fixture(scope="session")
def two_tasks():
    """A small race on two tasks, with profiles."""
    return make_report(("digits", "text"), ("sgd", "momentum", "adam"), trials=4, seeds=(10, 11))


@pytest.fixture(scope="session")
def nothing_finished():
    """A race that was interrupted before any run ended."""
    return make_report(names=(), trials=5) | {"complete": False}


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
