"""The script of docs/tensorboard.md does what the page says."""

import re
from pathlib import Path

import event_files
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tensorboard.md"


@pytest.mark.launch
def test_the_script_of_the_page(dprun, tmp_path):
    event_files.reader()
    script = tmp_path / "see.py"
    script.write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    done = dprun(2, script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = event_files.accumulated(tmp_path / "runs" / "digits")
    accuracy = [s.value for s in seen.Scalars("accuracy")]
    assert [s.step for s in seen.Scalars("accuracy")] == [0, 1, 2]
    assert 0.3 < accuracy[0] < accuracy[1] < accuracy[2] <= 1
    assert seen.Tags()["images"] == ["digits", "confusion"]
    assert seen.Tags()["histograms"] == ["first layer"]
    assert {"Sequential/Linear[1]/Linear", "input/input"} <= {n.name for n in seen.Graph().node}
