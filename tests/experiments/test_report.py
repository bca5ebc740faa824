"""The report: one page, nothing loaded from elsewhere, every system in it."""

import base64
import html.parser
import io
import json
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from experiments import systems
from experiments.command_line import main
from experiments.report import newest_run
from experiments.run_dir import Table
from experiments.terminal import format_estimate, format_number, print_table

VOID = {"meta", "img", "br", "hr", "input", "link", "source"}


class Page(html.parser.HTMLParser):
    """Collects what the tests ask about, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(toy, capfd):
    assert main(["run", "toy", "--preset", "smoke"]) == 0
    assert main(["report"]) == 0
    assert "report  report.html" in capfd.readouterr().out
    return Path("report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(page):
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert tag not in ("script", "link", "iframe", "object", "embed")
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_can_be_read_by_everyone(page):
    parsed = Page(page)
    assert parsed.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
    caption = 'The mean of each seed: points around zero, "quoted" & <marked>.'
    (image,) = parsed.all("img")
    assert image["alt"] == caption
    assert caption in parsed.text
    identifiers = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for link in parsed.all("a"):
        assert link["href"].removeprefix("#") in identifiers
    for heading in parsed.all("th"):
        assert heading["scope"] in ("col", "rowgroup")
    assert "prefers-color-scheme: dark" in page


def test_the_figure_is_the_runs_figure(page):
    (image,) = Page(page).all("img")
    content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    assert content == next(Path("runs/toy").glob("*/figures/means.png")).read_bytes()


def test_the_page_has_all_systems_and_what_the_run_found(page):
    text = " ".join(Page(page).text.split())
    report = json.loads(next(Path("runs/toy").glob("*/report.json")).read_text())
    for system in systems.SYSTEMS:
        assert system.name in text
        assert system.paper in text
        if system.status == "available" and system.name != "Toy":
            assert f"Not run yet: python -m experiments run {system.available[0]}" in text
    assert "19 published systems" in text  # the eighteen and the toy
    for claim in report["claims"]:
        for part in ("sentence", "paper", "source", "measure", "criterion"):
            assert claim[part] in text
        assert format_estimate(claim) in text
    assert "holds: 1 does not hold: 0 undecided: 2" in text
    assert "The toy's draws are generated, not measured." in text
    assert "Shifted means" in text
    assert "a <shifted> mean" in text
    assert "draws.count 10" in text
    assert f"numpy {report['versions']['numpy']}" in text
    assert report["machine"]["processor"] in text


def test_the_newest_finished_run_counts(toy, capfd):
    for name in ("first", "second", "unfinished"):
        folder = f"runs/toy/{name}"
        assert main(["run", "toy", "--preset", "smoke", "--folder", folder]) == 0
    Path("runs/toy/unfinished/report.json").unlink()
    file = Path("runs/toy/first/report.json")
    report = json.loads(file.read_text())
    report["machine"]["date"] = datetime.fromisoformat("2100-01-01T00:00:00+00:00").isoformat()
    file.write_text(json.dumps(report))
    newest = newest_run("toy", Path("runs"))
    assert newest is not None
    assert newest.path == Path("runs/toy/first")
    assert newest_run("toy_planned", Path("runs")) is None


def test_mistakes(toy, capfd):
    assert main(["report", "--runs", "nowhere"]) == 1
    assert "there is no folder of runs at nowhere" in capfd.readouterr().err
    assert main(["run", "toy", "--preset", "smoke", "--folder", "runs/toy/one"]) == 0
    Path("runs/toy/one/report.json").write_text('{"experiment"')
    assert main(["report"]) == 1
    assert "report.json is not valid JSON" in capfd.readouterr().err
    assert not Path("report.html").exists()


def test_a_page_that_cannot_be_written(toy, capfd):
    Path("runs").mkdir()
    Path("file").write_text("")
    assert main(["report", "--output", "file/report.html"]) == 1
    assert "'file'" in capfd.readouterr().err


def test_an_empty_folder_of_runs_gives_a_page(toy, capfd):
    Path("runs").mkdir()
    assert main(["report", "--output", "deep/page.html"]) == 0
    assert "holds: 0" in Page(Path("deep/page.html").read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (3, "3"),
        (0.12345678, "0.1235"),
        (-1234.5678, "-1235"),
        (99999.0, "99999"),
        (1.5e-9, "1.5e-09"),
        (2.5e12, "2.5e+12"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (100.0, "100"),
        ("text", "text"),
    ],
)
def test_numbers(value, shown):
    assert format_number(value) == shown


@pytest.mark.parametrize(
    ("estimate", "low", "high", "shown"),
    [
        (0.98231, 0.98120, 0.98340, "0.9823 [0.9812, 0.9834]"),
        (12.0, 8.0, 16.0, "12.0 [8.0, 16.0]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (5.0, 5.0, 5.0, "5.000 [5.000, 5.000]"),
        (1e-7, 0.5e-7, 1.5e-7, "1e-07 [5e-08, 1.5e-07]"),
        (1234.0, 1200.0, 1268.0, "1234 [1200, 1268]"),
    ],
)
def test_estimates(estimate, low, high, shown):
    assert (
        format_estimate({"estimate": estimate, "low": low, "high": high, "values": [1, 2]})
        == f"{shown}, 2 seeds"
    )


def test_one_seed_has_no_interval():
    assert format_estimate({"estimate": 2.5, "low": None, "high": None, "values": [2.5]}) == "2.5, 1 seed"


def printed(table, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(console, table)
    return console.file.getvalue()


def test_a_wide_table_is_printed_in_parts():
    columns = ["method", *(name for i in range(6) for name in (f"measure {i}", "paper"))]
    rows = [[f"m{r}", *(f"{r}.{i} [0.123, 0.456]" for i in range(12))] for r in range(2)]
    text = printed(Table("what was measured", columns, rows), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("what was measured") == 1
    assert text.count("(continued)") == 5
    parts = text.split("(continued)")
    for i, part in enumerate(parts):
        assert f"measure {i}" in part
        assert "paper" in part  # beside what it belongs to
        assert part.count("m0") == part.count("m1") == 1
    assert all(cell in text for row in rows for cell in row)


def test_a_table_that_fits_is_printed_whole():
    table = Table("t", ["method", "one [95 %]", "two"], [["a long name", "0.12 [0.10, 0.14]", 3.0]])
    assert "(continued)" not in printed(table, 40)
    assert "0.12 [0.10, 0.14]" in printed(table, 40)
    narrow = printed(table, 30)  # on two lines, still one table
    assert "(continued)" not in narrow
    assert "0.14]" in narrow
