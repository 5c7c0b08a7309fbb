"""Registries and plug-ins: how a user's own rule, attack or model gets its name."""

import sys

import numpy as np
import pytest

from fltrust_repro import aggregation, attacks, models
from fltrust_repro.backend import nd
from fltrust_repro.errors import BadInput
from fltrust_repro.registry import PLUGIN_PREFIX, Registry, load_plugin, summary
from fltrust_repro.settings import Setting

RULE = '''
from fltrust_repro.aggregation import rule


@rule("first")
def first(updates):
    """The first update."""
    return updates[0]
'''


@pytest.fixture(autouse=True)
def restored_registries():
    """Take back what a test's plug-ins registered."""
    registries = (aggregation.rules, attacks.attacks, models.models)
    entries = [dict(registry._entries) for registry in registries]
    modules = set(sys.modules)
    yield
    for registry, before in zip(registries, entries):
        registry._entries = before
    for name in set(sys.modules) - modules:
        if name.startswith(PLUGIN_PREFIX):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path):
    def write(source, name="mine.py"):
        file = tmp_path / name
        file.write_text(source, encoding="utf-8")
        return file

    return write


def test_a_registry_is_a_mapping_in_order_of_registration():
    registry = Registry("rule")
    registry.add("b", 1)
    registry.add("a", 2)
    assert list(registry) == ["b", "a"]
    assert len(registry) == 2
    assert registry["a"] == 2
    assert "c" not in registry


def test_a_name_is_registered_once():
    registry = Registry("rule")
    registry.add("mean", 1)
    with pytest.raises(BadInput, match="rule 'mean' exists already"):
        registry.add("mean", 2)
    assert registry["mean"] == 1


def test_an_unknown_name_lists_the_names_and_suggests_a_near_one():
    with pytest.raises(BadInput) as error:
        aggregation.rules["trimmed_mean"]
    message = str(error.value)
    assert "unknown rule 'trimmed_mean'" in message
    assert "mean, krum, bulyan, trimmed-mean, median" in message
    assert "Did you mean 'trimmed-mean'?" in message


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(BadInput) as error:
        aggregation.rules["xyzzy"]
    assert "Did you mean" not in str(error.value)


def test_summary_is_the_first_line_of_a_docstring():
    assert summary(aggregation.mean) == "Mean of each parameter (not robust)."
    assert summary(lambda: None) == "(no description)"


def test_a_plugin_adds_a_rule_by_name(plugin):
    load_plugin(plugin(RULE))
    out = aggregation.rules["first"](nd.array([[1, 2], [3, 4]]), c=0, beta=0)
    np.testing.assert_array_equal(out.asnumpy(), [1, 2])
    assert Setting(rule="first").rule == "first"


def test_a_plugin_adds_an_attack_and_a_model(plugin):
    load_plugin(
        plugin(
            "from fltrust_repro.attacks import attack\n"
            "from fltrust_repro.backend import mx\n"
            "from fltrust_repro.models import model\n"
            "@attack('negate', has_knowledge=False)\n"
            "def negate(step):\n"
            "    return -step.known[:step.c]\n"
            "@model('wide')\n"
            "def wide(classes, shape):\n"
            "    return mx.gluon.nn.Dense(classes)\n"
        )
    )
    setting = Setting(attack="negate", model="wide")
    assert setting.knowledge is None
    assert setting.iterations == 2000


def test_loading_a_plugin_twice_is_harmless(plugin):
    file = plugin(RULE)
    assert load_plugin(file) is load_plugin(str(file))


def test_a_plugin_cannot_replace_a_rule(plugin):
    with pytest.raises(BadInput, match="rule 'krum' exists already"):
        load_plugin(plugin(RULE.replace('"first"', '"krum"')))


def test_a_missing_plugin_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"plug-in '.*nowhere\.py' does not exist"):
        load_plugin(tmp_path / "nowhere.py")


def test_a_plugin_must_be_a_python_file(plugin):
    with pytest.raises(BadInput, match=r"mine\.txt' is not a Python file"):
        load_plugin(plugin(RULE, "mine.txt"))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def (:", "SyntaxError"),
        ("import no_such_module_at_all", "ModuleNotFoundError.*no_such_module_at_all"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_plugin_says_what_is_broken_and_leaves_nothing(plugin, source, problem):
    file = plugin(source)
    before = set(sys.modules)
    with pytest.raises(BadInput, match=rf"mine\.py' does not load: {problem}"):
        load_plugin(file)
    assert not [name for name in set(sys.modules) - before if name.startswith(PLUGIN_PREFIX)]
    file.write_text(RULE, encoding="utf-8")
    load_plugin(file)
    assert "first" in aggregation.rules


def test_built_in_functions_have_no_digest():
    assert plugin_digest(aggregation.krum) is None
    assert plugin_digest(None) is None
    assert Setting(rule="krum").plugin_key() == ""


def test_the_digest_changes_with_the_source_and_not_with_the_place(plugin):
    one = load_plugin(plugin(RULE)).first
    other = load_plugin(plugin(RULE.replace('"first"', '"second"'), "other.py")).first
    copied = load_plugin(plugin("def first():\n    pass\n", "a.py")).first
    same = load_plugin(plugin("def first():\n    pass\n", "b.py")).first
    assert plugin_digest(one) != plugin_digest(other)
    assert plugin_digest(copied) == plugin_digest(same)
    assert Setting(rule="first").plugin_key() == plugin_digest(one)


def test_the_digest_is_of_the_source_that_runs(plugin):
    # A file edited while a sweep runs must not lend its new name to the old code's results.
    file = plugin(RULE)
    first = load_plugin(file).first
    before = plugin_digest(first)
    file.write_text(RULE.replace("updates[0]", "updates[1]"), encoding="utf-8")
    assert plugin_digest(first) == before
