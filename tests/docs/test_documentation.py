"""The documentation's code runs, and its tables are what the code says."""

import re
import runpy
from pathlib import Path

import pytest

from fastcfg.cli.catalog import entries, functions, to_markdown

ROOT = Path(__file__).parents[2]


def test_readme_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 2
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks))
    names = runpy.run_path(str(script))
    assert names["noise"].shape == (2, 4, 64, 64)


def test_table_of_rules_is_up_to_date() -> None:
    assert (ROOT / "docs" / "rules.md").read_text().endswith(to_markdown()), "fastcfg rules --markdown"


def test_every_rule_is_in_the_table_with_a_formula() -> None:
    rows = {entry.name: entry for entry in entries()}
    assert {"CFG", "PerpNeg", "APG", "Rescale"} <= rows.keys()
    for entry in rows.values():
        assert entry.formula and entry.conditions, entry.name


def test_guidance_that_is_no_rule_is_in_the_table_with_its_source() -> None:
    rows = {row.name: row for row in functions()}
    assert rows["dynamic_threshold"].sources == ("2205.11487",)
    assert {"guide_logits", "normalized_attention_guidance", "cfg_pp_step", "universal_step"} <= rows.keys()


def test_space_says_which_rules_commute_with_a_change_of_prediction() -> None:
    space = {entry.name: entry.space for entry in entries()}
    assert space["CFG"] == space["PerpNeg"] == space["DualCFG"] == "any"
    assert space["Rescale"] == space["APG"] == space["TCFG"] == space["Clamp"] == "as given"


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert (ROOT / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("verb", ["demo", "test", "bench", "check"])
def test_makefile_has_the_verbs(verb: str) -> None:
    assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(), re.M)
