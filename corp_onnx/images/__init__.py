"""Image folders and arrays as batches; the preprocessing recipe."""

from corp_onnx.images.batch import Skipped
from corp_onnx.images.decode import require_images
from corp_onnx.images.folder import Images, ImageSet, open_images, split_holdout

__all__ = ["ImageSet", "Images", "Skipped", "open_images", "require_images", "split_holdout"]
