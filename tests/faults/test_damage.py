"""Files that a disk, a copy or a hand has damaged, at random places: cut short, bits flipped, a part overwritten."""

import json

import fault_injection
import pytest

from p2pzoo.models.safetensors_io import load_tensors
from p2pzoo.utils.errors import UserError

slow = pytest.mark.slow


def damage(file, chance):
    data = bytearray(file.read_bytes())
    how = chance.choice(["cut", "flip", "overwrite", "zeros"])
    at = chance.randrange(len(data))
    if how == "cut":
        del data[at:]
    elif how == "flip":
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        part = len(data[at : at + 512])
        data[at : at + part] = bytes(part) if how == "zeros" else chance.randbytes(part)
    file.write_bytes(data)


class TestOfAnUnfinishedRun:
    @pytest.mark.promise("reported, the one before it is used: bit-identical results")
    def test_newest_checkpoint(self, chance, halfway, unharmed, goes_on):
        newest = sorted(fault_injection.only(halfway).glob("checkpoints/*"))[-1]
        damage(newest, chance)
        result = goes_on(halfway, fault_injection.on_disk(halfway), unharmed)
        assert result.first_step == (15 if fault_injection.is_intact(newest) else 10)
        assert "trying the checkpoint before it" in result.output

    @slow
    @pytest.mark.promise("reported, the run begins again: bit-identical results")
    def test_all_checkpoints(self, chance, halfway, unharmed, goes_on):
        for file in fault_injection.only(halfway).glob("checkpoints/*"):
            damage(file, chance)
        assert goes_on(halfway, fault_injection.on_disk(halfway), unharmed).first_step == 0

    @pytest.mark.promise(
        "bit-identical results; or, where its hashes of sources were hit, refused until --accept-stale"
    )
    def test_status(self, chance, halfway, unharmed, goes_on, run):
        damage(fault_injection.only(halfway) / "status.json", chance)
        before, flags = fault_injection.on_disk(halfway), ()
        result = run(halfway, "train.images=20", flags=["--quiet"])
        if result.exit_code:
            assert "--accept-stale" in result.output.splitlines()[-1]
            assert fault_injection.on_disk(halfway) == before
            flags = ("--accept-stale",)
        goes_on(halfway, before, unharmed, flags=flags)

    @pytest.mark.promise("the same model and numbers; every line of the log that was whole is kept")
    @pytest.mark.parametrize("log", ["metrics.jsonl", pytest.param("timings.jsonl", marks=slow)])
    def test_log(self, log, chance, halfway, unharmed, run, record_property):
        file = fault_injection.only(halfway) / log
        damage(file, chance)
        before = fault_injection.on_disk(halfway)
        result = run(halfway)
        assert result.exit_code == 0, result.output
        found = fault_injection.outcome(halfway)
        assert {**found, "metrics.jsonl": None} == {**unharmed, "metrics.jsonl": None}
        lost = fault_injection.bytes_lost(before)
        record_property("bytes_lost", lost)
        record_property("observed", "resumed from a checkpoint")
        assert lost == 0

    @slow
    @pytest.mark.promise("written again: bit-identical results")
    @pytest.mark.parametrize("name", ["recipe.toml", "env.json", "samples/images-00000013.png"])
    def test_what_is_only_written(self, name, chance, halfway, unharmed, run, record_property):
        damage(fault_injection.only(halfway) / name, chance)
        before = fault_injection.on_disk(halfway)
        result = run(halfway)
        assert result.exit_code == 0, result.output
        sample = {"images-00000013.png": None}  # of a moment that is over
        assert {**fault_injection.outcome(halfway), **sample} == {**unharmed, **sample}
        lost = fault_injection.bytes_lost(before)
        record_property("bytes_lost", lost)
        record_property("observed", "resumed from a checkpoint")
        assert lost == 0


class TestOfACompleteRun:
    @pytest.mark.promise("measured again with the saved model, without training: the same numbers")
    def test_results(self, chance, complete, unharmed, goes_on):
        file = fault_injection.only(complete) / "results.json"
        right = json.loads(file.read_text())
        damage(file, chance)
        assert goes_on(complete, fault_injection.on_disk(complete), unharmed).first_step is None
        found = json.loads(file.read_text())
        for results in (found, right):
            del results["digest"], results["timings"][0]["milliseconds"]
        assert found == right

    @pytest.mark.promise("whoever reads it refuses it in one line; what was measured stays")
    @pytest.mark.parametrize("name", ["model.safetensors", pytest.param("stats.safetensors", marks=slow)])
    def test_tensors(self, name, chance, complete, run, refused, record_property):
        file = fault_injection.only(complete) / name
        damage(file, chance)
        with pytest.raises(UserError, match=name):
            load_tensors(file)
        before = fault_injection.on_disk(complete)
        assert run(complete).exit_code == 0, "it is shown"
        assert name in refused(run(complete, "metrics.again.use=l1"))
        lost = fault_injection.bytes_lost(before)
        record_property("bytes_lost", lost)
        record_property("observed", "refused in one line")
        assert lost == 0

    @slow
    @pytest.mark.promise("what is left is read, or trained again from the last checkpoint: bit-identical results")
    def test_status(self, chance, complete, unharmed, goes_on):
        damage(fault_injection.only(complete) / "status.json", chance)
        goes_on(complete, fault_injection.on_disk(complete), unharmed, flags=["--accept-stale"])

    @slow
    @pytest.mark.promise("a metric can still be added; the recipe is written again")
    def test_recipe(self, chance, complete, run, record_property):
        file = fault_injection.only(complete) / "recipe.toml"
        damage(file, chance)
        before = fault_injection.on_disk(complete)
        result = run(complete, "metrics.again.use=l1")
        assert result.exit_code == 0, result.output
        record_property("observed", "measured")
        record_property("bytes_lost", fault_injection.bytes_lost(before))


@pytest.mark.promise("one that is cut is made again, an altered pair refused by name; then bit-identical results")
def test_prepared_pairs(chance, photos, run, record_property, tmp_path, monkeypatch):
    monkeypatch.setenv("P2PZOO_CACHE", str(tmp_path / "cache"))
    overrides = (*photos[1], "compute.store=disk")
    assert run(tmp_path / "first", *overrides).exit_code == 0
    [file] = (tmp_path / "cache" / "stores").glob("*.pairs")
    damage(file, chance)
    result = run(tmp_path / "runs", *overrides)
    assert result.exit_code == 0, result.output
    assert fault_injection.outcome(tmp_path / "runs") == fault_injection.outcome(tmp_path / "first")
    record_property("observed", "made again")
    record_property("bytes_lost", 0)
