"""The protocol of a measurement: everything that changes the numbers. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceProtocol:
    """Two evaluations can be compared when these agree.

    The names of the fields are part of the key of cached statistics: a change makes all of them again.
    """

    extractor: str | None  # a name of EXTRACTORS; None where no features were compared, as for likelihoods
    extractor_sha256: str | None  # of its weights
    resize: str | None  # how images reach the extractor's size
    quantisation: str | None  # how they reached uint8
    data: str
    split: str
    data_fingerprint: str
    flips: bool  # whether mirrored images were added
    n: int  # images
    whole: bool = True  # all images of the split
