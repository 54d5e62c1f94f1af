"""What a table says besides its numbers: the user's pairs, images of rows, and the settings that were chosen."""

import csv
import io

import pytest
from p2pzoo_bench.comparison import Comparison
from p2pzoo_bench.formats import build_main_table, build_notes, to_csv, to_html, to_markdown, to_rich
from p2pzoo_bench.notes import describe_data
from p2pzoo_bench.table_columns import COSTS, select_columns
from rich.console import Console

DATA = {
    "recipe": "mine.toml", "pairs": 60, "tested": 60, "budget": 1200.0,
    "notes": ["not measured on this data: accuracy"],
    "summary": "60 pairs of mine.toml, each tested in one of 3 folds",
}  # fmt: skip


def document(images=(7000, 1600), **facts):
    column = {"metric": "l1", "heading": "L1", "better": "lower", "unavailable": None, "protocol": "p"}
    rows = [
        {"name": name, "label": name, "failed": None, "published": {}, "images": count,
         "runs": [{"id": f"{name}{fold}", "seed": fold} for fold in range(3)],
         "cells": {"l1": {"values": [0.1], "mean": 0.1, "low": None, "high": None}}}
        for name, count in zip("ab", images, strict=True)
    ]  # fmt: skip
    truth = {**rows[0], "name": "photos", "label": "photos", "target": True, "runs": []}
    del truth["images"]
    return {"title": "T", "source": "", "profile": "smoke", "confidence": 0.95, "resampled": "images", "folds": 3,
            "baseline": "a", "columns": [column], "rows": [*rows, truth], "protocols": {"p": {}}, **facts}  # fmt: skip


def in_all_formats(doc):
    console = Console(file=io.StringIO(), width=300)
    console.print(to_rich(doc))
    return to_markdown(doc), to_html(doc, {}, (8, 8), {}), console.file.getvalue()


class TestImages:
    """Rows of equal time differ in them, and a number of 1,600 images is not one of 7,000."""

    def test_they_are_a_column_where_rows_differ(self):
        doc = document()
        head, rows = build_main_table(doc)
        assert [row[head.index("training images")] for row in rows] == ["7,000", "1,600", "–"]
        for text in in_all_formats(doc):
            assert "training images" in text
            assert "7,000" in text
            assert "1,600" in text

    def test_equal_numbers_have_no_column(self):
        assert "training images" not in build_main_table(document((7000, 7000)))[0]

    def test_runs_without_known_images_have_no_column(self):
        assert "training images" not in build_main_table(document((None, None)))[0]

    def test_a_table_can_be_asked_for_them(self):
        table = Comparison(document((7000, 7000)), (), {}, (8, 8))
        assert build_main_table(select_columns(table, ["images"]).doc)[0] == ["", COSTS["images"]]

    def test_csv_has_them(self):
        lines = list(csv.DictReader(io.StringIO(to_csv(document()))))
        assert [line["images"] for line in lines] == ["7000", "1600", ""]


class TestMeans:
    """A note says which seeds a cell is the mean of, also where rows have different ones."""

    @pytest.mark.parametrize(
        ("seeds", "note"),
        [
            (([0, 1, 2], [0, 1, 2]), "Mean of seeds 0, 1, 2 ± half"),
            (([0, 1, 2], [0]), "Mean of seeds 0, 1, 2 (b: 0) ± half"),
            (([0], [0]), "One run per row, seed 0: no interval."),
            (([0], [1]), "One run per row, of the seeds a: 0; b: 1: no interval."),
        ],
    )
    def test_seeds(self, seeds, note):
        doc = document()
        del doc["folds"]
        for row, own in zip(doc["rows"], seeds, strict=False):
            row["runs"] = [{"id": f"{row['name']}{seed}", "seed": seed} for seed in own]
        notes = build_notes(doc)
        assert notes[0].startswith(note)
        assert ("No difference of b: no seed in common with a." in notes) == (seeds == ([0], [1]))


class TestOwnData:
    def test_every_format_has_the_pairs_the_time_and_the_notes(self):
        doc = document(data=DATA)
        for text in in_all_formats(doc):
            assert (
                "60 pairs of mine.toml, each tested in one of 3 folds. Training time of each row: 20 minutes, over "
                "3 folds. Rows train on 1,600 to 7,000 images in each fold: see the column."
            ) in text
            assert "not measured on this data: accuracy." in text

    def test_equal_numbers_of_images_stand_in_the_sentence(self):
        [line] = describe_data(document((6, 6), data=DATA))
        assert line.endswith("Each row trains on 6 images in each fold.")

    def test_the_page_shows_the_groups_of_a_column_one_below_the_other(self):
        line = (
            "L1: the best mean is that of a; ahead of b beyond chance: c (4 steps; 1 step); behind b beyond chance: d."
        )
        page = to_html(document(answer=["On your 60 pairs, all differ.", line], data=DATA), {}, (8, 8), {})
        assert '<li class="sentence">On your 60 pairs, all differ.</li>' in page
        assert "<summary>L1: the best mean is that of a</summary>" in page
        assert "<li>ahead of b beyond chance: c (4 steps; 1 step)</li><li>behind b beyond chance: d.</li>" in page

    def test_without_a_budget_the_length_is_that_of_the_recipes(self):
        [line] = describe_data(document(data=DATA | {"budget": None}))
        assert "Each row trains for the length of its recipe, not for equal times." in line

    def test_a_table_on_its_own_data_says_nothing_about_it(self):
        assert describe_data(document()) == []


class TestChosenSettings:
    def note(self, chosen, folds=True):
        search = {"metric": "crps", "share": 0.25, "trials": 4, "chosen": chosen}
        doc = document(search=search)
        if not folds:
            del doc["folds"]
        return [note for note in build_notes(doc) if note.startswith("Settings of")][1:]

    @pytest.mark.parametrize(
        ("chosen", "expected"),
        [
            ([["lr=1"], ["lr=2", "w=3"], ["lr=1"]], "Settings of a: folds 0 and 2: lr=1; fold 1: lr=2, w=3."),
            ([["lr=1"], ["lr=1"], ["lr=1"]], "Settings of a: all folds: lr=1."),
            ([["lr=1"]], "Settings of a: fold 0: lr=1."),
            ([[], ["lr=1"]], "Settings of a: fold 0: those of the recipe; fold 1: lr=1."),
        ],
    )
    def test_folds_that_agree_are_named_together(self, chosen, expected):
        assert self.note({"a": chosen, "b": []}) == [expected]

    def test_each_training_has_a_note(self):
        notes = self.note({"a": [["lr=1"]], "b": [["lr=2"]]})
        assert notes == ["Settings of a: fold 0: lr=1.", "Settings of b: fold 0: lr=2."]

    def test_rows_of_one_training_have_one_note(self):
        doc = document(search={"metric": "l1", "share": 0.5, "trials": 2, "chosen": {"a": [["lr=1"]], "b": [["lr=1"]]}})
        doc["rows"][1]["runs"] = doc["rows"][0]["runs"]
        assert "Settings of a & b: fold 0: lr=1." in build_notes(doc)

    def test_seeds_have_their_name(self):
        assert self.note({"a": [["lr=1"], ["lr=2"]]}, folds=False) == ["Settings of a: seed 0: lr=1; seed 1: lr=2."]

    def test_markdown_and_the_page_have_them(self):
        doc = document(search={"metric": "l1", "share": 0.5, "trials": 2, "chosen": {"a": [["lr=1"]]}})
        assert all("Settings of a: fold 0: lr=1." in text for text in in_all_formats(doc))
