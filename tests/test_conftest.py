"""The account of skipped tests."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("allowed", "code"),
    [(None, 0), ("", 1), ("no GPU", 1), ("no GPU;EXITBENCH_GLUE", 1), ("no GPU;EXITBENCH_GLUE;no compiler", 0)],
)
def test_unexpected_skips_fail(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, allowed: str | None, code: int
):
    monkeypatch.delenv("EXITBENCH_GLUE", raising=False)
    monkeypatch.delenv("EXITBENCH_ALLOWED_SKIPS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("EXITBENCH_ALLOWED_SKIPS", allowed)
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(
        test_module="import pytest\npytest.skip('no compiler', allow_module_level=True)",
        test_some="""
            import pytest
            def test_passes(): pass
            def test_data(glue_folder): pass
            @pytest.mark.skipif(True, reason="no GPU")
            def test_gpu(): pass
        """,
    )
    result = pytester.runpytest_inprocess()
    assert result.ret == code
    assert ("EXITBENCH_ALLOWED_SKIPS does not allow" in result.stdout.str()) == bool(code)
    if code:
        result.stdout.fnmatch_lines(["test_module.py: Skipped: no compiler"])
    assert re.search(r"1 passed, 3 skipped", result.outlines[-1])
