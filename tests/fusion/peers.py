"""The peer libraries. Importing them warns of what newer Pythons and PyTorch think of their code."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import FrEIA.framework
    import FrEIA.modules
    import nflows.distributions
    import nflows.flows
    import nflows.nn.nets
    import nflows.transforms
    import normflows
    import zuko

__all__ = ["FrEIA", "nflows", "normflows", "zuko"]
