"""The appliance's page: probes, the live queue, each study with a viewer, corrections, retries, the model card.

Each file is one story; ``application`` puts them together, ``access`` decides who may ask for what.
"""

from orthokernels.edge.web.application import Page

__all__ = ["Page"]
