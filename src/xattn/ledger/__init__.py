"""What things cost, before and after: an account of bytes and operations, by arithmetic."""

from xattn.ledger.account import Account, Ledger, Row, Setting
from xattn.ledger.fit import Fit, fit
from xattn.ledger.plan import plan

__all__ = ["Account", "Fit", "Ledger", "Row", "Setting", "fit", "plan"]
