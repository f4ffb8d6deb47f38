"""Health gates: pure functions from a run's records to findings, and the exceptions that act on them."""

from drgrpo.health.finding import Action, Finding, HealthStop, RollBack
from drgrpo.health.gates import findings
from drgrpo.health.page import findings_page, section
from drgrpo.health.rule import Rule

__all__ = ["Action", "Finding", "HealthStop", "RollBack", "Rule", "findings", "findings_page", "section"]
