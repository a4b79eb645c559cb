"""The results of an experiment in a terminal and in a notebook: its tables, with what must be known about them."""

from __future__ import annotations

import functools

from cleanai.experiments.results import ExperimentResults
from cleanai.experiments.tables import comparison_table, methods_table, preparation_table, summary_table
from cleanai.rendering import Table, html_environment, printable, text_table
from cleanai.texts import say, terms


def show_text(results: ExperimentResults) -> str:
    """The results in plain text, no wider than a terminal as long as names are short."""
    language = results.config.language
    parts = [printable(results.name)]
    parts += ["\n".join(f"  ! {printable(line)}" for line in list_warnings(results))] if results.warnings else []
    parts += [text_table(table) for table in list_tables(results) if len(table.columns) <= 4]
    parts.append(f"{say(language, 'Command')}: {results.environment.command}")
    return "\n\n".join(parts)


def show_html(results: ExperimentResults) -> str:
    """The same for a notebook cell, with the methods side by side."""
    language = results.config.language
    return (
        html_environment()
        .get_template("experiment.html.j2")
        .render(
            title=results.name,
            command=results.environment.command,
            warnings=list_warnings(results),
            tables=list_tables(results),
            say=functools.partial(say, language),
            language=language,
        )
    )


def list_warnings(results: ExperimentResults) -> list[str]:
    """What must be known about the numbers, in the language of the experiment."""
    return [terms(results.config.language, line) for line in results.warnings]


def list_tables(results: ExperimentResults) -> list[Table]:
    """The preparation, the methods side by side, and each method's stages and savings."""
    language = results.config.language
    tables = [preparation_table(results, language), methods_table(results, language)]
    for method in results.methods:
        tables += [comparison_table(results, method, language), summary_table(results, method, language)]
    return tables
