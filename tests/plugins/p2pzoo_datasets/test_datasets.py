"""`cityscapes`: which half is x, what is checked when, and the error messages. What the plugin registers."""

import pickle
import subprocess
import sys

import numpy as np
import p2pzoo_datasets
import pytest
from p2pzoo_datasets.cityscapes import Cityscapes
from PIL import Image

from p2pzoo.plugin.protocols import Dataset
from p2pzoo.utils.errors import UserError

PHOTO, LABELS = (200, 30, 30), (30, 30, 200)
few_pairs = pytest.mark.filterwarnings("ignore:.*has . pairs:UserWarning")


def save_pair(path, size=(512, 256)):
    image = Image.new("RGB", size, LABELS)
    image.paste(PHOTO, (0, 0, size[0] // 2, size[1]))
    image.save(path, quality=95)


@pytest.fixture
def root(tmp_path):
    """A small folder in the archive's layout: photo (red) on the left, labels (blue) on the right."""
    for folder, count in (("train", 5), ("val", 4)):
        (tmp_path / folder).mkdir()
        for number in range(1, count + 1):
            save_pair(tmp_path / folder / f"{number}.jpg")
    return tmp_path


def colour(image):
    return np.median(image, axis=(0, 1))


@few_pairs
class TestCityscapes:
    def test_is_a_dataset_without_a_class_map(self, root):
        train = Cityscapes("train", root=root)
        assert isinstance(train, Dataset)
        assert train.classes is train.palette is train[0].labels is train[0].block is None

    @pytest.mark.parametrize(
        ("task", "x", "y"), [("labels-to-photo", LABELS, PHOTO), ("photo-to-labels", PHOTO, LABELS)]
    )
    def test_the_task_determines_which_half_is_x(self, root, task, x, y):
        pair = Cityscapes("train", root=root, task=task)[0]
        assert pair.x.shape == pair.y.shape == (256, 256, 3)
        assert pair.x.dtype == pair.y.dtype == np.uint8
        np.testing.assert_allclose(colour(pair.x), x, atol=4)
        np.testing.assert_allclose(colour(pair.y), y, atol=4)

    def test_val_and_test_both_read_the_folder_val(self, root):
        ids = {split: [pair.id for pair in Cityscapes(split, root=root)] for split in ("train", "val", "test")}
        assert ids["val"] == ids["test"] == ["val-1", "val-2", "val-3", "val-4"]
        assert ids["train"] == [f"train-{number}" for number in range(1, 6)]

    def test_indexes_like_a_sequence(self, root):
        val = Cityscapes("val", root=root)
        assert val[-1].id == "val-4"
        with pytest.raises(IndexError):
            val[4]

    def test_pickles(self, root):
        val = Cityscapes("val", root=root)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(val))[1].x, val[1].x)


@few_pairs
class TestFaults:
    @pytest.mark.parametrize("exists", [True, False])
    def test_without_data_the_error_says_where_to_get_them_and_where_to_put_them(self, tmp_path, exists):
        if exists:
            (tmp_path / "train").mkdir()
        with pytest.raises(UserError) as caught:
            Cityscapes("train", root=tmp_path)
        first, *rest = str(caught.value).splitlines()
        assert first.startswith(f"{tmp_path / 'train'}: {'has no .jpg files' if exists else 'does not exist'}")
        assert "cityscapes.tar.gz (103,441,232 bytes)" in rest[0]
        assert "www.cityscapes-dataset.com" in rest[1]
        assert "-s dataset.root=DIR" in rest[2]

    def test_images_of_another_size_are_named_by_the_constructor(self, root):
        save_pair(root / "train" / "1.jpg", (2048, 1024))
        save_pair(root / "train" / "3.jpg", (286, 286))
        with pytest.raises(UserError) as caught:
            Cityscapes("train", root=root)
        first, second = caught.value.faults
        assert first.startswith(f"{root / 'train' / '1.jpg'}: is 2048×1024 px")
        assert second.startswith(f"{root / 'train' / '3.jpg'}: is 286×286 px")

    def test_a_later_image_of_another_size_is_refused_when_it_is_read(self, root):
        save_pair(root / "train" / "5.jpg", (256, 256))
        train = Cityscapes("train", root=root)
        with pytest.raises(UserError, match=r"5\.jpg: is 256×256 px"):
            train[4]

    def test_only_a_few_headers_are_read_at_construction(self, root, monkeypatch):
        opened = []
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded an image"))
        open_image = Image.open
        monkeypatch.setattr(Image, "open", lambda path, **how: opened.append(path) or open_image(path, **how))
        Cityscapes("train", root=root)
        assert len(opened) == 3

    @pytest.mark.parametrize("keep", [0, 10, 1500])
    def test_an_image_that_cannot_be_decoded_is_named(self, root, keep):
        path = root / "train" / "5.jpg"
        content = path.read_bytes()
        assert len(content) > 1500
        path.write_bytes(content[:keep])
        train = Cityscapes("train", root=root)
        with pytest.raises(UserError, match=r"5\.jpg: cannot be read as an image .*: extract the archive again"):
            train[4]


def test_fewer_pairs_than_in_the_paper_cause_a_warning(root):
    with pytest.warns(UserWarning, match="has 5 pairs, the paper has 2975"):
        Cityscapes("train", root=root)


def test_registers_its_datasets_by_lazy_names():
    factories = {}
    p2pzoo_datasets.register_datasets(lambda name, factory, **_: factories.update({name: factory}))
    assert factories == {
        "folders": "p2pzoo_datasets.folders:Folders",
        "side-by-side": "p2pzoo_datasets.folders:SideBySide",
        "manifest": "p2pzoo_datasets.manifest:Manifest",
        "cityscapes": "p2pzoo_datasets.cityscapes:Cityscapes",
        "facades": "p2pzoo_datasets.published:Facades",
        "maps": "p2pzoo_datasets.published:Maps",
        "edges2shoes": "p2pzoo_datasets.published:EdgesToShoes",
        "edges2handbags": "p2pzoo_datasets.published:EdgesToHandbags",
        "night2day": "p2pzoo_datasets.published:NightToDay",
    }


def test_importing_the_plugin_imports_nothing_heavy():
    script = "import sys, p2pzoo_datasets; print([m for m in ('numpy', 'PIL', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
