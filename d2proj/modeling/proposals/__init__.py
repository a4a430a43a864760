"""Sources of object proposals."""

from d2proj.modeling.proposals.rpn import RPN, RPNHead

__all__ = ["RPN", "RPNHead"]
