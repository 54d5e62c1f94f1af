"""Format a comparison as LaTeX, for the package booktabs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from p2pzoo_bench.formats import build_further_tables, build_main_table, build_notes
from p2pzoo_bench.table_columns import find_best_cells

ESCAPES = str.maketrans({"–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "↑": r"$\uparrow$",
                         "↓": r"$\downarrow$", "→": r"$\rightarrow$", "∩": r"$\cap$", "λ": r"$\lambda$",
                         "ŷ": r"$\hat{y}$", "²": r"$^2$", "<": "$<$", ">": "$>$", "|": r"\textbar{}",
                         "[": "{[}", "]": "{]}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
                         "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                         "\\": r"\textbackslash{}"})  # fmt: skip


def to_latex(doc: Mapping[str, Any]) -> str:
    r"""The main table and, if there are any, published numbers and differences: a tabular each, notes as comments.

    The best mean of each metric is bold.
    """
    best = {(row, column + 1) for row, column in find_best_cells(doc)}
    parts = [
        _comment(f"{doc['title']}, profile {doc['profile']}. Needs \\usepackage{{booktabs}}."),
        *_tabular(*build_main_table(doc), best),
    ]
    for table in build_further_tables(doc):
        parts += ["", *_tabular(*table, ())]
    notes = ["Bold: the best mean of a column, of the rows with the most runs."] if best else []
    return "\n".join([*parts, *map(_comment, [*notes, *build_notes(doc)])])


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], bold: Collection[tuple[int, int]]) -> list[str]:
    """The lines of a tabular. bold: (row, cell) of the cells in bold type."""
    cells = [
        [rf"\textbf{{{escape(cell)}}}" if (i, j) in bold else escape(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    lines = [" & ".join(row) + r" \\" for row in ([escape(title) for title in head], *cells)]
    columns = "l" + "r" * (len(head) - 1)
    return [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
            r"\end{tabular}"]  # fmt: skip


def escape(text: str) -> str:
    r"""Text that LaTeX prints as it is, on one line.

    >>> escape("50% of a_b")
    '50\\% of a\\_b'
    """
    return " ".join(text.split()).translate(ESCAPES)


def _comment(text: str) -> str:
    return "% " + " ".join(text.split())
