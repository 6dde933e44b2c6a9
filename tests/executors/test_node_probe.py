"""The proof that a node sees the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.executors.node_probe import ProbeFile, require_shared_storage, storage_probe
from pipeline.store.objects.paths import store_path
from schemas.errors import NodeError


def test_a_node_that_sees_the_drivers_file_passes_and_the_file_goes_away(tmp_path):
    with storage_probe(tmp_path) as probe:
        require_shared_storage(probe)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "another node's", "\xff"])
def test_a_node_with_another_folder_of_that_name_is_refused(tmp_path, content):
    probe = ProbeFile(str(tmp_path / ".probe.1.tmp"), "a3")
    if content is not None:
        Path(probe.path).write_text(content, encoding="latin-1")
    sentence = rf"^node \S+ does not see the driver's files in {tmp_path}: put store.root on a file system"
    with pytest.raises(NodeError, match=sentence):
        require_shared_storage(probe)


def test_an_object_store_needs_no_proof():
    with storage_probe(store_path("memory://bucket/lake")) as probe:
        assert probe is None
        require_shared_storage(probe)
