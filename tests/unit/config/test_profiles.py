"""The table of profiles."""

import re

from tests.support.servers import REPOSITORY


def test_no_module_compares_the_name_of_a_profile_since_the_table_says_what_it_has() -> None:
    modules = sorted((REPOSITORY / "visit_counter").rglob("*.py"))
    comparison = re.compile(r"profile\"?\]? (?:==|!=|in) \(?\"")
    assert modules
    assert [module.name for module in modules if comparison.search(module.read_text(encoding="utf-8"))] == []
