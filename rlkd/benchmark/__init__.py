"""Paired runs and what they show: one run is a task, its teachers, a student, a weighting and a seed, one JSON line.

A line is a flat record with a ``kind``:

* ``run``: ``suite``, ``task``, ``student``, ``weighting``, ``seed``, ``status`` (``ok`` or ``failed``, then with
  ``error``), the scores on the test split (``accuracy``, ``macro_f1``, ``matthews``, ``nll``, ``ece``,
  ``class_recall``; ``metric`` names the one that counts), ``correct`` (:func:`rlkd.records.unpack_bits`),
  ``predictions`` and ``labels`` (:func:`rlkd.records.unpack_classes`) where accuracy is not what counts, ``regret`` and
  ``selection_accuracy`` (:func:`rlkd.benchmark.measuring.choice_figures`), ``mean_weights`` (K),
  ``knowing_mass_early`` and ``_late``, ``seconds`` by the clock, ``cpu_seconds`` and ``steps``
  (:class:`rlkd.cost.Cost`; the same three of the policy's training as ``policy_seconds`` and so on, None where
  unknown), ``fit_seconds``, ``teacher_passes``, ``peak_memory_mb``, ``rows`` per split, ``labelled_rows`` outside the
  test split, and what made it: ``teachers``, ``settings``, ``data``, ``logits``, ``policy`` (hashes), ``environment``.
* ``task``: once a task: ``best_teacher``, ``equal_mixture``, ``best_per_instance``, ``room``, ``disagreement`` on
  validation, ``teacher_accuracy`` (K), ``seconds``, ``teacher_passes`` of the cache.
* ``policy``: once a trained policy: ``policy`` (its name), ``settings``, ``seconds``, ``cpu_seconds``, ``steps``.
"""

from rlkd.benchmark.compared import ComparedWeighting, compared_weightings
from rlkd.benchmark.comparing import check_comparison, compare, students_beside
from rlkd.benchmark.jobs import Job
from rlkd.benchmark.measuring import weights_summary
from rlkd.records import pack_bits, unpack_bits

__all__ = [
    "ComparedWeighting",
    "Job",
    "check_comparison",
    "compare",
    "compared_weightings",
    "pack_bits",
    "students_beside",
    "unpack_bits",
    "weights_summary",
]
