"""Files that are not read are counted by kind; hidden files are not mentioned."""

import os
from pathlib import Path

import pytest

from p2pzoo.images.find_images import describe_nested_images, describe_other_files, find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/1.PNG", "photos/inside/2.jpg", "photos/inside/3.jp2", "photos/4.jfif", "photos/.5.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return Path("photos")


def test_other_kinds_are_counted_in_one_line(folder):
    for name in ("a.gif", "b.GIF", "c.heic", "d.exr", "e.dcm", "f.nii.gz", "g", "Thumbs.db", ".DS_Store"):
        (folder / name).touch()
    assert describe_other_files([folder]) == (
        "photos: 8 files are not read, because of their kind (2 .gif, 1 .dcm, 1 .exr, 1 .heic, 1 .jfif, 1 .nii.gz, "
        "...): convert them to PNG or TIFF, or move them away"
    )


def test_only_files_count_and_only_those_of_the_folders(folder):
    os.mkfifo(folder / "pipe.gif")
    assert describe_other_files([folder]).startswith("photos: 1 file is not read, because of its kind (1 .jfif): ")
    assert "2 files are not read, because of their kind (1 .j" in describe_other_files([folder], nested=True)
    (folder / "4.jfif").unlink()
    assert describe_other_files([folder]) is None


def test_images_are_found_at_any_depth_where_asked(folder):
    assert find_images(folder) == [folder / "1.PNG"]
    (folder / "inside/up").symlink_to(folder.resolve())
    assert find_images(folder, nested=True) == [folder / "1.PNG", folder / "inside/2.jpg"]


def test_images_in_sub_folders_are_counted_without_those_that_are_given_or_written(tmp_path):
    for name in ("a.png", "day2/b.png", "day2/c.jpg", "day2/deep/d.png", "day2/note.txt", "out/a.png", ".hidden/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    out = tmp_path / "out"
    line = describe_nested_images([tmp_path], [out])
    assert line == (
        f"{tmp_path}: 3 images in sub-folders are left out (2 in day2, 1 in day2/deep): give these folders, too"
    )
    one = describe_nested_images([tmp_path, tmp_path / "day2"], [out])
    assert one.endswith("1 image in a sub-folder is left out (1 in deep): give this folder, too")
    assert describe_nested_images([out]) is None
