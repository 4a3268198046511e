"""What a sequence shows bright: read from its timing, from its name only where the timing is silent."""

from __future__ import annotations

import re

from orthokernels.data.volume import Source

# Knee protocols: T1 is TR under about 1000 ms with a short echo; proton density and T2 have TR above that and
# echo times of 30 ms and more where fluid is to be bright; STIR nulls fat with an inversion time near 130 to 230 ms.
_LONG_TR = 1000.0
_FLUID_ECHO = 25.0
_STIR_INVERSION = (80.0, 300.0)

_FAT_SUPPRESSED_OPTION = re.compile(r"\b(FS|SFS|FAT_?SAT\w*|SPIR|SPAIR|STIR|WE)\b")
_FAT_SUPPRESSED_NAME = re.compile(
    r"(?<![a-z])(fs|fatsat|fat[ _-]?sat|spair|spir|stir|tirm|water|we|dess)(?![a-z])", re.IGNORECASE
)
_FLUID_NAME = re.compile(r"(?<![a-z])(pd\w*|t2\w*|stir|tirm|dess|ir)(?![a-z])", re.IGNORECASE)


def fat_suppressed(source: Source) -> bool:
    """Whether fat is known to be dark: by scan options or inversion time, else by the description."""
    if _is_stir(source) or _FAT_SUPPRESSED_OPTION.search(source.scan_options.upper()):
        return True
    return bool(_FAT_SUPPRESSED_NAME.search(source.description))


def fluid_sensitive(source: Source) -> bool:
    """Whether fluid is known to be bright: by the times of a spin echo, else by the description."""
    if _is_stir(source):
        return True
    if _timed(source) and source.sequence in {"", "SE", "RM SE", "SE RM"}:
        assert source.echo_time is not None
        assert source.repetition_time is not None
        return source.repetition_time >= _LONG_TR and source.echo_time >= _FLUID_ECHO
    return bool(_FLUID_NAME.search(source.description))


def contrast_name(source: Source) -> str:
    """In words, for the report; "unknown" where neither times nor names tell anything, as of most NIfTI files."""
    fluid, fat = fluid_sensitive(source), fat_suppressed(source)
    if not (fluid or fat or _timed(source) or source.scan_options):
        return "unknown"
    return (
        f"{'fluid-sensitive' if fluid else 'not fluid-sensitive'}, {'fat-suppressed' if fat else 'not fat-suppressed'}"
    )


def _timed(source: Source) -> bool:
    return source.echo_time is not None and source.repetition_time is not None


def _is_stir(source: Source) -> bool:
    low, high = _STIR_INVERSION
    return "IR" in source.sequence and source.inversion_time is not None and low <= source.inversion_time <= high
