"""Phase 2: the fMRI encoder, guided by the pictures that were seen through cross attention."""

from cadiff.attend.stage import AttendConfig, attend

__all__ = ["AttendConfig", "attend"]
