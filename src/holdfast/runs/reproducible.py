"""What is written down beside an audit, so that others can make the same audit again: content and settings, no path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from holdfast.campaign.cells import PROTOCOL
from holdfast.core.records import PLAN, CampaignPlan, CellResult, cell_path, read_campaign
from holdfast.core.reproduction import FILE, AuditedModel, Reproduction, file_hash
from holdfast.stats.cells import NO_ATTACK
from holdfast.stats.figures import ANCHOR_ROLES
from holdfast.stats.reproduction import ended_run
from holdfast.stats.summary import summarise


def option(role: str) -> str:
    """The option of `holdfast audit` that names a model of this role."""
    return "--model" if role == "defended" else f"--{role}"


def write_reproduction(folder: Path) -> None:
    """Write `reproduce.json` beside an audit that has ended.

    Raises:
        HoldfastError: the folder holds no audit with an ended cell.
    """
    plan, results = read_campaign(folder)
    attacked = {r.attack: r.attack_config for r in results if r.attack in plan.attacks and r.attack != NO_ATTACK}
    identities = [result.identity for result in results if result.identity]
    untouched = [r.identity for r in results if r.attack == NO_ATTACK and r.identity]
    details = plan.details
    environments: list[dict[str, object]] = []
    for result in results:
        if result.environment not in environments:
            environments.append(result.environment)
    first = identities[0] if identities else {}
    Reproduction(
        command=_command(plan, "sibling" in details),
        title=plan.title,
        domain=plan.domain,
        suite=plan.suite,
        models=list(_models(plan, results)),
        attacks={name: attacked[name] for name in plan.attacks if name in attacked},
        canonical=details.get("canonical", next(iter(attacked), "")),
        with_base=bool(details.get("base")),
        sibling=details.get("sibling"),
        seeds=list(plan.seeds),
        milestones=details.get("milestones"),
        stop_after_breach=details.get("stop_after_breach"),
        precision=first.get("precision", "float32"),
        device=first.get("device", "cpu"),
        micro_batch=next((identity["micro_batch"] for identity in identities if "micro_batch" in identity), None),
        matmul=first.get("matmul", "torch"),
        trust_remote_code=any(identity.get("remote_code", False) for identity in identities),
        max_length=first.get("max_length", 1),
        data=next((identity["data"] for identity in identities if identity["data"]), {}),
        evaluations={name: asked for identity in untouched for name, asked in identity["evaluations"].items()},
        protocol=first.get("protocol", PROTOCOL),
        environments=environments,
        seconds=sum(result.seconds for result in results),
        plan=file_hash(folder / PLAN),
        runs=[ended_run(result, results, file_hash(cell_path(folder, result.cell))) for result in results],
    ).write(folder / FILE)


def _models(plan: CampaignPlan, results: Sequence[CellResult]) -> Iterator[AuditedModel]:
    verdicts = {model.label: model.verdict for model in summarise(plan, results).models}
    for label, role in plan.models.items():
        own = [r for r in results if r.model == label and r.identity and r.attack in (NO_ATTACK, *plan.attacks)]
        yield AuditedModel(
            label=label,
            role=role,
            digest=own[0].model_digest if own else plan.details["models"][label]["digest"],
            tokenizer=own[0].identity["tokenizer"] if own else "",
            verdict="" if role in ANCHOR_ROLES else verdicts.get(label, ""),
        )


def _command(plan: CampaignPlan, with_sibling: bool) -> str:
    given = [role for role in plan.models.values() if role != "destroyed"] + ["sibling"] * with_sibling
    options = [f"{option(role)} {option(role).removeprefix('--').upper()}" for role in given]
    return " ".join(["holdfast reproduce", FILE, *options, "--domain DOMAIN --out DIR"])
