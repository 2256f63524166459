from atss_core.data.folders import files_below


def test_files_below_follows_links_and_lists_each_folder_once(tmp_path):
    root = tmp_path / "root"
    for folder in (root / "b", tmp_path / "other" / "deep"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (root / "a").symlink_to(root / "b")  # its own path is used, although the link comes first
    (root / "c").symlink_to(tmp_path / "other")
    (root / "d").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "up").symlink_to(root)
    (root / "itself").symlink_to("itself")
    (root / "nowhere").symlink_to("missing")
    (root / "linked").symlink_to(root / "b" / "file")
    names = [path.relative_to(root).as_posix() for path in files_below(root)]
    assert sorted(names) == ["b/file", "c/deep/file", "itself", "linked", "nowhere"]
