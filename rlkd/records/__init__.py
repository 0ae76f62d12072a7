"""Files that survive a kill, and the run directory they live in.

A file written here is either whole or absent: the text goes to a temporary file in the same directory, is
synced, and is renamed over the target. A directory of files (a checkpoint, a cache) is whole when its
manifest, written last, names the size and the hash of every file and all of them match. A folder that is made
once, by :func:`once`, says so itself.
"""

from rlkd.records.bits import pack_bits, pack_classes, unpack_bits, unpack_classes
from rlkd.records.checkpoints import (
    MANIFEST,
    MANIFEST_VERSION,
    newest_verified,
    step_number,
    verify_manifest,
    write_manifest,
)
from rlkd.records.digests import digest
from rlkd.records.files import (
    file_hash,
    parse_object,
    read_object,
    write_array_atomic,
    write_atomic,
    write_json_atomic,
    write_text_atomic,
)
from rlkd.records.finished import Finished, finished, once
from rlkd.records.lines import append_jsonl, read_jsonl
from rlkd.records.locks import LOCKS_FOLDER, claim, file_lock, held, lock_open_file
from rlkd.records.names import check_folder_name, folder_of
from rlkd.records.processes import check_launcher, check_one_process, process_rank, processes_started, rank_on_machine
from rlkd.records.provenance import PACKAGES, commit, environment, hash_sources, source
from rlkd.records.run_directory import HARMLESS_KEYS, RUN_MARKER, RunDirectory, check_output_dir, prepare_output_dir

__all__ = [
    "HARMLESS_KEYS",
    "LOCKS_FOLDER",
    "MANIFEST",
    "MANIFEST_VERSION",
    "PACKAGES",
    "RUN_MARKER",
    "Finished",
    "RunDirectory",
    "append_jsonl",
    "check_folder_name",
    "check_launcher",
    "check_one_process",
    "check_output_dir",
    "claim",
    "commit",
    "digest",
    "environment",
    "file_hash",
    "file_lock",
    "finished",
    "folder_of",
    "hash_sources",
    "held",
    "lock_open_file",
    "newest_verified",
    "once",
    "pack_bits",
    "pack_classes",
    "parse_object",
    "prepare_output_dir",
    "process_rank",
    "processes_started",
    "rank_on_machine",
    "read_jsonl",
    "read_object",
    "source",
    "step_number",
    "unpack_bits",
    "unpack_classes",
    "verify_manifest",
    "write_array_atomic",
    "write_atomic",
    "write_json_atomic",
    "write_manifest",
    "write_text_atomic",
]
