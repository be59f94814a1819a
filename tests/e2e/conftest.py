from tests.e2e.alert_watch import watching
from tests.realdisk import disk_with_errors, failing_disk, small_disk

__all__ = ["disk_with_errors", "failing_disk", "small_disk", "watching"]
