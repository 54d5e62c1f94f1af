"""LaTeX tables: a small parser checks what a compiler would stop at; where there is a compiler, it compiles them."""

import re
import shutil
import subprocess

import pytest
from p2pzoo_bench.latex import escape, to_latex

COMMANDS = {"begin", "end", "toprule", "midrule", "bottomrule", "textbf", "pm", "times", "uparrow", "downarrow",
            "rightarrow", "cap", "lambda", "hat", "textbar", "textasciitilde", "textasciicircum",
            "textbackslash"}  # fmt: skip
HOSTILE = "a_b & 50% #1 $5 {y} ~ ^ \\input{z} <i> |\n\n[q] ŷ²"
DOCUMENT = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n%s\n\\end{document}\n"


def make_doc(label="row B", title="T"):
    difference = {"blocks": {"value": -0.05, "low": -0.08, "high": -0.01}, "seeds": {"low": None, "high": None}}
    cell = {"values": [0.25, 0.3], "mean": 0.3, "low": 0.28, "high": 0.32}
    rows = [
        {"name": "a", "label": "row A", "cells": {"l1": cell}},
        {"name": "b", "label": label, "cells": {"l1": cell | {"mean": 0.25, "difference": difference}}},
    ]
    more = {"runs": [{"id": "i", "seed": 0}], "published": {"l1": 0.2}, "failed": None, "seconds": 12.0}
    column = {"metric": "l1", "heading": "L1", "better": "lower", "unavailable": None, "protocol": "p"}
    return {
        "title": title, "profile": "p", "baseline": "a", "confidence": 0.95, "resampled": "images", "source": "",
        "columns": [column], "rows": [row | more for row in rows],
    }  # fmt: skip


def parse_tabulars(text):
    """[[cells of each line] of each tabular]. Fails on whatever LaTeX would report."""
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    assert not re.search(r"(?<!\\)[%#~^_](?!2\$)", body.replace("$^2$", "")), "special characters are escaped"
    assert {*re.findall(r"\\([a-z]+)", body)} <= COMMANDS, "only commands of LaTeX and booktabs"
    tabulars = []
    for spec, inside in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\n\\end\{tabular\}", body, re.DOTALL):
        rules, rows = [], []
        for line in inside.splitlines():
            if line.startswith("\\") and line.endswith("rule"):
                rules.append(line)
                continue
            assert line.endswith(r" \\"), line
            cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
            assert len(cells) == len(spec), line
            for cell in cells:
                bare = re.sub(r"\\[{}$&]", "", cell)
                depths = [bare[:end].count("{") - bare[:end].count("}") for end in range(len(bare) + 1)]
                assert min(depths) == depths[-1] == 0, f"braces of {cell}"
                assert bare.count("$") % 2 == 0, f"mathematics of {cell}"
            rows.append([cell.strip() for cell in cells])
        assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
        tabulars.append(rows)
    assert body.count(r"\begin") == len(tabulars)
    return tabulars


def test_a_table_its_published_numbers_and_its_differences_are_tabulars():
    main, published, differences = parse_tabulars(to_latex(make_doc()))
    assert main[0] == ["", r"L1 $\downarrow$", "training, s"]
    assert main[1] == ["row A", r"0.300 $\pm$ 0.020", "12"]
    assert published == [["published", r"L1 $\downarrow$"], ["row A", "0.20"], ["row B", "0.20"]]
    assert differences == [
        ["difference to row A", "L1"],
        ["row B", r"$-$0.050 {[}$-$0.080, $-$0.010{]}"],
    ]


def test_the_best_mean_is_bold():
    main, *_ = parse_tabulars(to_latex(make_doc()))
    assert [row[1] for row in main[1:]] == [r"0.300 $\pm$ 0.020", r"\textbf{0.250 $\pm$ 0.020}"]


def test_names_cannot_break_a_table():
    text = to_latex(make_doc(HOSTILE, HOSTILE))
    main, *_ = parse_tabulars(text)
    assert main[2][0] == escape(HOSTILE)
    assert text.splitlines()[0].startswith("% a_b"), "a title with line breaks stays a comment"


def test_special_characters_are_escaped():
    assert escape("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"
    assert escape("a ∩\nb") == r"a $\cap$ b"


@pytest.mark.slow
def test_a_table_compiles(tmp_path):
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("no LaTeX compiler here")
    (tmp_path / "t.tex").write_text(DOCUMENT % to_latex(make_doc(HOSTILE, HOSTILE)), "utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if compiler.endswith("pdflatex") else []
    done = subprocess.run([compiler, *options, "t.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
