"""What is made of records: changes, pictures, RESULTS.md and the README's tables."""

from pathlib import Path

import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font

from bench.errors import BadInputError
from bench.samples import SHOWN, Figures, Record, Sample, read
from bench.tables import HERE, markdown, results, with_tables
from tests.bench.conftest import Bench

MACHINE = dict.fromkeys(("architecture", "cpu", "uvloop", "aiozc", "liburing", "backend"), "some")
MACHINE |= {"date": "2026-01-02T03:04:05+00:00", "kernel": "6.18.0-test", "cpus": "2"}
MACHINE |= {"memory_gib": "4", "python": "CPython 3.11.7"}
RECORDED = sorted((HERE / "results").glob("*.jsonl"))


def a_record() -> Record:
    """Make a record of all that pictures and tables are made of, aiozc at half of each figure."""
    record = Record(dict(MACHINE), ["python -m bench sendfile --json sendfile.jsonl"])
    record.missing["granian"] = "the module granian is not installed"
    cases = {
        "sendfile": ["small: 4 KiB, 1 conn.", "small: 64 KiB, 1 conn.", "cold: 64 of 32 MiB"],
        "middle": ["discards: 512 KiB, 1 conn.", "discards: 8 MiB, 1 conn."],
        "pace": ["default: 500 clients of 400 KB/s", "default: 3000 clients of 50 KB/s"],
        "mixed": ["mixed: for 5 s"],
        "send": ["sizes: 1000 x 4 KiB, 1 conn., buffer 64 KiB"],
        "http": ["files: 1 MiB, 16 conn."],
    }
    metrics = (
        *("time", "loop CPU", "process CPU", "lateness p50", "lateness p99", "lateness max"),
        *("filling CPU", "steady CPU", "wait p50", "wait p99", "wait max", "requests"),
    )
    for command, several in cases.items():
        for case in several:
            record.works[f"{command}/{case.partition(':')[0]}"] = {
                "title": "",
                "baseline": "sock_sendfile",
            }
            for who, value in (("sock_sendfile", 40.0), ("aiozc", 20.0)):
                for metric in metrics:
                    row = (command, case, who, 0, metric, "us")
                    record.samples.append(Sample(*row, value))
    return record


@pytest.fixture(scope="module")
def fonts() -> None:
    """Open the fonts of pictures, whose files matplotlib keeps open."""
    for weight in ("normal", "bold"):
        get_font(findfont(FontProperties(weight=weight)))


def test_compare_tells_what_changed_and_how_the_machines_differ(
    bench: Bench, tmp_path: Path
) -> None:
    before, after = a_record(), a_record()
    after.machine["kernel"] = "7.0"
    first = after.samples[0]
    after.samples[0] = first._replace(value=20)
    for name, record in (("a", before), ("b", after)):
        record.write(tmp_path / name)

    status, out, err = bench("compare", str(tmp_path / "a"), str(tmp_path / "b"))

    assert (status, err) == (0, "")
    for told in ("1 of ", "sock_sendfile", "2x", "One round has no spread", "in kernel: 6.18.0"):
        assert told in out
    Record(dict(MACHINE)).write(tmp_path / "none")
    status, _, err = bench("compare", str(tmp_path / "a"), str(tmp_path / "none"))
    assert (status, err) == (2, "bench: the two runs have no case in common\n")


@pytest.mark.usefixtures("fonts")
def test_results_pictures_and_the_readme_are_written_from_records(
    bench: Bench, tmp_path: Path
) -> None:
    file, readme = tmp_path / "a.jsonl", tmp_path / "README.md"
    a_record().write(file)
    readme.write_text("before\n<!-- bench:sendfile -->\nold\n<!-- /bench -->\nafter\n")

    status, _, _ = bench("results", str(file), "--into", str(tmp_path), "--readme", str(readme))

    assert status == 0
    page = (tmp_path / "RESULTS.md").read_text()
    for part in (
        "python -m bench record",
        "python -m bench sendfile --json sendfile.jsonl",
        "| 4 KiB, 1 conn., cached | 40 us ±0 % | 20, 2x |",
        "- granian: the module granian is not installed",
        "| 512 KiB, 1 conn. | 40 us ±0 % | 20, 2x |",
    ):
        assert part in page
    told = readme.read_text()
    assert told.startswith("before\n<!-- bench:sendfile -->\n|  | sock_sendfile | aiozc |")
    assert told.endswith("|\n<!-- /bench -->\nafter\n")
    drawn = {path.stem: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert drawn.keys() == {*SHOWN["pictures"], *(f"{name}-dark" for name in SHOWN["pictures"])}
    assert all(len(picture) < 100_000 for picture in drawn.values())
    assert "takes 0.50x" in drawn["sizes"]
    assert all(f'src="results/{name}.svg"' in page for name in SHOWN["pictures"])


def test_what_pictures_cannot_be_made_of_is_refused(bench: Bench, tmp_path: Path) -> None:
    Record(dict(MACHINE)).write(tmp_path / "none")
    status, _, err = bench("plot", str(tmp_path / "none"), "--into", str(tmp_path))
    assert status == 2
    assert "no figures in these files that a picture is made of" in err


def test_a_table_that_is_not_known_is_refused() -> None:
    with pytest.raises(BadInputError, match="there is no table 'pigeons'; there are sendfile"):
        with_tables("<!-- bench:pigeons -->\n<!-- /bench -->", Figures(a_record()))
    assert markdown(Figures(Record({})), "sendfile") == ""


def test_the_readme_and_results_are_those_of_the_recorded_samples() -> None:
    figures = Figures(read(RECORDED))
    readme, page = HERE.parent / "README.md", HERE / "RESULTS.md"
    drawn = [name for name in SHOWN["pictures"] if (HERE / "results" / f"{name}.svg").exists()]

    assert with_tables(readme.read_text(), figures) == readme.read_text()
    assert results(figures, drawn) == page.read_text()
    assert "<!-- bench:sendfile -->" in readme.read_text()
    for picture in (HERE / "results").glob("*.svg"):
        assert picture.stat().st_size < 100_000
