"""The page: what it holds as a file, and what it does in Chromium."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.records import Parity
from reports.choice import apply_floor, choose
from reports.drawing import LINES
from reports.other_tables import other_tables
from reports.page import DASHES, page_html
from reports.runs import load_runs
from tests.fake_runs import ENTROPY, INT8, add, add_suite, checkpoint, early, record

ROOT = Path(__file__).resolve().parent.parent
MEGABYTES = 10**6
# Would run, or show, wherever it were not taken as text.
HOSTILE = "</script><script>window.taken = 1</script><img src=x onerror='window.taken = 1'>\"&{{ 7 * 7 }}"


class Outline(HTMLParser):
    """What a page is made of: its tags, headings and links, and the texts of its scripts and style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[str] = []
        self.style = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")
        if tag == "h2":
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        last = self.tags[-1] if self.tags else ""
        if last == "script":
            self.scripts[-1] += data
        elif last == "h2":
            self.headings[-1] += data.strip()
        elif last == "style":
            self.style += data


def written(folder: Path) -> str:
    runs = apply_floor(load_runs(folder))
    choices = choose(runs)
    return page_html(runs, choices, other_tables(runs, choices))


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of one task at two batch sizes; in its first group, an INVALID run, and a failed one of hostile names."""
    folder = tmp_path_factory.mktemp("run")
    add_suite(folder, policies=3)
    shared = {"task": "task0", "session": "0-pabee"}
    bad = Parity(rows=8, differing=3, below_epsilon=1, epsilon=0.1)
    add(folder, early("invalid", {"kind": "patience", "patience": 1}, parity=bad, **shared), 1.0)
    add(folder, early("slow", ENTROPY, recipe=INT8, engine="inductor", **shared), 9.0)
    hostile = checkpoint(HOSTILE, name=HOSTILE)
    add(folder, record("failed", status="error", error=HOSTILE, checkpoint=hostile, engine=HOSTILE, **shared))
    path = folder / "index.html"
    path.write_text(written(folder))
    return path


@pytest.fixture(scope="module")
def outline(page_path: Path) -> Outline:
    return Outline(page_path.read_text())


def test_sections_stand_in_the_order_they_are_read(outline: Outline):
    assert outline.headings == [
        "The answer",
        "Accuracy against measured speed-up",
        "Where examples leave: float32 against INT8",
        "Latency of a batch",
        "The answers in detail",
        "INT8 against float32, policy by policy",
        "Who pays for the speed",
        "Scores at equal layer speed-ups",
        "What training made of each exit",
        "Latency under load, simulated",
        "In LPOT's shape",
        "In the papers' shape",
        "Failed and INVALID runs",
        "Caveats",
        "Environment",
        "Runs",
    ]


def test_page_needs_nothing_but_itself(outline: Outline):
    assert {link for link in outline.links if not link.startswith("#")} == {"data:,"}
    assert "url(" not in outline.style
    assert "@import" not in outline.style


def test_names_are_text_whatever_they_hold(outline: Outline):
    assert outline.tags.count("script") == 3
    assert "img" not in outline.tags
    data = json.loads(outline.scripts[0])
    assert HOSTILE in {run["model"] for run in data["runs"]}
    assert HOSTILE in data["colours"]


def test_a_change_inside_its_noise_is_told_where_a_run_is_hovered_over(outline: Outline):
    runs = json.loads(outline.scripts[0])["runs"]
    changes = {run["name"]: run["change"] for run in runs if run["group"] == 0}
    assert changes["pabee, float32 on openvino, no exits"] == ""
    assert re.fullmatch(r"[+-]\d+\.\d( \(noise\))?", changes["pabee, float32 on openvino, entropy 0.233"])
    assert any("(noise)" in change for change in changes.values())


def test_page_of_a_hundred_runs_is_small(tmp_path: Path):
    assert add_suite(tmp_path, policies=8, rows=1000) >= 100
    assert len(written(tmp_path).encode()) <= 3 * MEGABYTES


def test_a_thousand_runs_render_in_a_gibibyte_and_in_proportion(tmp_path: Path):
    """Six times as many runs take no more than eight times the processor's seconds: 20 or so for a thousand."""
    few, many = tmp_path / "few", tmp_path / "many"
    runs = add_suite(few, policies=15, rows=872), add_suite(many, policies=120, rows=872)
    assert runs[1] >= max(1000, 6 * runs[0])
    seconds, peak_bytes = zip(*map(rendering, (few, many)), strict=True)
    assert seconds[1] < 8 * seconds[0]
    assert peak_bytes[1] < 2**30


def rendering(folder: Path) -> tuple[float, float]:
    """Seconds of the processor, so that busy neighbours do not count, and bytes of memory at the peak."""
    code = """
import re, resource, sys
from pathlib import Path
from reports.__main__ import main
assert main(["render", sys.argv[1]]) == 0
used = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss: that remembers the process this one was forked from.
peak_kilobytes = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(used.ru_utime + used.ru_stime, int(peak_kilobytes) * 1024)
"""
    command = [sys.executable, "-c", code, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    seconds, peak_bytes = map(float, ended.stdout.splitlines()[-1].split())
    return seconds, peak_bytes


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium on the PATH")
    with sync_playwright() as driver, driver.chromium.launch(executable_path=path, args=["--no-sandbox"]) as opened:
        yield opened


class Opened:
    """A page in the browser, with all that went wrong in it and all that it asked the network for."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, height: int = 900, scheme: str = "light"):
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.complaints.append(request.url))
        self.page.goto(path.as_uri())
        self.settle()
        self.complaints.remove(path.as_uri())

    def settle(self) -> None:
        self.page.wait_for_selector("main[aria-busy=false]")

    def choose(self, name: str, value: str) -> None:
        self.page.select_option(f"select[name={name}]", value)
        self.settle()

    def column(self, title: str) -> list[str]:
        """The cells of the rows that are shown."""
        titles = self.page.locator("#runs th").all_inner_texts()
        place = [text.strip(" ▲▼") for text in titles].index(title) + 1
        return self.page.locator(f"#runs tbody tr:visible td:nth-child({place})").all_inner_texts()

    def violations(self) -> list[str]:
        return [f"{found['id']}: {found['nodes'][0]['html']}" for found in Axe().run(self.page).response["violations"]]


@pytest.fixture
def opened(browser: Browser, page_path: Path) -> Iterator[Opened]:
    found = Opened(browser, page_path)
    yield found
    assert found.complaints == []
    assert found.page.evaluate("window.taken") is None
    found.page.close()


def test_first_screen_holds_the_answer_and_the_front(opened: Opened):
    assert "Early exit" in opened.page.locator("article strong").first.inner_text()
    assert "1 failed and 1 are\nINVALID" in opened.page.locator("main .warning").first.text_content()
    for chart in opened.page.locator("#fronts svg").all():
        box = chart.bounding_box()
        assert box
        assert box["y"] + box["height"] <= 900


def test_filters(opened: Opened):
    everything = opened.column("recipe")
    assert set(everything) == {"float32", "int8_static(kl)"}
    assert opened.page.locator("#fronts svg").count() == 2
    opened.choose("recipe", "int8_static(kl)")
    assert opened.column("recipe") == [recipe for recipe in everything if recipe == "int8_static(kl)"]
    opened.choose("engine", "inductor")
    assert opened.column("engine") == ["inductor"]
    assert opened.page.locator("#fronts svg").count() == 1
    assert "No INT8 run with a float32 run" in opened.page.inner_text("#shift-note")
    opened.choose("engine", "openvino")
    opened.choose("model", "deebert")
    assert set(opened.column("model")) == {"deebert"}
    opened.choose("group", "1")
    opened.choose("model", "")
    assert len(opened.column("model")) == 16
    assert opened.page.inner_text("#runs-note").startswith("16 of 67 runs.")
    opened.choose("engine", "inductor")
    assert opened.column("engine") == []
    assert opened.page.inner_text("#latency-note") == "No timed run matches."


def test_sorting_by_mouse_and_by_keyboard(opened: Opened):
    button = opened.page.get_by_role("button", name="ms / example")
    button.click()
    cells = opened.column("ms / example")
    times = [float(cell) for cell in cells if cell]
    assert times == sorted(times)
    assert cells[len(times) :] == [""]
    button.focus()
    opened.page.keyboard.press("Enter")
    cells = opened.column("ms / example")
    assert [float(cell) for cell in cells[:-1]] == times[::-1]
    assert cells[-1] == ""
    assert opened.page.locator("#runs th[aria-sort=descending]").inner_text().startswith("ms / example")


def test_hover_tells_what_a_point_is(opened: Opened):
    opened.page.locator("#front-1 path[aria-roledescription=point]").last.hover()
    tooltip = opened.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert re.search(r"run\s+(pabee|deebert), .* on openvino", tooltip.inner_text())
    assert re.search(r"dev %\s+\d+\.\d\d", tooltip.inner_text())
    assert re.search(r"from float32, points\s+[+-]\d+\.\d", tooltip.inner_text())


def test_where_exits_are_told_there_is_no_front(browser: Browser, tmp_path: Path):
    told = {"kind": "imposed", "exit_layers": [2]}
    add(tmp_path, record("fp32"), 8.0)
    add(tmp_path, record("int8", recipe=INT8), 2.0)
    add(tmp_path, early("told", told, recipe=INT8, parity=None, exit_counts={"dev": [0, 100, 0, 0]}), 1.2)
    path = tmp_path / "index.html"
    path.write_text(written(tmp_path))
    opened = Opened(browser, path)
    assert not opened.page.get_by_role("heading", name="Accuracy against measured speed-up").is_visible()
    assert opened.page.locator("#latencies svg").is_visible()
    assert opened.complaints == []


def test_policy_is_chosen_by_keyboard(opened: Opened):
    select = opened.page.locator("#shift")
    before = select.input_value()
    titles = opened.page.locator("#counts svg, #matrix svg")
    assert titles.count() == 2
    select.focus()
    opened.page.keyboard.press("End")
    opened.settle()
    assert select.input_value() != before
    assert "of dev rows" in opened.page.inner_text("#shift-note")
    assert re.search(r"\d+ of them at the same exit; INT8 rescues \d+ rows", opened.page.inner_text("#shift-note"))


def test_theme_follows_the_system_and_the_button(browser: Browser, page_path: Path):
    def background(opened: Opened) -> str:
        return opened.page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = (Opened(browser, page_path, scheme=scheme) for scheme in ("light", "dark"))
    backgrounds = background(light), background(dark)
    assert backgrounds[0] != backgrounds[1]
    for opened in (light, dark):
        opened.page.get_by_role("button", name="Dark").click()
        opened.settle()
    assert (background(dark), background(light)) == backgrounds
    assert light.complaints == dark.complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_accessible_and_no_sideways_scroll(browser: Browser, page_path: Path, width: int, scheme: str):
    opened = Opened(browser, page_path, width=width, scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.violations() == []
    assert opened.complaints == []


def test_every_recipe_has_its_line_on_the_page():
    assert set(LINES.values()) <= set(DASHES)
