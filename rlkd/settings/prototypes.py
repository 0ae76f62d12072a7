"""How instances are scored by prototypes, see :mod:`rlkd.prototypes`."""

from dataclasses import dataclass

from rlkd.settings.knobs import Range, Settings, knob


@dataclass(frozen=True, kw_only=True)
class PrototypeSettings(Settings):
    """How Meta-KD's prototype score t is made."""

    kind: str = knob(
        "class",
        "Prototypes of the score t: class, one for every domain and class, as in the paper; domain, one for every "
        "domain, as in the released code.",
        choices=("class", "domain"),
    )
    own_share: float = knob(
        0.5,
        "Share of the cosine to the own domain's prototype in t, the paper's alpha; the others share the rest.",
        Range(0, 1, open_low=True, open_high=True),
    )
    centred: bool = knob(
        False,
        "Subtract the mean embedding first: mean-pooled embeddings of one encoder all point the same way, so that t "
        "hardly varies.",
    )
