"""What the headers alone say of a model: its modules, their kinds, and their sizes.

Without torch there is no model to ask. The plan then finds the tensors of one module that disagree.
"""

from qload.outline.model import Outline, outline
from qload.outline.thinning import thin

__all__ = ["Outline", "outline", "thin"]
