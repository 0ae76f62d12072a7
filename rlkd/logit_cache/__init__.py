"""The teachers' logits, computed once: one array per teacher keyed by instance id, and a manifest written last.

A folder without a manifest that verifies is not a cache. Every array is written to a temporary name and renamed, so
an interrupted build is continued with the teachers that are finished, and correctness does not rest on the lock. Rows
are read from one array of all teachers, in memory or made beside them, see :mod:`rlkd.logit_cache.stacks`.
"""

from rlkd.logit_cache.building import Embedder, build_cache, compute_affinity
from rlkd.logit_cache.encoders import LiveEncoders
from rlkd.logit_cache.gaps import answered_by_all, refuse_gaps, taught_rows, write_gapped_cache
from rlkd.logit_cache.live import LiveTeachers, joint_knowledge
from rlkd.logit_cache.reading import KEPT, MANIFEST, load_cache, open_cache, read_manifest
from rlkd.logit_cache.sources import LogitCache, answered_ids, embedding_size, read_state

__all__ = [
    "KEPT",
    "MANIFEST",
    "Embedder",
    "LiveEncoders",
    "LiveTeachers",
    "LogitCache",
    "answered_by_all",
    "answered_ids",
    "build_cache",
    "compute_affinity",
    "embedding_size",
    "joint_knowledge",
    "load_cache",
    "open_cache",
    "read_manifest",
    "read_state",
    "refuse_gaps",
    "taught_rows",
    "write_gapped_cache",
]
