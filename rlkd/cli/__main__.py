"""``python -m rlkd.cli``."""

from rlkd.cli import main

main()
