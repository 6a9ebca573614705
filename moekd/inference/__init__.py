"""What an exported student says about pictures and texts of one's own."""

from .files import picture_files, read_input
from .label_vectors import read_label_vectors
from .labels import Labels, clean_labels, clean_templates
from .predict import Embeddings, Match, Prediction, embed, predict, search
from .predictor import Predictor, Seen

__all__ = [
    "Embeddings",
    "Labels",
    "Match",
    "Prediction",
    "Predictor",
    "Seen",
    "clean_labels",
    "clean_templates",
    "embed",
    "picture_files",
    "predict",
    "read_input",
    "read_label_vectors",
    "search",
]
