"""The fence: published systems, a folder each, composed from the parts of the core, which imports none of them.

A folder says in ``REGISTERED`` what it adds, see :mod:`rlkd.plugins`; it can be deleted.
"""
