"""``python -m rlkd``, which launchers start too: ``torchrun -m rlkd distill ...``."""

from rlkd.cli import main

if __name__ == "__main__":
    main()
