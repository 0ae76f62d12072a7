"""What the names of weightings say: their constant order, their family, the controls of a policy."""

from collections.abc import Iterable, Sequence

from rlkd.plugins import systems

LEARNED = systems()
ORDER = (
    *("uniform", "calibrated_uniform", "fixed", "random_teacher", "best_teacher", "lr_train", "lr_dev"),
    *("max_probability", "entropy", "ebkd", "agreement", "govern"),
    *("cross_entropy", "ca_mkd", "mt_bert", "aekd", "hedge", *LEARNED),
    *("router", "auto", "policy", "policy_shuffle", "policy_mean", "best_per_instance", "oracle"),
)
"""Base names as tables and plots list them; a user's own weightings stand before the router."""
_OWN = ORDER.index("router") - 0.5

POLICY, ROUTER, AUTO = "policy", "router", "auto"
CONTROLS = ("shuffle", "mean")
CEILINGS = ("oracle", "best_per_instance")


def base(name: str) -> str:
    """The weighting without its argument."""
    return name.partition(":")[0]


def ordered(names: Iterable[str]) -> list[str]:
    """Names without repetition in the order that every table and plot keeps."""
    return sorted(dict.fromkeys(names), key=_place)


def _place(name: str) -> tuple[float, str]:
    if name in ORDER:
        return ORDER.index(name), ""
    if is_control(name):
        return ORDER.index("policy_shuffle"), name
    alike = [entry for entry in ORDER if base(name) == entry or base(name).startswith((f"{entry}_", f"{entry}-"))]
    return (ORDER.index(max(alike, key=len)) if alike else _OWN), name


def is_control(name: str) -> bool:
    """Whether a weighting is a policy made worse on purpose: shuffled over instances, or its mean."""
    stem = base(name)
    if not stem.startswith((POLICY, *LEARNED)):
        return False  # aekd_batch_mean is a method of its own
    return any(stem.startswith(f"{POLICY}_{kind}") or stem.endswith(f"_{kind}") for kind in CONTROLS)


def is_policy(name: str) -> bool:
    """Whether a weighting is a learned policy of ours (``policy``, ``policy_influence``, ``policy:...``)."""
    return base(name).split("_")[0] == POLICY and not is_control(name)


def family(name: str) -> str:
    """``uniform``, ``policy``, ``control``, ``learned`` (published systems), ``ceiling`` or ``other``."""
    if name == "uniform":
        return name
    if is_control(name):
        return "control"
    if is_policy(name) or base(name) == AUTO:
        return "policy"
    if base(name) in CEILINGS:
        return "ceiling"
    return "learned" if base(name).startswith(LEARNED) else "other"


def policies(names: Iterable[str]) -> list[str]:
    """The learned policies among the names, in order."""
    return [name for name in ordered(names) if is_policy(name)]


def control_of(policy: str, kind: str, names: Sequence[str]) -> str | None:
    """The shuffled or averaged twin of a policy (``kind`` one of :data:`CONTROLS`); None without one.

    ``policy_x`` is matched by ``policy_shuffle_x`` and ``policy_x_shuffle``; a single policy by the single control.
    """
    rest = policy.removeprefix(POLICY)
    for candidate in (f"{POLICY}_{kind}{rest}", f"{policy}_{kind}"):
        if candidate in names:
            return candidate
    controls = [name for name in names if is_control(name) and kind in base(name)]
    return controls[0] if len(controls) == 1 and len(policies(names)) == 1 else None
