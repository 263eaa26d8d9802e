"""What is made of records: changes, pictures, RESULTS.md and the README's tables."""

import re
from pathlib import Path

import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font

from bench.errors import BadInputError
from bench.samples import SHOWN, Figures, Record, read
from bench.tables import HERE, markdown, with_tables
from tests.bench.conftest import Bench

RECORDED = sorted((HERE / "results").glob("*.jsonl"))


@pytest.fixture(scope="module")
def fonts() -> None:
    """Open the fonts of pictures, whose files matplotlib keeps open."""
    for weight in ("normal", "bold"):
        get_font(findfont(FontProperties(weight=weight)))


def test_compare_tells_what_changed_and_how_the_machines_differ(
    bench: Bench, tmp_path: Path
) -> None:
    before, after = HERE / "results" / "pace.jsonl", read([HERE / "results" / "pace.jsonl"])
    kernel, after.machine["kernel"] = after.machine["kernel"], "7.0"
    after.samples[0] = after.samples[0]._replace(value=after.samples[0].value / 2)
    after.write(tmp_path / "after")

    status, out, err = bench("compare", str(before), str(tmp_path / "after"))

    assert (status, err) == (0, "")
    differ = f"The runs differ in kernel: {kernel}, 7.0."
    for told in ("\n1 of ", after.samples[0].case, "One round has no spread", differ):
        assert told in out
    assert re.search(r" 2(\.00)?x", out)
    Record(after.machine).write(tmp_path / "none")
    status, _, err = bench("compare", str(before), str(tmp_path / "none"))
    assert (status, err) == (2, "bench: the two runs have no case in common\n")


@pytest.mark.usefixtures("fonts")
def test_the_readme_results_and_pictures_are_those_of_the_recorded_samples(
    bench: Bench, tmp_path: Path
) -> None:
    committed, readme = (HERE.parent / "README.md").read_text(), tmp_path / "README.md"
    readme.write_text(
        re.sub(r"(<!-- bench:\S+ -->\n).*?(<!-- /)", r"\1old\n\2", committed, flags=re.DOTALL)
    )

    status, _, _ = bench("results", "--into", str(tmp_path), "--readme", str(readme))

    page = (tmp_path / "RESULTS.md").read_text()
    assert (status, readme.read_text(), page) == (0, committed, (HERE / "RESULTS.md").read_text())
    assert "<!-- bench:sendfile -->\n|  | sock_sendfile | aiozc |" in committed
    assert "- granian: the module granian is not installed" in page
    drawn = {path.stem: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert drawn.keys() == {*SHOWN["pictures"], *(f"{name}-dark" for name in SHOWN["pictures"])}
    assert all(len(picture) < 100_000 for picture in drawn.values())
    assert drawn.keys() == {path.stem for path in (HERE / "results").glob("*.svg")}
    assert all(f'src="results/{name}.svg"' in page for name in SHOWN["pictures"])


def test_a_table_that_is_not_known_is_refused() -> None:
    with pytest.raises(BadInputError, match="there is no table 'pigeons'; there are sendfile"):
        with_tables("<!-- bench:pigeons -->\n<!-- /bench -->", Figures(read(RECORDED)))
    assert markdown(Figures(Record({})), "sendfile") == ""
