"""Published results: reports are what their records give, and tables on pages are cut from those reports."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.records import read_records
from reports.__main__ import main
from tests.pages import PAGES, ROOT, name_of

PUBLISHED = ROOT / "reports" / "published"
FOLDERS = [report.parent for report in sorted(PUBLISHED.glob("**/report"))]
# A table of some of the rows and columns of a report's, with the report named above it.
CUT = re.compile(r"<!-- from (\S+) -->\n+((?:\|.*\n)+)")


def cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def table_rows(text: str) -> Iterator[dict[str, str]]:
    """Every row of every table, by column."""
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        titles, _, *rows = map(cells, block.splitlines())
        for row in rows:
            yield dict(zip(titles, row, strict=True))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_of_pages_are_cut_from_reports(page: Path):
    for source, block in CUT.findall(page.read_text()):
        published = list(table_rows((ROOT / source).read_text()))
        for row in table_rows(block):
            assert any(row.items() <= whole.items() for whole in published), row


def test_the_readme_shows_published_results():
    assert CUT.search((ROOT / "README.md").read_text())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PUBLISHED)))
def test_reports_are_what_their_records_give(folder: Path, tmp_path: Path):
    assert main(["render", str(folder), "--output", str(tmp_path)]) == 0
    for name in ("results.md", "results.csv", "results.json"):
        assert (tmp_path / name).read_text() == (folder / "report" / name).read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PUBLISHED)))
def test_published_records_are_whole_and_name_no_machine_path(folder: Path):
    records = read_records(folder)
    assert [record.error for record in records if record.status != "ok"] == []
    texts = [path for path in folder.rglob("*") if path.suffix in (".jsonl", ".md", ".csv", ".json", ".yaml", ".html")]
    assert [path.name for path in texts if re.search(r"/(?:tmp|home|root|work)/", path.read_text())] == []


def test_what_is_published_can_be_measured_anew():
    for folder in filter(Path.is_dir, PUBLISHED.glob("*/*")):  # by the CPU's instructions, then by name
        kind, name = ("tuning", folder.name[5:]) if folder.name.startswith("tune_") else ("suites", folder.name)
        assert (ROOT / "yaml_configs" / kind / f"{name}.yaml").exists()
    told = subprocess.run([PUBLISHED / "measure.sh", "glue"], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "measure.sh GLUE CHECKPOINTS NAME..." in told.stderr
