"""Darknet's networks from their own ``.cfg`` files (weights: ``d2proj.checkpoint.darknet``)."""

from d2proj.darknet.cfg import Section, parse_cfg, read_cfg
from d2proj.darknet.network import DarknetNetwork
from d2proj.darknet.plan import Plan, plan_network

__all__ = ["DarknetNetwork", "Plan", "Section", "parse_cfg", "plan_network", "read_cfg"]
