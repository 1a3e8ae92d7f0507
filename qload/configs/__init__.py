"""What configs say of quantization: where it stands, what breaks its schema, is not known, or contradicts itself."""

from qload.configs.conflicts import find_conflicts
from qload.configs.dtypes import find_dtype_faults
from qload.configs.faults import describe_faults
from qload.configs.sections import PARTS, SECTIONS, Section, find_section, find_sections
from qload.configs.unknown import find_unknown, suggest

__all__ = [
    "PARTS",
    "SECTIONS",
    "Section",
    "describe_faults",
    "find_conflicts",
    "find_dtype_faults",
    "find_section",
    "find_sections",
    "find_unknown",
    "suggest",
]
