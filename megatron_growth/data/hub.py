"""Data sets of the Hugging Face hub: their own Parquet files, listed without a download and fetched one at a time.

Which files belong to a configuration and a split is written at the top of a data set's README (`configs`); without
that, the file names say the split.  A data set without Parquet files is read from the branch into which the hub
converts it.  The hub names the SHA-256 of every large file, so a data set has its identity before anything is fetched,
and a file that arrives with another content is refused.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from megatron_growth.data.hub_address import PREFIX, Address, api, hub_errors, parse
from megatron_growth.data.pieces import Corpus, InputFile
from megatron_growth.errors import DataError, nearest
from megatron_growth.records.storage import sha256_of

FORMAT = "hub"
_CONVERTED = "refs/convert/parquet"
_SPLITS = {"train": "train|training", "validation": "validation|valid|val|dev", "test": "test|testing|eval|evaluation"}


@dataclass(frozen=True)
class _Files:
    """(path, bytes, hash) of every file at one commit of a repository."""

    commit: str
    files: dict[str, tuple[int, str]]

    def parquet(self, paths: Iterable[str] | None = None) -> list[str]:
        """The Parquet files among `paths`, or among all, by name."""
        return sorted(p for p in (self.files if paths is None else paths) if p.lower().endswith(".parquet"))


def listing(given: str) -> Corpus:
    """The Parquet files of the data set that `given` names, in the order of their names; only its README is fetched.

    Raises UnsupportedError without the client's package; DataError when the hub cannot be reached, or has no such data
    set, configuration or split, or no Parquet of it.
    """
    where = f"--corpus {given}"
    address = parse(given, where)
    client = api(where)
    with hub_errors(f"The data set {address.name!r}", where):
        files = _files(client, address.name, address.revision)
        paths = _chosen(client, address, files, where) if files.parquet() else []
        skipped: dict[str, list[str]] = {}
        if not files.parquet(paths):
            files, paths, skipped = _converted(client, address, where)
    chosen = files.parquet(paths)
    if others := sorted(set(paths) - set(chosen)):
        skipped["not Parquet"] = others
    sources = [
        InputFile(path, f"{PREFIX}{address.name}@{files.commit}:{path}", FORMAT, *files.files[path]) for path in chosen
    ]
    return Corpus(sources, skipped)


def fetch(source: InputFile, folder: Path) -> InputFile:
    """The Parquet file of a hub source, fetched into `folder` unless it is there; a broken download is continued.

    Raises DataError when the hub cannot be reached or sends another content.
    """
    name, _, rest = source.path.removeprefix(PREFIX).partition("@")
    commit, _, path = rest.partition(":")
    local = folder / path
    if not _is_whole(local, source):
        with hub_errors(f"The file {path} of {name!r}", source.path):
            local = Path(
                api(source.path).hf_hub_download(name, path, repo_type="dataset", revision=commit, local_dir=folder)
            )
        if not _is_whole(local, source):
            local.unlink(missing_ok=True)
            raise DataError(
                "The hub sent another file than it listed; it is deleted.",
                where=source.path,
                fix="Give the same command again; if that does not help, the hub's copy of the file is broken.",
            )
    return replace(source, path=str(local), format="parquet")


def _is_whole(local: Path, source: InputFile) -> bool:
    if not local.is_file() or local.stat().st_size != source.bytes:
        return False
    if len(source.sha256) == 64:
        return sha256_of(local) == source.sha256
    data = local.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == source.sha256


def _files(client: Any, name: str, revision: str) -> _Files:
    commit = client.dataset_info(name, revision=revision).sha
    tree = client.list_repo_tree(name, repo_type="dataset", revision=commit, recursive=True)
    found = {
        entry.path: (entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for entry in tree
        if hasattr(entry, "blob_id")
    }
    return _Files(commit, found)


def _chosen(client: Any, address: Address, files: _Files, where: str) -> list[str]:
    """Paths of the configuration and split that are asked for."""
    configs = _configs(client, address, files)
    names = [str(config.get("config_name", "default")) for config in configs]
    if address.config and address.config not in names:
        raise DataError(
            f"The data set {address.name!r} has no configuration {address.config!r}; "
            f"{nearest(address.config, names or ['default'])}.",
            where=where,
            fix="Write hf:OWNER/NAME:CONFIG/SPLIT with one of these.",
        )
    if not configs:
        return _split(address, _by_name(files.parquet()), where)
    marked = [config for config in configs if config.get("default") is True or config.get("config_name") == "default"]
    config = configs[names.index(address.config)] if address.config else (marked or configs)[0]
    return _split(address, _by_pattern(config, list(files.files)), where)


def _configs(client: Any, address: Address, files: _Files) -> list[dict[str, Any]]:
    """The configurations at the top of the README."""
    if "README.md" not in files.files:
        return []
    with TemporaryDirectory() as folder:
        page = client.hf_hub_download(
            address.name, "README.md", repo_type="dataset", revision=files.commit, local_dir=folder
        )
        parts = Path(page).read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    found = head.get("configs") if isinstance(head, dict) else None
    return [config for config in found or [] if isinstance(config, dict) and "data_files" in config]


def _by_pattern(config: dict[str, Any], paths: Sequence[str]) -> dict[str, list[str]]:
    """Split to paths, from a configuration's `data_files`."""
    files = config["data_files"]
    entries = (
        files if isinstance(files, list) and all(isinstance(entry, dict) for entry in files) else [{"path": files}]
    )
    splits: dict[str, list[str]] = {}
    for entry in entries:
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        folder = str(config.get("data_dir") or "").strip("/")
        wanted = [_pattern(f"{folder}/{pattern}".lstrip("/")) for pattern in map(str, patterns)]
        found = sorted(path for path in paths if any(one.fullmatch(path) for one in wanted))
        splits.setdefault(str(entry.get("split", "train")), []).extend(found)
    return splits


def _pattern(glob: str) -> re.Pattern[str]:
    """`*` stays inside a folder, `**` does not; a folder stands for all that is in it."""
    parts = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", glob.removeprefix("./"))
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(words.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)
    return re.compile(text + (".*" if glob.endswith("/") else "(?:/.*)?"))


def _by_name(paths: Sequence[str]) -> dict[str, list[str]]:
    """Split to paths, by the words of their names; all are for training when no name says otherwise."""
    splits: dict[str, list[str]] = {}
    for split, words in _SPLITS.items():
        word = re.compile(rf"(?:^|[/._-])(?:{words})(?:[/._-]|$)")
        if found := [path for path in paths if word.search(path)]:
            splits[split] = found
    return splits or {"train": list(paths)}


def _split(address: Address, splits: dict[str, list[str]], where: str) -> list[str]:
    wanted = address.split or "train"
    if wanted not in splits:
        raise DataError(
            f"The data set {address.name!r} has no split {wanted!r}; {nearest(wanted, splits)}.",
            where=where,
            fix="Write hf:OWNER/NAME/SPLIT or hf:OWNER/NAME:CONFIG/SPLIT with one of these.",
        )
    return splits[wanted]


def _converted(client: Any, address: Address, where: str) -> tuple[_Files, list[str], dict[str, list[str]]]:
    """The Parquet that the hub itself made of a data set in another format: CONFIG/SPLIT/NNNN.parquet."""
    files = _files(client, address.name, _CONVERTED)
    configs = sorted({path.split("/")[0] for path in files.parquet() if path.count("/") == 2})
    config = address.config or ("default" if "default" in configs else (configs or [""])[0])
    split = address.split or "train"
    whole = fnmatch.filter(files.files, f"{config}/{split}/*.parquet")
    part = fnmatch.filter(files.files, f"{config}/partial-{split}/*.parquet")
    if not (whole or part):
        raise DataError(
            f"The data set {address.name!r} has no Parquet files for {config or 'any configuration'}/{split}.",
            where=where,
            fix="Download its files and give them by their path, or choose another configuration or split.",
        )
    skipped = {} if whole else {"not in the hub's Parquet, which holds the first part only": [f"the rest of {split}"]}
    return files, whole or part, skipped
