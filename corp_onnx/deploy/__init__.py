"""From a model file to production: precision, engines, serving."""
