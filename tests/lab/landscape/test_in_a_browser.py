"""The pages as Chromium runs them: everything is drawn, the slider moves every path, nothing complains."""

import html
import json
import re
import shutil
import subprocess

import pytest

from schuss.lab.curves import render as render_curves
from schuss.lab.diagnose import advise, measure
from schuss.lab.diagnose import render as render_diagnosis
from schuss.lab.entries import DEFAULT, find
from schuss.lab.landscape import TaylorModel, on_surface, render, render_model, surface
from schuss.lab.ranges import range_test_of
from schuss.lab.ranges import render as render_range
from schuss.lab.tasks import load
from schuss.schedules.words import parse

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-dev-shm-usage hide-scrollbars use-angle=swiftshader "
    "enable-unsafe-swiftshader"
)

LISTEN = """<head><script>
window.wrong = [];
addEventListener("error", (event) => wrong.push(event.message));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
for (const level of ["error", "warn"]) console[level] = (...words) => wrong.push(words.join(" "));
</script>"""

ACT = """<script>(async () => {
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
await wait(1500);
const found = {};
%s
found.theme = document.getElementById("theme").click() ?? document.documentElement.dataset.theme;
await wait(800);
found.after = document.querySelectorAll(".ground .contourlayer path").length;
found.drawn = document.querySelectorAll(".js-plotly-plot").length;
found.figures = document.querySelectorAll(".plot").length;
found.wrong = wrong;
const result = document.createElement("pre");
result.id = "result";
result.textContent = JSON.stringify(found);
document.body.append(result);
})();</script></body>"""

SLIDE = """
const slider = document.querySelector("[data-picture] input"), plot = document.querySelector(".ground .plot");
const levels = () => document.querySelectorAll(".ground .contourlayer path").length;
found.levels = [levels()];
const lengths = () => plot.data.filter((trace) => trace.name).map((trace) => trace.x.length);
found.whole = lengths();
slider.value = 5;
slider.dispatchEvent(new Event("input"));
await wait(600);
found.short = lengths();
found.levels.push(levels());
document.querySelector(".player button").click();
await wait(300);
found.levels.push(levels());
document.querySelector(".player button").click();
slider.value = 5;
slider.dispatchEvent(new Event("input"));
await wait(300);
found.told = document.querySelector("[data-picture] output").textContent;
found.buttons = [...plot.querySelectorAll(".modebar-btn")].map((button) => button.dataset.title);
found.picture = (await Plotly.toImage(plot, { format: "png" })).slice(0, 22);
"""


@pytest.fixture
def act(tmp_path):
    """`act(page, script)`: what a script finds in a page that Chromium has open."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed here, so the page cannot be opened")

    def run(page, script, width=1280):
        file = tmp_path / "page.html"
        page = page.replace("<head>", LISTEN, 1)
        head, _, tail = page.rpartition("</body>")
        file.write_text(head + ACT % script + tail, encoding="utf-8")
        flags = [f"--{flag}" for flag in FLAGS.split()]
        flags += [
            f"--user-data-dir={tmp_path}/profile",
            "--virtual-time-budget=20000",
            f"--window-size={width},6000",
        ]
        done = subprocess.run(
            [program, *flags, "--dump-dom", file.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found = re.search('<pre id="result">(.*?)</pre>', done.stdout)
        assert found, done.stderr[-500:]
        return json.loads(html.unescape(found[1]))

    return run


def test_the_slider_moves_every_path(act):
    picture = on_surface(surface("quadratic:kappa=10"), [find("sgd"), find("adam")], 20, lr=0.05)
    found = act(render([picture], "schuss landscape"), SLIDE)
    assert found["wrong"] == []
    assert found["drawn"] == found["figures"] == 3
    assert found["whole"] == [21, 21]
    assert found["short"] == [6, 6]
    assert found["told"] == "step 5 of 20"
    assert found["buttons"] == ["Download plot as a PNG"]
    assert found["picture"] == "data:image/png;base64,"
    assert found["levels"][0] > 10
    assert found["after"] == found["levels"][0]  # drawn again in the other colours
    assert found["levels"] == [found["levels"][0]] * 3  # neither the slider nor ▶ takes the landscape away
    assert found["theme"] == "dark"


HIDE = """
const press = () => document.querySelector(".legend button").click(), plot = document.querySelector(".ground .plot");
const shown = () => plot.data.filter((trace) => trace.name && trace.visible !== false).map((trace) => trace.name);
found.before = shown();
press();
await wait(400);
found.after_press = shown();
press();
await wait(400);
found.again = shown();
const box = document.querySelector(".legend"), last = box.lastElementChild.getBoundingClientRect();
found.inside = last.right <= box.getBoundingClientRect().right;
found.wide = document.documentElement.scrollWidth <= innerWidth;
"""


def test_the_legend_hides_a_path_and_fits_a_narrow_screen(act):
    entries = [find(name) for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adamw", "lion")]
    found = act(render([on_surface(surface("beale"), entries, 5, lr=0.01)], "schuss landscape"), HIDE, 520)
    assert found["wrong"] == []
    assert found["before"] == [entry.name for entry in entries] == found["again"]
    assert found["after_press"] == found["before"][1:]
    assert found["inside"]
    assert found["wide"]


LOOKS = """
const looks = [...Array(72).keys()].map(schuss.look);
found.colours = new Set(looks.slice(0, 9).map((look) => look.colour)).size;
found.pairs = new Set(looks.map((look) => look.colour + look.symbol)).size;
"""


def test_the_usual_entries_differ_in_colour_and_no_two_in_a_large_race_look_alike(act):
    found = act(render([on_surface(surface("beale"), [find("sgd")], 5, lr=0.01)], "schuss landscape"), LOOKS)
    assert found["colours"] == 9 == len(DEFAULT)
    assert found["pairs"] == 72


def test_schedules_are_drawn(act):
    entries = {line: parse(line) for line in ("cosine 100", "step every 30 rate 0.5")}
    found = act(render_curves(entries, 100, [0, 50, None, 100], "schuss schedule"), "")
    assert found["wrong"] == []
    assert found["drawn"] == found["figures"] == 1


def test_a_range_test_and_a_model_are_drawn(act):
    found = act(
        render_range(
            range_test_of(load("diabetes"), find("sgd"), steps=20), load("diabetes"), find("sgd"), "x"
        ),
        "",
    )
    assert found["wrong"] == []
    assert found["drawn"] == found["figures"] == 1
    page = render_model(TaylorModel(surface("beale")), "schuss landscape beale --model")
    found = act(page, "")
    assert found["wrong"] == []
    assert found["drawn"] == found["figures"] == 2


def test_every_figure_of_a_diagnosis_is_drawn(act):
    diagnosis = measure(load("diabetes"), find("momentum"), "diabetes", lr=0.01, steps=6)
    found = act(render_diagnosis(diagnosis, advise(diagnosis), "schuss diagnose diabetes"), "")
    assert found["wrong"] == []
    assert found["drawn"] == found["figures"] >= 4
