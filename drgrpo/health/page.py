"""The findings of a run as a Markdown page: words of ours and numbers, nothing that a model wrote."""

from collections.abc import Sequence

from drgrpo.health.finding import Finding


def findings_page(findings: Sequence[Finding], *, max_findings: int = 20) -> str:
    """What was seen and what to try, newest first; of more than `max_findings` the oldest are only counted."""
    shown = list(reversed(findings))[:max_findings]
    sections = [section(finding) for finding in shown]
    if hidden := len(findings) - len(shown):
        sections.append(f"Older findings: {hidden}.\n")
    return "\n".join(sections)


def section(finding: Finding) -> str:
    """One finding as a Markdown section."""
    state = "still so" if finding.is_open else "over since"
    return (
        f"### `{finding.gate}` at step {finding.step} ({state})\n\n"
        f"{finding.message}\n\n"
        f"{finding.remedy}\n\n"
        f"Action: {finding.action}.\n"
    )
