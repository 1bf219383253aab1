"""Image folders and arrays as batches; the preprocessing recipe; class labels."""

from corp_onnx.images.batch import Skipped
from corp_onnx.images.decode import require_path
from corp_onnx.images.folder import ImageSet
from corp_onnx.images.open import Images, ImageSource, open_images, split_holdout

__all__ = ["ImageSet", "ImageSource", "Images", "Skipped", "open_images", "require_path", "split_holdout"]
