"""What a comparison of systems says on the terminal, as tables of text."""

from .scoring import RATES, System
from .text_table import percent, percent_range, text_table

NUM_IDS = 20  # of missing ones, that are listed


def heading(system: System) -> str:
    options = [key for key in ("remove_fillers", "fold_erhua") if system.settings["normalizer"][key]]
    level = ", ".join([f"level {system.settings['normalizer']['level']}", *options])
    return f"{len(system.rows):,} utterances, {system.cer['num_tokens']:,} characters; {level}; 95 % intervals"


def rates_table(systems: list[System]) -> str:
    rates = [rate for rate in RATES if any(getattr(system, rate) for system in systems)]
    header = ["system", *(part for rate in rates for part in (f"{rate.upper()} %", "")), "S", "D", "I", "missing"]
    has_speed = any(system.settings.get("run", {}).get("rtfx") for system in systems)
    rows = []
    for system in systems:
        row = [system.name]
        for rate in rates:
            result = getattr(system, rate) or {}
            row += [percent(result.get(rate)), percent_range(result.get(f"{rate}_interval"))]
        row += [system.cer[key] for key in ("substitutions", "deletions", "insertions")] + [len(system.missing)]
        if has_speed:
            rtfx = system.settings["run"].get("rtfx")
            row.append("-" if rtfx is None else f"{rtfx:.1f}")
        rows.append(row)
    return text_table(header + ["RTFx"] * has_speed, rows)


def missing_lines(system: System) -> list[str]:
    if not system.missing:
        return []
    shown = ", ".join(system.missing[:NUM_IDS]) + (", ..." if len(system.missing) > NUM_IDS else "")
    return [f"{system.name}: {len(system.missing)} references without hypothesis, all deletions: {shown}"]


def comparison_lines(comparisons: list[dict]) -> str:
    rows = [
        [f"{c['a']} - {c['b']}", c["rate"].upper(), percent(c["difference"]), percent_range(c["interval"]),
         f"{c['p_value']:.3f}", "significant" if c["p_value"] < 0.05 else ""]
        for c in comparisons
        if c["rate"] in ("cer", "kwer")
    ]  # fmt: skip
    return text_table(["systems", "rate", "difference %", "95 %", "p", ""], rows) if rows else ""


def conditions_table(systems: list[System]) -> str:
    """A row per recogniser and a column per condition, where there are some."""
    by_name: dict[str, dict[str, str]] = {}
    for system in systems:
        name, slash, condition = system.name.rpartition("/")
        if slash:
            by_name.setdefault(name, {})[condition] = percent(system.cer["cer"])
    columns = list(dict.fromkeys(condition for row in by_name.values() for condition in row))
    if len(columns) < 2:
        return ""
    return text_table(["system", *columns], [[n, *(row.get(c, "-") for c in columns)] for n, row in by_name.items()])


def groups_table(systems: list[System]) -> str:
    return _keyword_rows(systems, "by_group", lambda row: 0, None)


def keywords_table(systems: list[System]) -> str:
    return _keyword_rows(systems, "by_keyword", lambda row: -(row["misses"] + row["false_alarms"]), 10)


def _keyword_rows(systems: list[System], table: str, order, limit: int | None) -> str:
    header = ["system", "keyword" if table == "by_keyword" else "group", "said", "missed", "false alarms",
              "recall %", "precision %", "F1 %"]  # fmt: skip
    rows = []
    for system in systems:
        items = sorted((system.kwer or {}).get(table, {}).items(), key=lambda item: order(item[1]))[:limit]
        for name, row in items:
            scores = [percent(row[key], 1) for key in ("recall", "precision", "f1")]
            rows.append([system.name, name, row["num_keywords"], row["misses"], row["false_alarms"], *scores])
    return text_table(header, rows) if rows else ""


def by_table(table: dict[str, dict]) -> str:
    """A row per value of the column, a column per system."""
    labels = list(dict.fromkeys(label for rows in table.values() for label in rows))
    first = next(iter(table.values()))
    rows = [[label, first[label]["num_utterances"], first[label]["num_tokens"]] for label in labels]
    for row, label in zip(rows, labels, strict=True):
        for found in table.values():
            row += [percent(found[label]["cer"]), percent_range(found[label]["cer_interval"])]
    return text_table(["", "utterances", "characters", *(part for name in table for part in (name, ""))], rows)


def two_sided(systems, retention, comparisons, retained) -> str:
    """What each system gains on the target set over the first one, and what it loses on the retention set."""
    if not retention:
        return ""
    rows = []
    for system, kept in zip(systems, retention, strict=True):
        row = [system.name]
        for side, found in ((system, comparisons), (kept, retained)):
            against = [c for c in found if (c["a"], c["b"], c["rate"]) == (systems[0].name, system.name, "cer")]
            row += [percent(side.cer["cer"]), percent(-against[0]["difference"]) if against else "",
                    f"{against[0]['p_value']:.3f}" if against else ""]  # fmt: skip
        rows.append(row)
    first = systems[0].name
    return text_table(
        ["system", "target CER %", f"- {first}", "p", "retention CER %", f"- {first}", "p"], rows
    )  # fmt: skip


__all__ = [
    "by_table",
    "comparison_lines",
    "conditions_table",
    "groups_table",
    "heading",
    "keywords_table",
    "missing_lines",
    "rates_table",
    "two_sided",
]
