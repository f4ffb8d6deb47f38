"""Deployments load, and the pages on configuration say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deployments.steps import deployment_names, load_deployment
from drgrpo.config.areal_keys import AREAL_KEYS
from drgrpo.config.checks import CHECKS, DEMONSTRATION_CHECKS, check_config
from drgrpo.config.errors import ConfigError
from drgrpo.config.overrides import load_config
from drgrpo.config.paths import FIELDS, KNOWN_AS
from drgrpo.config.reference import rewritten

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", deployment_names())
def test_every_deployment_is_a_configuration_without_warnings(name):
    checks = DEMONSTRATION_CHECKS if name.endswith("-sft") else CHECKS
    assert check_config(load_deployment(name), checks) == []


def test_every_field_is_described():
    assert [path for path, info in FIELDS.items() if not info.description] == []


def test_the_table_of_settings_is_up_to_date():
    document = (DOCS / "configuration.md").read_text()
    assert rewritten(document) == document, "run: python -m drgrpo.config.reference docs/configuration.md"


def test_the_example_of_an_error_is_what_is_printed():
    overrides = {"optimizer.learning_rate": 2e-6, "rollout.temperature": -1, "trainer.completions_per_update": 100}
    with pytest.raises(ConfigError) as caught:
        load_config({}, overrides)
    printed = "".join(f"    {line}\n" for line in str(caught.value).splitlines())
    assert printed in (DOCS / "configuration.md").read_text()


def test_every_areal_override_key_is_in_its_table():
    text = (DOCS / "from-areal.md").read_text()
    missing = [key for key in AREAL_KEYS if f"`{key}`" not in text and f"`{key.rsplit('.', 1)[-1]}`" not in text]
    assert missing == []


@pytest.mark.parametrize("page", ["from-areal.md", "from-trl.md"])
def test_every_setting_that_a_page_names_exists(page):
    text = (DOCS / page).read_text()
    sections = "model|data|reward|adv_norm|loss|trainer|evaluation|checkpoint|placement"
    named = set(re.findall(rf"[`\"]((?:{sections})\.[a-z_.0-9]+)", text))
    assert named <= set(FIELDS) and len(named) > 20


@pytest.mark.parametrize("page", ["configuration.md", "from-trl.md", "from-areal.md"])
def test_the_overrides_that_a_page_shows_load(page):
    shown = re.findall(r"overrides='(\{.*?\})'", (DOCS / page).read_text(), flags=re.DOTALL)
    assert shown
    for text in shown:
        load_config({}, yaml.safe_load(text))


def test_names_from_other_trainers_lead_to_fields():
    assert set(KNOWN_AS.values()) <= set(FIELDS)


def test_configuration_and_settings_import_no_engine():
    code = (
        "import sys, drgrpo.settings, drgrpo.config.overrides, drgrpo.config.areal, drgrpo.config.reference;"
        "heavy = {'torch', 'vllm', 'deepspeed', 'ray', 'mlflow', 'prefect', 'transformers'} & set(sys.modules);"
        "print(*heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
