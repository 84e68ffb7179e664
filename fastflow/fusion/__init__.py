from fastflow.fusion.swap import fuse, supported_layers, unfuse

__all__ = ["fuse", "supported_layers", "unfuse"]
