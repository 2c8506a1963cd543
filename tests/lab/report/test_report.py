"""The page, as text and as Chromium shows it."""

import base64
import json
import re
from contextlib import suppress
from html.parser import HTMLParser
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import pytest
from numpy.testing import assert_allclose

from schuss.lab.pages.words import interval
from schuss.lab.report import schema
from schuss.lab.report.bands import bands
from schuss.lab.report.page import render

SECTIONS = ["verdict", "ranking", "budget", "convergence", "basin", "targets", "textbooks", "settings"]
SECTIONS += ["diverged", "runs", "how"]


class Outline(HTMLParser):
    """What a page is made of: ids, links inside it, addresses it would fetch, its text, what is left open."""

    VOID = frozenset(["meta", "link", "input", "br", "img", "hr"])

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.fetched, self.text, self.open = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        for name in ("href", "src"):
            if found.get(name, "").startswith("#"):
                self.links.append(found[name][1:])
            elif name in found:
                self.fetched.append(found[name])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(example):
    return render(example)


@pytest.fixture(scope="module")
def file(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, "utf-8")
    return path


def conforms(value, kind, where="report"):
    """Check plain data against the schema's types: keys, values and what is in lists."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        hints, marked = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        required = {name for name in hints if get_origin(marked[name]) is not NotRequired}
        assert required <= set(value) <= set(hints), f"{where} has the keys {sorted(value)}"
        for name in value:
            conforms(value[name], hints[name], f"{where}.{name}")
    elif origin is list:
        for item in value:
            conforms(item, inner[0], f"{where}[]")
    elif origin is dict:
        if get_origin(inner[0]) is Literal:
            assert set(value) == set(get_args(inner[0])), f"{where} has the keys {sorted(value)}"
        for item in value.values():
            conforms(item, inner[1], f"{where}{{}}")
    elif origin is Literal:
        assert value in inner, f"{where} is {value!r}"
    elif origin in (Union, UnionType):
        *others, last = [each for each in inner if (each is NoneType) == (value is None)]
        for each in others:
            with suppress(AssertionError):
                conforms(value, each, where)
                return
        conforms(value, last, where)
    elif kind is not Any:
        assert isinstance(value, (int, float) if kind is float else kind), f"{where} is {value!r}"


class TestText:
    def test_the_example_is_a_report(self, example, two_tasks):
        conforms(example, schema.Report)
        conforms(two_tasks, schema.Report)

    def test_every_section_is_there_once_and_every_link_leads_somewhere(self, example, page):
        outline = Outline(page)
        assert outline.open == []
        assert len(set(outline.ids)) == len(outline.ids)
        assert {f"t0-{name}" for name in SECTIONS} <= set(outline.ids)
        runs = {f"run-{run['id']}" for run in example["tasks"][0]["runs"]}
        assert set(outline.links) <= set(outline.ids) | runs

    def test_nothing_is_fetched_and_the_page_forbids_it(self, page):
        assert Outline(page).fetched == ["data:,"]
        assert "default-src 'none'" in page
        assert page.count("plotly.js v") == 1

    def test_the_numbers_are_the_reports(self, example, page):
        text = " ".join(Outline(page).text)
        task = example["tasks"][0]
        assert task["verdict"]["text"] in text
        for row in task["ranking"]:
            assert interval(row["metric"]) in text
            assert interval(row["test_metric"]) in text
        for claim in task["claims"]:
            assert claim["claim"] in text
        for setting in task["settings"]:
            assert setting["code"] in text

    def test_the_data_inside_is_the_report_itself(self, example, page):
        inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
        assert inside is not None
        assert json.loads(inside[1])["report"] == example

    def test_text_from_a_run_cannot_become_markup(self, example, page):
        assert "</script><b>&" in example["tasks"][0]["crashed"][0]["error"]
        assert "</script><b>" not in page
        hostile = {**example, "title": "<img src=x onerror=alert(1)>"}
        assert "<img src=x" not in render(hostile).split('id="data"')[0]

    def test_is_a_pure_function(self, example, page):
        before = json.dumps(example)
        assert render(example) == page
        assert json.dumps(example) == before

    def test_ties_are_marked(self, example):
        tied = json.loads(json.dumps(example))
        task = tied["tasks"][0]
        before = sum(row["tied"] for row in task["ranking"])
        assert render(example).count('class="equals"') == before == 6
        task["ranking"][0] |= {"tied": True}
        task["verdict"]["comparisons"][0] |= {"verdict": "tie", "seeds_needed": 14, "settles_as": "equal"}
        found = render(tied)
        assert found.count('class="equals"') == before + 1
        assert "about 14 further seeds would show that no gap counts" in found

    def test_a_verdict_that_the_test_split_contradicts_is_flagged(self, example):
        contradicted = json.loads(json.dumps(example))
        comparison = contradicted["tasks"][0]["verdict"]["comparisons"][0]
        comparison |= {"verdict": "better", "test_agrees": False}
        comparison["test"] |= {"mean": -0.0034, "low": -0.0051, "high": -0.0017}
        found = render(contradicted)
        assert f"{comparison['leader']} is better here; on test {comparison['other']} is better" in found
        assert "−0.0034<br><small>(−0.0051 … −0.0017)</small>" in found

    def test_says_what_the_intervals_are_over(self, example, page):
        text = " ".join(" ".join(Outline(page).text).split())
        assert example["tasks"][0]["verdict"]["headline"] in text
        assert "The intervals are over 5 training seeds on one validation split" in text
        assert "the interval of the median (95 % or more; 94 % with five seeds)" in text
        assert "at most one race in twenty puts an entry behind the leader" in text

    def test_the_budget_does_not_contradict_the_verdict(self, page):
        assert "is your optimizer" not in page
        assert "on the one seed used for tuning" in page

    def test_no_gap_that_counts_is_not_a_failure(self, example):
        found = json.loads(json.dumps(example))
        found["tasks"][0]["claims"][0]["verdict"] = "no gap that counts"
        assert '<span class="badge">no gap that counts</span>' in render(found)
        assert 'class="claim no-gap-that-counts"' in render(found)

    def test_unreached_costs_are_infinite(self, example):
        lost = json.loads(json.dumps(example))
        lost["tasks"][0]["ranking"][0]["cost"] = dict.fromkeys(("steps", "examples", "gradients", "seconds"))
        assert '<td class="n">∞</td>' in render(lost)

    def test_an_unfinished_race_says_so(self, nothing_finished):
        found = render(nothing_finished)
        assert "This race is not finished" in found
        assert "nothing to rank" in found

    def test_refuses_other_files(self):
        with pytest.raises(ValueError, match="format=None is not 'schuss-race-report'"):
            render({})


class TestBands:
    def task(self, *losses, statuses=None):
        def run(values, status):
            steps = list(range(len(values)))
            columns = dict.fromkeys(("steps", "examples", "gradients"), steps)
            curves = dict.fromkeys(("train_loss", "validation_loss", "metric", "effective_rate"), values)
            return {"entry": "a", "stage": "report", "status": status, "curve": columns | curves}

        statuses = statuses or ["finished"] * len(losses)
        return {
            "entries": [{"name": "a", "step": {"seconds": 0.5}}, {"name": "idle", "step": {"seconds": None}}],
            "metric": {"best": "min"},
            "runs": [run(values, status) for values, status in zip(losses, statuses, strict=True)],
        }

    def test_medians_and_the_interval_of_their_order(self):
        found = bands(self.task(*([float(x), 4.0] for x in range(1, 7))))
        assert list(found) == ["a"]
        for quantity in ("train_loss", "metric"):
            columns = found["a"][quantity]
            assert (columns["centre"], columns["low"], columns["high"]) == (
                [3.5, 4.0],
                [1.0, 4.0],
                [6.0, 4.0],
            )
        assert found["a"]["train_loss"]["log"]
        assert found["a"]["seconds"] == [0.0, 0.5]

    @pytest.mark.parametrize("seeds", [2, 3, 5, 10])
    def test_a_band_of_accuracies_stays_within_them(self, seeds):
        accuracies = 1 - 0.2 * np.random.default_rng(seeds).random((seeds, 20)) ** 8
        found = bands(self.task(*accuracies.tolist()))["a"]["metric"]
        known = [x for side in ("centre", "low", "high") for x in found[side] if x is not None]
        assert 0 <= min(known) <= max(known) <= 1

    def test_negative_losses_are_not_logged(self):
        found = bands(self.task([-1.0], [3.0]))["a"]["train_loss"]
        assert (found["centre"], found["log"]) == ([1.0], False)

    def test_a_diverged_run_is_not_forgotten(self):
        found = bands(self.task([3.0, 1.0], [3.0, 2.0], [3.0], statuses=["finished", "finished", "diverged"]))
        assert_allclose(found["a"]["metric"]["centre"], [3.0, 2.0])  # the median of 1, 2 and ∞
        lost = bands(self.task([3.0, 1.0], [3.0], [3.0], statuses=["finished", "diverged", "diverged"]))
        assert lost["a"]["metric"]["centre"] == [3.0, None]

    def test_one_seed_has_no_band(self):
        found = bands(self.task([2.0, 1.0]))["a"]["train_loss"]
        assert found["low"] == found["high"] == [None, None]


DRAWN = """[...document.querySelectorAll('.js-plotly-plot')]
    .filter(plot => plot.querySelector('.scatterlayer .trace')).length"""


@pytest.fixture(scope="module")
def opened(browser, file):
    """The page at a desk, in the light, all drawn; each test leaves it as it was."""
    browser.open(file).draw_everything()
    return browser


class TestInChromium:
    def test_draws_everything_quietly_and_offline(self, opened, file, example):
        assert opened.complaints() == []
        assert opened.requests() == [file.as_uri()]
        figures = "document.querySelectorAll('figure[data-figure]:not([data-figure=basin])').length"
        assert opened.run(DRAWN) == opened.run(figures) + len(example["tasks"][0]["sensitivity"])

    def test_the_toggle_turns_page_and_plots(self, opened):
        colours = """[[document.querySelector('[data-figure=budget] .xtick text'), 'fill'],
            [document.body, 'backgroundColor']].map(([node, name]) => getComputedStyle(node)[name])
            .map(colour => colour.match(/\\d+/g).reduce((sum, part) => sum + Number(part), 0))"""
        ink, paper = opened.run(colours)
        assert ink < paper
        opened.run("document.getElementById('theme').click()")
        ink, paper = opened.run(colours)
        assert ink > paper
        opened.run("document.getElementById('theme').click()")
        assert opened.run(colours)[0] < opened.run(colours)[1]

    def test_axes_of_an_accuracy_end_where_accuracies_do(self, opened):
        choose = "document.querySelector('[data-figure=convergence] input[value={}]').click()"
        opened.run(choose.format("metric"))
        drawn = "[data-figure=convergence] .plot, [data-figure=budget] .plot, .panel"
        ranges = f"""[...document.querySelectorAll('{drawn}')]
            .filter(plot => plot._fullLayout).map(plot => plot._fullLayout.yaxis.range)"""
        found = opened.run(ranges)
        opened.run(choose.format("validation_loss"))
        assert len(found) == 10  # convergence, budget, and the eight entries' basins
        assert all(0 <= low < high <= 1 for low, high in found)

    def test_arrow_keys_choose_an_axis(self, opened):
        title = "document.querySelector('[data-figure=convergence] .xtitle').textContent"
        assert opened.run(title) == "steps"
        opened.run("document.querySelector('[data-figure=convergence] input[value=steps]').focus()")
        opened.press("ArrowRight", 39)
        assert opened.run(title) == "examples"
        opened.press("ArrowLeft", 37)
        assert opened.run(title) == "steps"

    def test_the_legend_hides_an_entry_everywhere(self, opened):
        count = """[...document.querySelectorAll('[data-figure=budget], [data-figure=targets]')]
            .map(figure => figure.querySelector('.plot').data.filter(t => t.name === 'sgd').length)"""
        press = "document.querySelector('[data-figure=budget] [data-entry=sgd]').click()"
        pressed = "document.querySelector('[data-figure=targets] [data-entry=sgd]').ariaPressed"
        assert opened.run(count) == [1, 1]
        opened.run(press)
        assert (opened.run(count), opened.run(pressed)) == ([0, 0], "false")
        opened.run(press)
        assert (opened.run(count), opened.run(pressed)) == ([1, 1], "true")

    def test_a_link_opens_the_page_of_its_run(self, opened, example):
        run = example["tasks"][0]["crashed"][-1]
        page = f"document.getElementById('run-{run['run']}')"
        assert opened.run(page) is None  # it is not among the first that are listed
        opened.run(f"document.querySelector('a[href=\"#run-{run['run']}\"]').click()")
        opened.draw_everything()
        assert opened.run(f"{page}.open")
        text = opened.run(f"{page}.textContent")
        assert run["error"] in text
        (command,) = [each["command"] for each in example["tasks"][0]["runs"] if each["id"] == run["run"]]
        assert command in text
        assert opened.run(f"{page}.querySelectorAll('.scatterlayer .trace').length") == 2
        assert opened.complaints() == []

    def test_the_keyboard_reaches_everything(self, opened):
        first = "document.querySelector('a, button, input, select, summary, [tabindex]')"
        assert opened.run(f"{first}.focus(), {first}.className") == "skip"
        reached = []
        for _ in range(110):
            opened.press("Tab", 9)
            reached.append(opened.run("(a => `${a.className} ${a.id} ${a.tagName}`)(document.activeElement)"))
        everything = " ".join(reached)
        assert "theme" in reached[0]
        for part in ("scroll", "BUTTON", "SUMMARY", "INPUT", "SELECT", "copy", "PRE"):
            assert part in everything

    def test_a_phone_scrolls_one_way_only(self, browser, file):
        browser.open(file, width=360, height=740, mobile=True).draw_everything()
        browser.run("for (const d of document.querySelectorAll('details:not(.runlist *)')) d.open = true")
        browser.run("document.querySelector('.runlist details').open = true")
        browser.draw_everything()
        assert browser.run("document.documentElement.scrollWidth") == 360
        wide = """[...document.querySelectorAll('main *')]
            .filter(e => !e.closest('.scroll, pre, svg, .plot, .panel'))
            .filter(e => e.getBoundingClientRect().right > 361)
            .map(e => e.tagName + e.className)"""
        assert browser.run(wide) == []
        assert browser.complaints() == []

    def test_paper_is_light_and_complete(self, browser, file):
        browser.open(file, dark=True)  # not scrolled: most figures are still to be drawn
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 26)"
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.ask("Emulation.setEmulatedMedia", media="print", features=features)
        browser.run("dispatchEvent(new Event('beforeprint'))")
        drawn = """[...document.querySelectorAll('.plot, .panel')].filter(plot => !plot.closest('.runs'))
            .every(plot => plot.querySelector('.scatterlayer .trace'))"""
        assert browser.until(drawn)
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        widest = "Math.max(...[...document.querySelectorAll('.main-svg')].map(e => e.clientWidth))"
        assert browser.run(widest) == 680  # between the margins of A4 and of Letter
        tick = browser.run("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert sum(map(int, re.findall(r"\d+", tick))) < 350
        assert browser.complaints() == []

    def test_what_is_printed_is_whole(self, browser, file):
        """The links of the last section lead to places in the same document, so their sheet is there."""
        browser.open(file)
        printed = base64.b64decode(browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"])
        for place in ("t0-settings", "t0-runs"):
            assert f"/Dest /{place}".encode() in printed

    def test_two_tasks_and_their_profiles(self, browser, two_tasks, tmp_path):
        path = tmp_path / "two.html"
        path.write_text(render(two_tasks), "utf-8")
        browser.open(path).run("document.getElementById('profiles').scrollIntoView({behavior: 'instant'})")
        lines = "document.querySelectorAll('[data-figure=profiles] .scatterlayer .trace').length"
        assert browser.until(f"{lines} === 3")
        browser.run(
            """(select => { select.value = '0'; select.dispatchEvent(new Event('change')); })
            (document.querySelector('[data-figure=profiles] select'))"""
        )
        assert browser.run(lines) == 2
        assert browser.complaints() == []

    def test_a_race_in_which_nothing_finished(self, browser, nothing_finished, tmp_path):
        path = tmp_path / "nothing.html"
        path.write_text(render(nothing_finished), "utf-8")
        assert browser.open(path).complaints() == []
